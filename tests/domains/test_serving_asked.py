"""What a service says of itself and of what it keeps, and what a forecaster is asked wrongly."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dna_models import ByPosition
from served import AT, Asked, assert_refused, language, run
from tiny_timeseries import HORIZON, table, untrained

from titans_domains.serving.classes import Classes
from titans_domains.serving.errors import STATUSES
from titans_domains.serving.forecasts import Forecasts
from titans_domains.timeseries.config import DOMAIN

KEYS = (("k1", "ann"), ("k2", "bob"))


def as_owner(key: str) -> dict[str, dict[str, str]]:
    return {"headers": {"authorization": f"Bearer {key}"}}


def test_each_owner_lists_its_own_sessions(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        for key, names in (("k1", ("c", "a", "b")), ("k2", ("a",))):
            for name in names:
                await asked.client.post("/v1/sessions", json={"id": name}, **as_owner(key))
        lost = await asked.client.post("/v1/sessions", **as_owner("k2"))
        await asked.client.post("/v1/sessions/b/freeze", **as_owner("k1"))
        body = {"prompt": "x", "max_tokens": 0, "session": "b"}
        await asked.client.post(AT, json={**body, "session": "a"}, **as_owner("k1"))

        async def page(key: str, **query: Any) -> Any:
            done = await asked.client.get("/v1/sessions", params=query, **as_owner(key))
            return done.json()

        everything = await page("k1")
        assert (everything["object"], everything["has_more"]) == ("list", False)
        assert everything["data"] == [
            {"id": "a", "object": "session", "positions": 2, "frozen": False, "in_use": False},
            {"id": "b", "object": "session", "positions": 0, "frozen": True, "in_use": False},
            {"id": "c", "object": "session", "positions": 0, "frozen": False, "in_use": False},
        ]
        first = await page("k1", limit=2)
        assert ([one["id"] for one in first["data"]], first["has_more"]) == (["a", "b"], True)
        second = await page("k1", limit=2, after="b")
        assert ([one["id"] for one in second["data"]], second["has_more"]) == (["c"], False)
        # What was handed out and lost is found, and can be deleted.
        mine = [one["id"] for one in (await page("k2"))["data"]]
        assert mine == ["a", lost.json()["id"]]
        for name in mine:
            await asked.client.delete(f"/v1/sessions/{name}", **as_owner("k2"))
        assert (await page("k2"))["data"] == []
        assert len((await page("k1"))["data"]) == 3
        for limit in (0, 1001, "x"):
            refused = await asked.client.get("/v1/sessions?limit=" + str(limit), **as_owner("k1"))
            assert_refused(refused, 400, "limit must be")
            assert refused.json()["error"]["param"] == "limit"

    run(language(tmp_path, in_process=1), test, keys=KEYS)


def test_a_model_without_sessions_lists_none() -> None:
    async def test(asked: Asked) -> None:
        assert_refused(await asked.client.get("/v1/sessions"), 400, "no memory of bounded size")

    run(language(mixer="attention"), test)


@pytest.mark.parametrize("keys", [(), KEYS])
def test_the_page_of_routes_needs_no_key_and_nothing_from_elsewhere(keys: Any) -> None:
    async def test(asked: Asked) -> None:
        page = await asked.client.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(r"https?:|<script|//", page.text)
        for text in (
            "POST /v1/completions",
            "GET /v1/sessions",
            "tokens of a prompt",
            "32,768",
            "stop",
        ):
            assert text in page.text
        assert all(words in page.text for words in STATUSES.values())
        assert ("Authorization: Bearer" in page.text) is bool(keys)
        schema = (await asked.client.get("/openapi.json")).json()
        operations = [one for path in schema["paths"].values() for one in path.values()]
        assert len(operations) == 11
        for one in operations:
            assert "422" not in one["responses"]
            assert one["responses"]["default"]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/Error"
            }
            assert one["description"]
        error = (await asked.client.get("/nowhere", **as_owner("k1"))).json()
        assert schema["components"]["schemas"]["Error"]["required"] == list(error)
        assert "ValidationError" not in schema["components"]["schemas"]
        locked = schema["paths"]["/v1/completions"]["post"].get("security")
        assert locked == ([{"bearer": []}] if keys else None)
        assert "security" not in schema["paths"]["/healthz"]["get"]

    run(language(), test, keys=keys)


def test_other_models_have_their_page_too() -> None:
    async def test(asked: Asked) -> None:
        page = (await asked.client.get("/docs")).text
        assert "POST /v1/classify" in page
        assert "sequences" in page

    run(lambda service: Classes(service, ByPosition()), test)


def test_refusals_count_at_their_route() -> None:
    async def test(asked: Asked) -> None:
        await asked.complete("x" * 500, max_tokens=0)
        for name in ("a", "b"):
            await asked.client.get(f"/v1/sessions/{name}")
        await asked.client.get("/no/such/route")
        asked.client.headers["authorization"] = "Bearer k1"
        await asked.complete("x" * 500, max_tokens=0)
        text = (await asked.client.get("/metrics")).text
        for labels in (
            'route="/v1/completions",status="401"', 'route="/v1/completions",status="413"',
            'route="other",status="401"',
        ):  # fmt: skip
            assert f"titans_requests_total{{{labels}}} 1\n" in text
        assert 'route="/v1/sessions/{session}",status="401"} 2\n' in text

    run(language(), test, keys=KEYS, max_body=300)


def test_what_is_no_json_has_one_code() -> None:
    async def test(asked: Asked) -> None:
        for body in (b"hello", b"", b"{", b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 100_000):
            headers = {"content-type": "application/json"}
            refused = await asked.client.post(AT, content=body, headers=headers)
            assert_refused(refused, 400, "")
            if body:
                assert refused.json()["error"]["code"] == "invalid_json", body
        for path, status, code in (("/x", 404, "not_found"), (AT, 405, "method_not_allowed")):
            refused = await asked.client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)

    run(language(), test)


def rows_of(frame: pd.DataFrame, **more: Any) -> list[dict[str, Any]]:
    frame = frame[["s0"]].rename(columns={"s0": "target"}).rename_axis("timestamp").reset_index()
    frame["timestamp"] = frame["timestamp"].astype(str)
    frame["target"] = frame["target"].fillna(100.0)
    return [{**row, **more} for row in frame.to_dict("records")]


@pytest.fixture(scope="module")
def forecaster() -> Any:
    return untrained()


def test_other_frequencies_than_that_of_the_training_are_refused(forecaster: Any) -> None:
    async def test(asked: Asked) -> None:
        async def ask(rows: Any, **body: Any) -> Any:
            return await asked.client.post("/v1/forecast", json={"rows": rows, **body})

        daily = rows_of(table(freq="D"))
        refused = await ask(daily)
        assert_refused(refused, 400, "trained on data by 'h', and rows are by 'D'")
        assert refused.json()["error"]["code"] == "other_freq"
        # Its advice can be followed.
        told = (await ask(daily, freq="D")).json()
        assert (told["freq"], len(told["rows"])) == ("D", HORIZON)
        assert (await ask(rows_of(table(freq="60min")))).status_code == 200
        # Too few to show a frequency: it is the model's.
        for body in ({}, {"freq": "h"}):
            done = await ask(rows_of(table())[:1], **body)
            assert (done.status_code, done.json().get("freq")) == (200, "h"), done.text
        refused = await ask(daily, freq="often")
        assert_refused(refused, 400, "freq must be a pandas frequency")
        assert refused.json()["error"]["param"] == "freq"

    run(lambda service: Forecasts(service, forecaster, DOMAIN.presets["tiny"], "h"), test)


def test_what_is_wrong_with_a_request_is_named(forecaster: Any) -> None:
    rows = rows_of(table())
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"rows": rows, "quantiles": [0.5, 2]}, "between 0 and 1", "quantiles"),
        ({"rows": rows, "quantiles": [0.5, 0.5]}, "must hold each number once", "quantiles"),
        (
            {"rows": [*rows[:3], {**rows[3], "target": True}, *rows[4:]]},
            "rows.3.target must be a number or null: got true",
            "rows.3.target",
        ),
        ({"rows": [{**row, "x": 1} for row in rows]}, "reads no 'x' in it: leave that", "rows"),
    ]

    async def test(asked: Asked) -> None:
        for body, sentence, param in wrong:
            refused = await asked.client.post("/v1/forecast", json=body)
            assert_refused(refused, 400, sentence)
            assert refused.json()["error"]["param"] == param
        # Columns that the training was told to pass over may be there, or not.
        for more in ({}, {"note": True}):
            body = {"rows": [{**row, **more} for row in rows]}
            done = await asked.client.post("/v1/forecast", json=body)
            assert done.status_code == 200, done.text

    tiny = DOMAIN.presets["tiny"]
    config = replace(tiny, data=replace(tiny.data, ignored=("note",)))
    run(lambda service: Forecasts(service, forecaster, config), test)
