"""The routes of forecasters and classifiers."""

import asyncio
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dna_models import ByLetter, ByPosition
from served import Asked, assert_refused, run
from tiny_timeseries import HORIZON, table, untrained

from titans_domains.serving.classes import Classes
from titans_domains.serving.forecasts import Forecasts
from titans_domains.serving.service import Service
from titans_domains.timeseries.config import DOMAIN


@pytest.fixture(scope="module")
def forecaster() -> Any:
    return untrained()


def forecasts(predictor: Any) -> Any:
    return lambda service: Forecasts(service, predictor, DOMAIN.presets["tiny"])


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    frame = frame.rename_axis("timestamp").reset_index()
    frame["timestamp"] = frame["timestamp"].astype(str)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_a_forecast_is_what_the_predictor_says(forecaster: Any) -> None:
    wide = table()
    long = wide.stack().rename_axis(["timestamp", "item_id"]).rename("target").reset_index()
    long["timestamp"] = long["timestamp"].astype(str)
    wanted = forecaster.forecast(wide, quantiles=[0.2, 0.5])

    async def test(asked: Asked) -> None:
        for rows in (rows_of(wide), long.to_dict("records")):
            body = {"rows": rows, "quantiles": [0.2, 0.5], "model": "tiny"}
            done = await asked.client.post("/v1/forecast", json=body)
            assert done.status_code == 200, done.text
            content = done.json()
            assert (content["object"], content["model"]) == ("forecast", "tiny")
            assert content["prediction_length"] == HORIZON
            found = pd.DataFrame(content["rows"])
            assert list(found.columns) == ["item_id", "timestamp", "mean", "0.2", "0.5"]
            assert found["item_id"].tolist() == wanted["item_id"].tolist()
            assert pd.to_datetime(found["timestamp"]).tolist() == wanted["timestamp"].tolist()
            numbers = ["mean", "0.2", "0.5"]
            assert np.array_equal(found[numbers].to_numpy(), wanted[numbers].to_numpy())

    run(forecasts(forecaster), test)


BAD_TABLES: list[tuple[dict[str, Any], str]] = [
    ({}, "rows is missing"),
    ({"rows": []}, "rows list must have at least 1 item"),
    ({"rows": [3]}, "rows.0 must be a valid dictionary: got 3"),
    ({"rows": [{}]}, "has no rows"),
    ({"rows": [{"timestamp": "2024-01-01", "a": 1.0}]}, "No frequency can be inferred"),
    ({"rows": [{"timestamp": 3, "a": 1.0}] * 3}, "must have stamps such as"),
    ({"rows": [{"timestamp": "soon", "a": 1.0}]}, "must hold a stamp such as"),
    ({"rows": rows_of(table()[["s0"]])[::-1]}, "comes before the row above it"),
    ({"rows": [{**row, "s0": "x"} for row in rows_of(table())]}, "must hold a finite number"),
    ({"rows": [{**row, "s0": [1]} for row in rows_of(table())]}, "must hold a finite number"),
    (
        {"rows": [{**row, "target": 1} for row in rows_of(table())]},
        "reads no 's0' in it: leave that away",
    ),
    (
        {"rows": [{**row, "item_id": [1], "target": 1.0} for row in rows_of(table())]},
        "rows.0.item_id",
    ),
    ({"rows": [{**row, "s0": 10**400} for row in rows_of(table())]}, "one that is too large"),
    ({"rows": rows_of(table()), "quantiles": [2]}, "between 0 and 1"),
    ({"rows": rows_of(table()), "quantiles": ["0.5"]}, "quantiles.0 must be a valid number"),
    ({"rows": rows_of(table()), "horizon": 3}, "horizon is not known"),
]


def test_tables_that_cannot_be_forecast_are_refused(forecaster: Any) -> None:
    async def test(asked: Asked) -> None:
        for body, sentence in BAD_TABLES:
            assert_refused(await asked.client.post("/v1/forecast", json=body), 400, sentence)
        done = await asked.client.post("/v1/completions", json={"prompt": "x"})
        assert_refused(done, 404, "There is no /v1/completions here")
        assert asked.service.at_work == 0

    run(forecasts(forecaster), test)


def test_sequences_are_classified() -> None:
    model = ByPosition(classes=("coding", "other"))
    sequences = ["ACGTAC", "ggggNN", "UUURAA"]
    wanted = model.predict_proba(["ACGTAC", "GGGGNN", "TTTNAA"])

    async def test(asked: Asked) -> None:
        done = await asked.client.post("/v1/classify", json={"sequences": sequences})
        content = done.json()
        assert content["classes"] == ["coding", "other"]
        assert content["multilabel"] is False
        for index, (found, chances) in enumerate(zip(content["data"], wanted, strict=True)):
            assert found["index"] == index
            assert list(found["probabilities"].values()) == chances.tolist()
            assert found["prediction"] == content["classes"][int(chances.argmax())]
        assert [found["ambiguous"] for found in content["data"]] == [0, 0, 1]
        for body, sentence in (
            ({"sequences": []}, "sequences list must have at least 1 item"),
            ({"sequences": [""]}, "sequences.0 string must have at least 1 character"),
            ({"sequences": ["ACGT", 3]}, "sequences.1 must be a valid string: got 3"),
            ({"sequences": ["ACGT", "MKV!"]}, "sequences.1, position 4: '!' is no base"),
            ({"sequences": ["NNN"]}, "sequences.0 must hold a known base"),
            ({"sequences": "ACGT"}, "sequences must be a valid list"),
            ({}, "sequences is missing"),
        ):
            assert_refused(await asked.client.post("/v1/classify", json=body), 400, sentence)

    run(lambda service: Classes(service, model), test)


def test_several_labels_are_said() -> None:
    model: Any = ByLetter()
    model.tokenizer_ = ByPosition()

    async def test(asked: Asked) -> None:
        done = await asked.client.post("/v1/classify", json={"sequences": ["AAAC", "CCCC", "GT"]})
        assert done.json()["multilabel"] is True
        assert [found["prediction"] for found in done.json()["data"]] == ["a", "c", "none"]

    run(lambda service: Classes(service, model), test)


class Waiting(ByPosition):
    """Answers when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop, self.go = loop, asyncio.Event()

    def predict_proba(self, sequences: Any) -> Any:
        asyncio.run_coroutine_threadsafe(self.go.wait(), self.loop).result(30)
        return super().predict_proba(sequences)


def test_requests_wait_their_turn_and_not_too_many_of_them() -> None:
    async def test(asked: Asked) -> None:
        model = asked.backend.classifier = Waiting(asyncio.get_running_loop())
        body = {"sequences": ["ACGT"]}
        asking = [
            asyncio.ensure_future(asked.client.post("/v1/classify", json=body)) for _ in range(3)
        ]
        while asked.service.at_work < 3 or not asked.backend.queue.running:
            await asyncio.sleep(0.01)
        assert_refused(await asked.client.post("/v1/classify", json=body), 429, "busy with 3")
        metrics = (await asked.client.get("/metrics")).text
        assert "titans_active 1\n" in metrics
        assert "titans_queued 2\n" in metrics
        model.go.set()
        assert [(await task).status_code for task in asking] == [200] * 3
        assert model.calls == 3

    run(lambda service: Classes(service, ByPosition()), test, concurrency=1, queue=2)


def test_a_model_that_fails_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ByPosition):
        def predict_proba(self, sequences: Any) -> Any:
            raise ArithmeticError("inside")

    async def test(asked: Asked) -> None:
        done = await asked.client.post("/v1/classify", json={"sequences": ["ACGT"]})
        assert_refused(done, 500, "The model could not answer")
        assert "inside" not in done.text
        assert "ArithmeticError: inside" in caplog.text

    def make(service: Service) -> Classes:
        return Classes(service, Broken())

    run(make, test)
