"""The service over HTTP: answers, sessions, and what is refused without a trace."""

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from served import AT, BYTES, Asked, assert_refused, events, language, run
from tiny_language import tiny_model

from titans_core.memory_store import MemoryStore
from titans_core.sessions import state_hash
from titans_domains.language.generate import generate, read
from titans_domains.serving.errors import stopping
from titans_domains.serving.metrics import Metrics
from titans_domains.serving.settings import ServeConfig, read_keys

GREEDY = {"temperature": 0, "max_tokens": 12}


def continued(asked: Asked, prompt: str, state: Any = None, **settings: Any) -> str:
    """What the model says without a service."""
    options = {"max_tokens": 12, "temperature": 0, "top_p": 1.0, **settings}
    pieces = generate(asked.model, BYTES, prompt.encode(), state, **options)
    return b"".join(pieces).decode(errors="replace")


def test_a_completion_is_what_the_model_says() -> None:
    async def test(asked: Asked) -> None:
        done = await asked.complete("The memory", **GREEDY, model="tiny", user="me", n=1)
        content, text = done.json(), continued(asked, "The memory")
        assert content["choices"] == [
            {"text": text, "index": 0, "logprobs": None, "finish_reason": "length"}
        ]
        assert content["usage"] == {
            "prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22,
        }  # fmt: skip
        assert (content["object"], content["model"]) == ("text_completion", "tiny")
        drawn = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "max_tokens": 30}
        assert await asked.text("x", **drawn) == continued(asked, "x", **drawn)
        # Without a seed, each time another.
        assert len({await asked.text("x", max_tokens=30) for _ in range(4)}) == 4
        assert await asked.text("", max_tokens=3, temperature=0) == continued(
            asked, "", max_tokens=3
        )

    run(language(), test)


def test_a_stream_holds_the_same_text() -> None:
    async def test(asked: Asked) -> None:
        drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 40}
        text = await asked.text("x", **drawn)
        *chunks, counted, last = events(
            await asked.complete("x", **drawn, stream=True, stream_options={"include_usage": True})
        )
        assert last == "[DONE]"
        assert counted["choices"] == []
        assert counted["usage"]["completion_tokens"] == 40
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert len(chunks) > 5
        assert "usage" not in events(await asked.complete("x", stream=True))[0]

    run(language(), test)


def test_stop_strings_end_the_text() -> None:
    async def test(asked: Asked) -> None:
        whole = await asked.text("x", max_tokens=60, seed=4)
        stop = whole[20:22]
        for body in ({"stop": stop}, {"stop": ["\0\0", stop]}, {"stop": stop, "stream": True}):
            done = await asked.complete("x", max_tokens=60, seed=4, **body)
            choices = (
                [c["choices"][0] for c in events(done)[:-1]]
                if "stream" in body
                else done.json()["choices"]
            )
            assert "".join(c["text"] for c in choices) == whole[: whole.index(stop)]
            assert choices[-1]["finish_reason"] == "stop"

    run(language(), test)


@pytest.mark.parametrize("mixer", ["lmm", "mag"])
def test_a_session_goes_on_from_request_to_request(mixer: str, tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        assert (await asked.session("a"))["positions"] == 0
        first = await asked.text("What was read", **GREEDY, session="a")
        assert first == continued(asked, "What was read")
        # The prompt and all that was made, from the start of the document on.
        _, state = read(asked.model, BYTES, f"What was read{first}".encode())
        about = await asked.session("a")
        assert about["positions"] == 1 + 13 + 12
        second = await asked.text(" and then", **GREEDY, session="a")
        assert second == continued(asked, " and then", state)
        assert second != continued(asked, " and then")
        # Reading alone, in pieces.
        await asked.create("b")
        for piece in ("What was ", "read", first):
            assert await asked.text(piece, max_tokens=0, session="b") == ""
        assert await asked.text(" and then", **GREEDY, session="b") == second
        assert_refused(await asked.complete("", session="a"), 400, "prompt is empty")
        assert (await asked.session("a"))["positions"] == 26 + 9 + 12

    run(language(tmp_path, mixer=mixer, in_process=1), test)


def test_sessions_do_not_mix_in_a_crowd(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        names = [f"s{n}" for n in range(12)]
        for name in names:
            await asked.create(name)
        told: dict[str, list[str]] = {name: [] for name in names}

        async def talk(name: str) -> None:
            for turn in range(3):
                prompt = f"{name} says {turn}."
                told[name] += [prompt, await asked.text(prompt, **GREEDY, session=name)]

        await asyncio.gather(*map(talk, names))
        for name in names:
            state = None
            for prompt, answer in zip(told[name][::2], told[name][1::2], strict=True):
                assert answer == continued(asked, prompt, state)
                _, state = read(asked.model, BYTES, (prompt + answer).encode(), state)

    run(language(tmp_path, in_process=3), test)


def test_a_session_can_be_deleted_and_that_is_shown(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        fresh = (await asked.session("a"))["sha256"]
        before = await asked.text("A secret", **GREEDY, session="a")
        shown = (await asked.session("a"))["sha256"]
        assert shown != fresh
        receipt = (await asked.client.delete("/v1/sessions/a")).json()
        assert receipt == {
            "id": "a", "object": "session.deleted", "deleted": True, "positions": 21,
            "sha256": fresh, "fresh_sha256": fresh, "deleted_sha256": shown,
        }  # fmt: skip
        assert not list(tmp_path.glob("*.memory"))
        assert fresh == state_hash(asked.model.backbone.fresh_state(1))
        for refused in (
            await asked.complete(session="a"),
            await asked.client.delete("/v1/sessions/a"),
            await asked.client.get("/v1/sessions/a"),
        ):
            assert_refused(refused, 404, "There is no session 'a': create it")
        # Its next answer is a fresh one's.
        await asked.create("a")
        assert await asked.text("A secret", **GREEDY, session="a") == before

    run(language(tmp_path, durable=True), test)


def test_a_frozen_session_is_read_by_many_and_not_written() -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.text("A book", max_tokens=0, session="a")
        frozen = (await asked.client.post("/v1/sessions/a/freeze")).json()
        assert frozen["frozen"] is True
        texts = await asyncio.gather(
            *(asked.text(" begins", **GREEDY, session="a") for _ in range(5))
        )
        assert len(set(texts)) == 1
        assert await asked.session("a") == frozen
        thawed = (await asked.client.post("/v1/sessions/a/thaw")).json()
        assert thawed == {**frozen, "frozen": False}
        await asked.text(" begins", **GREEDY, session="a")
        assert (await asked.session("a"))["positions"] > thawed["positions"]

    run(language(), test)


def test_a_session_is_used_by_one_request_at_a_time() -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        first = asyncio.ensure_future(
            asked.complete("x", max_tokens=4000, temperature=0, session="a")
        )
        while not (await asked.session("a"))["in_use"]:
            await asyncio.sleep(0.01)
        for second in (
            await asked.complete("x", session="a"),
            await asked.client.delete("/v1/sessions/a"),
            await asked.client.post("/v1/sessions/a/freeze"),
        ):
            assert_refused(second, 409, "The session 'a' is in use by another request")
        exists = await asked.client.post("/v1/sessions", json={"id": "a"})
        assert_refused(exists, 409, "'a' already")
        assert exists.headers["x-should-retry"] == "false"
        first.cancel()

    run(language(), test)


async def left_alone(
    asked: Asked, body: dict[str, Any], after: int, *, last: bool = False
) -> list[dict[str, Any]]:
    """A request whose client leaves when it has had so many messages; what it had."""
    had: list[dict[str, Any]] = []
    left = asyncio.Event()
    sent = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> dict[str, Any]:
        if (message := next(sent, None)) is not None:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        had.append(message)
        if len(had) == after:
            # A slow one: all of the answer is made before it leaves.
            while last and asked.backend.engine.active:
                await asyncio.sleep(0.01)
            left.set()
            await asyncio.sleep(0.01)

    if not after:
        asyncio.get_running_loop().call_later(0.2, left.set)
    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": AT, "raw_path": AT.encode(), "headers": headers,
        "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    await asked.app(scope, receive, send)
    return had


@pytest.mark.parametrize("after", [0, 3])
def test_a_client_that_leaves_leaves_the_memory_as_it_was(after: int, tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.text("before", **GREEDY, session="a")
        before = await asked.session("a")
        body = {
            "prompt": "x",
            "max_tokens": 10**6,
            "temperature": 0,
            "session": "a",
            "stream": after > 0,
        }
        had = await left_alone(asked, body, after)
        assert len(had) >= after
        assert not any(b"[DONE]" in message.get("body", b"") for message in had)
        assert await asked.session("a") == before
        while asked.backend.engine.active:
            await asyncio.sleep(0.01)
        assert asked.service.at_work == 0
        assert asked.backend.inboxes == {}
        await asked.text("after", session="a")

    run(language(tmp_path, durable=True), test, max_tokens=10**6)


def test_a_client_that_leaves_behind_the_engine_leaves_the_memory_too(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        before = await asked.session("a")
        body = {"prompt": "x", "max_tokens": 40, "temperature": 0, "session": "a", "stream": True}
        had = await left_alone(asked, body, 3, last=True)
        assert not any(b"[DONE]" in message.get("body", b"") for message in had)
        assert asked.backend.engine.tokens_made == 40
        assert await asked.session("a") == before
        await asked.text("after", session="a")

    run(language(tmp_path, durable=True), test)


def test_a_session_is_not_forgotten_under_those_who_read_it() -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.client.post("/v1/sessions/a/freeze")
        reading = asyncio.ensure_future(
            asked.complete("x", max_tokens=4000, temperature=0, session="a")
        )
        while not (await asked.session("a"))["in_use"]:
            await asyncio.sleep(0.01)
        refused = await asked.client.delete("/v1/sessions/a")
        assert_refused(refused, 409, "The session 'a' is in use by another request")
        assert "x-should-retry" not in refused.headers
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        while (await asked.session("a"))["in_use"]:
            await asyncio.sleep(0.01)
        assert (await asked.client.delete("/v1/sessions/a")).status_code == 200

    run(language(), test)


def test_too_few_descriptors_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.create("b")
        with monkeypatch.context() as patch:

            def full(*_: Any) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

            patch.setattr(Path, "read_bytes", full)
            done = await asked.complete("x", session="a")
            assert_refused(done, 500, "The session 'a' could not be read or written")
        await asked.text("x", session="a")

    run(language(tmp_path, in_process=1), test)


BAD_BODIES = {
    b"{": (400, "The body is no JSON"),
    b"": (400, "The body must be a JSON object"),
    b"[]": (400, "The body must be a JSON object"),
    b'"text"': (400, "The body must be a JSON object"),
    b"\xff": (400, "The body is no JSON"),
    b"[" * 100_000: (400, "The body is no JSON"),
    b"{}": (400, "prompt is missing: give it"),
    b'{"prompt": 3}': (400, "prompt must be a valid string: got 3"),
    b'{"prompt": ["a"]}': (400, "prompt must be a valid string"),
    b'{"prompt": "\\ud800"}': (400, "prompt must be text: letter 0 is half of one"),
    b'{"prompt": "a", "max_tokens": -1}': (400, "max_tokens must be greater than or equal to 0"),
    b'{"prompt": "a", "max_tokens": 1.5}': (400, "max_tokens must be a valid integer"),
    b'{"prompt": "a", "max_tokens": true}': (400, "max_tokens must be a valid integer: got True"),
    b'{"prompt": "a", "max_tokens": "3"}': (400, "max_tokens must be a valid integer: got '3'"),
    b'{"prompt": "a", "max_tokens": 5000}': (400, "max_tokens must be at most 4096: got 5000"),
    b'{"prompt": "a", "max_tokens": 1e400}': (400, "max_tokens must be a"),
    b'{"prompt": "a", "temperature": NaN}': (400, "temperature must be a finite number"),
    b'{"prompt": "a", "temperature": 3}': (400, "temperature must be less than or equal to 2"),
    b'{"prompt": "a", "top_p": 0}': (400, "top_p must be greater than 0: got 0"),
    b'{"prompt": "a", "seed": -1}': (400, "seed must be greater than or equal to 0"),
    b'{"prompt": "a", "seed": 99999999999999999999}': (400, "seed must be"),
    b'{"prompt": "a", "stop": ""}': (400, "stop must be a string of 1 to 256 letters"),
    b'{"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}': (400, "stop must be a string of 1"),
    b'{"prompt": "a", "echo": true}': (400, "echo is not supported: leave it away"),
    b'{"prompt": "a", "n": 2}': (400, "n is not supported: leave it away, or give 1"),
    b'{"prompt": "a", "logprobs": 5}': (400, "logprobs is not supported"),
    b'{"prompt": "a", "best_of": 2}': (400, "best_of is not supported"),
    b'{"prompt": "a", "tools": []}': (400, "tools is not known: leave it away"),
    b'{"prompt": "a", "x\\n\\ny": 1}': (400, r"'x\n\ny' is not known: leave it away"),
    b'{"prompt": "a", "' + b"k" * 1000 + b'": 1}': (400, "kkk... is not known: leave it away"),
    b'{"prompt": "a", "\\ud800": 1}': (400, "A name in the body is half a letter"),
    b'{"prompt": "a", "model": "gpt"}': (404, "There is no model 'gpt' here"),
    b'{"prompt": "a", "session": ""}': (400, "session must be 1 to 128 letters"),
    b'{"prompt": "a", "session": "../a"}': (400, "session must be 1 to 128 letters"),
    b'{"prompt": "a", "session": "nobody"}': (404, "There is no session 'nobody'"),
    b'{"prompt": "' + b"a" * 200 + b'"}': (400, "prompt must have at most 100 tokens: got 200"),
    b'{"prompt": "' + b"a" * 300_000 + b'"}': (413, "at most 200000 bytes"),
}


def test_what_cannot_be_answered_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.text("before", **GREEDY, session="a")
        before = await asked.session("a")
        headers = {"content-type": "application/json"}
        for body, (status, sentence) in BAD_BODIES.items():
            for more in (b"", b', "session": "a"}', b', "session": "a", "stream": true}'):
                if more and (not body.endswith(b"}") or b"session" in body or body == b"{}"):
                    continue
                content = body[:-1] + more if more else body
                done = await asked.client.post(AT, content=content, headers=headers)
                assert_refused(done, status, sentence)
        done = await asked.client.post(AT, content=b'{"prompt": "a"}')
        assert_refused(done, 400, "sent with Content-Type: application/json")
        assert_refused(await asked.client.get(AT), 405, "GET is not for /v1/completions")
        assert_refused(await asked.client.get("/v1/chat"), 404, "There is no /v1/chat here")
        assert_refused(await asked.client.get("/v1/models/x"), 404, "There is no model 'x' here")
        assert await asked.session("a") == before
        assert asked.service.at_work == 0
        assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {
            "model.json", *(p.name for p in tmp_path.glob("*.memory"))
        }  # fmt: skip

    run(language(tmp_path), test, max_body=200_000, max_prompt=100)


def test_a_body_without_an_end_is_cut_off() -> None:
    async def test(asked: Asked) -> None:
        async def endless() -> Any:
            while True:
                yield b"a" * 1000

        assert_refused(await asked.client.post(AT, content=endless()), 413, "at most 5000 bytes")

        async def slow() -> Any:
            yield b"{"
            await asyncio.sleep(5)

        assert_refused(await asked.client.post(AT, content=slow()), 408, "did not come in time")

    run(language(), test, max_body=5000, body_seconds=0.05)


def test_as_many_bodies_as_there_is_room_for_are_received() -> None:
    async def test(asked: Asked) -> None:
        go = asyncio.Event()

        async def slow() -> Any:
            yield b'{"prompt":'
            await go.wait()
            yield b'"x"}'

        headers = {"content-type": "application/json"}

        def ask() -> Any:
            return asked.client.post(AT, content=slow(), headers=headers)

        asking = [asyncio.ensure_future(ask()) for _ in range(3)]
        while asked.service.being_sent < 3:
            await asyncio.sleep(0.01)
        assert_refused(await ask(), 429, "busy with 3 requests")
        assert (await asked.client.get("/healthz")).status_code == 200
        assert (await asked.client.get("/metrics")).status_code == 200
        go.set()
        assert [(await task).status_code for task in asking] == [200] * 3
        assert asked.service.being_sent == 0

    run(language(), test, concurrency=2, queue=1)


def test_a_page_of_another_site_is_refused_where_no_key_keeps_it_out() -> None:
    async def create(asked: Asked, **headers: str) -> httpx.Response:
        return await asked.client.post("/v1/sessions", headers=headers)

    async def test(asked: Asked) -> None:
        refused = await create(asked, host="127.0.0.1:8000", origin="http://evil.example")
        assert_refused(refused, 403, "A page of another site may not ask")
        for host in ("evil.example", "[", ""):
            assert_refused(await create(asked, host=host), 403, "is asked at 127.0.0.1")
        for origin in ("null", "http://[", "http://127.0.0.1:8001"):
            refused = await create(asked, host="127.0.0.1:8000", origin=origin)
            assert_refused(refused, 403, "A page of another site may not ask")
        healthy = await asked.client.get("/healthz", headers={"host": "evil.example"})
        assert healthy.status_code == 200
        for host in ("127.0.0.1:8000", "localhost", "[::1]:80"):
            assert (await create(asked, host=host)).status_code == 201
            assert (await create(asked, host=host, origin=f"http://{host}")).status_code == 201
        done = await asked.client.post("/v1/sessions/", headers={"host": "localhost"})
        assert_refused(done, 404, "There is no /v1/sessions/ here")

    async def with_key(asked: Asked) -> None:
        headers = {"authorization": "Bearer k", "origin": "http://mine", "host": "other"}
        assert (await create(asked, **headers)).status_code == 201

    hosts = ("127.0.0.1", "::1", "localhost")
    run(language(), test, hosts=hosts)
    run(language(), with_key, hosts=hosts, keys=(("k", ""),))


def test_as_many_as_there_is_room_for_are_let_in() -> None:
    async def test(asked: Asked) -> None:
        running = [
            asyncio.ensure_future(asked.complete("x", max_tokens=4000, temperature=0))
            for _ in range(3)
        ]
        while asked.backend.engine.active < 2 or not asked.backend.engine.waiting:
            await asyncio.sleep(0.01)
        refused = await asked.complete("x")
        assert_refused(refused, 429, "busy with 3 requests: ask again in a second")
        assert refused.headers["retry-after"] == "1"
        metrics = (await asked.client.get("/metrics")).text
        assert "titans_active 2\n" in metrics
        assert "titans_queued 1\n" in metrics
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        while asked.service.at_work:
            await asyncio.sleep(0.01)
        await asked.text("x")

    run(language(), test, concurrency=2, queue=1)


def test_a_key_opens_its_owners_sessions_alone() -> None:
    keys = (("first", ""), ("second", "alice"), ("third", "alice"), ("fourth", "bob"))

    async def test(asked: Asked) -> None:
        for header in (None, "", "first", "Bearer", "Bearer wrong", "Basic first", "Bearer firs"):
            headers = {} if header is None else {"authorization": header}
            for path in (AT, "/v1/models", "/metrics", "/v1/sessions"):
                refused = await asked.client.get(path, headers=headers)
                assert_refused(refused, 401, "The API key is missing or wrong")
                assert refused.headers["www-authenticate"] == "Bearer"
        assert (await asked.client.get("/healthz")).json() == {"status": "ok"}

        async def look(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return (await asked.client.get("/v1/sessions/a", headers=headers)).status_code

        asked.client.headers["authorization"] = "Bearer second"
        await asked.create("a")
        assert [await look(key) for key in ("first", "second", "third", "fourth")] == [
            404, 200, 200, 404,
        ]  # fmt: skip

    run(language(), test, keys=keys)


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TITANS_API_KEY", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("TITANS_API_KEY", "abc")
    assert read_keys(None) == (("abc", ""),)
    path = tmp_path / "keys"
    path.write_text("k1\n\n# alice\n  #bob k3\nalice k2\n")
    assert read_keys(path) == (("k1", ""), ("k2", "alice"))
    path.write_text("ann k1\nbob k1\n")
    with pytest.raises(ValueError, match="holds a key twice: give each owner another"):
        read_keys(path)
    for text in ("a b c", "ä", "k1 #ann"):
        path.write_text(f"k0\n\n{text}\n")
        with pytest.raises(ValueError, match="keys, line 3, must hold an ASCII key, or a name and"):
            read_keys(path)
    for text in ("", "\n", "# a"):
        path.write_text(text)
        with pytest.raises(ValueError, match="keys holds no key: write an ASCII key, or a name"):
            read_keys(path)


def test_a_full_store_and_a_full_disk_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.text("before", **GREEDY, session="a")
        before = await asked.session("a")
        assert_refused(
            await asked.client.post("/v1/sessions", json={"id": "b"}),
            507,
            "no room for the session",
        )
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with monkeypatch.context() as patch:

            def full(*_: Any) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "fsync", full)
            assert_refused(await asked.complete("x", session="a"), 507, "The disk is full")
            *_, failed = events(await asked.complete("x", session="a", stream=True))
            assert failed["error"]["code"] == "disk_full"
        assert await asked.session("a") == before
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
        await asked.text("x", session="a")

    run(language(tmp_path, durable=True, max_sessions=1), test)


def test_a_session_of_another_model_is_refused(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        asked.backend.store.flush()
        [path] = tmp_path.glob("*.memory")
        path.write_bytes(path.read_bytes()[:-1])
        await asked.create("b")
        assert_refused(
            await asked.complete("x", session="a"), 409, "'a' cannot be read, since its file is"
        )
        assert (await asked.client.delete("/v1/sessions/a")).status_code == 200

    run(language(tmp_path, in_process=1), test)
    other = tiny_model(num_layers=1).double()
    with torch.no_grad():
        other.backbone.norm.weight += 1
    with pytest.raises(ValueError, match="holds the sessions of another model"):
        MemoryStore(other.backbone, tmp_path)


def test_sessions_are_forgotten_in_time_though_nobody_asks(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        assert len(list(tmp_path.glob("*.memory"))) == 1
        while list(tmp_path.glob("*.memory")):
            await asyncio.sleep(0.01)
        assert_refused(await asked.complete("x", session="a"), 404, "There is no session 'a'")

    run(language(tmp_path, durable=True, ttl=0.2), test)


def test_what_breaks_a_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        await asked.text("before", **GREEDY, session="a")
        before = await asked.session("a")

        def spoil(_: Any, inputs: Any, outputs: Any) -> Any:
            return outputs[0] * torch.nan, outputs[1]

        handle = asked.model.register_forward_hook(spoil)
        for stream in (False, True):
            done = await asked.complete("x", session="a", stream=stream)
            assert_refused(done, 500, "The model's answer is not finite")
        handle.remove()
        assert await asked.session("a") == before

    run(language(), test)


def test_a_fault_of_ours_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(asked: Asked) -> None:
        def broken() -> None:
            raise KeyError("inside")

        monkeypatch.setattr(asked.backend, "measure", broken)
        assert_refused(await asked.client.get("/metrics"), 500, "Something failed on our side")
        assert "KeyError: 'inside'" in caplog.text

    run(language(), test)


def test_a_stopping_service_takes_nothing_new() -> None:
    async def test(asked: Asked) -> None:
        await asked.create("a")
        running = asyncio.ensure_future(
            asked.complete("x", max_tokens=4000, temperature=0, session="a")
        )
        while not asked.backend.engine.active:
            await asyncio.sleep(0.01)
        asked.service.stopping = True
        refused = await asked.complete("x")
        assert_refused(refused, 503, "The service is stopping")
        assert "retry-after" in refused.headers
        assert_refused(await asked.client.delete("/v1/sessions/a"), 503, "is stopping")
        assert (await asked.client.get("/healthz")).status_code == 503
        asked.backend.engine.stop()
        assert_refused(await running, 503, "The service is stopping")
        asked.service.stopping = False
        about = await asked.session("a")
        assert (about["in_use"], about["positions"]) == (False, 0)
        assert (await asked.client.get("/healthz")).json() == {"status": "failed"}

    run(language(), test)


def test_a_model_without_a_bounded_memory_has_no_sessions() -> None:
    async def test(asked: Asked) -> None:
        assert await asked.text("x", **GREEDY) == continued(asked, "x")
        for refused in (
            await asked.complete("x", session="a"),
            await asked.client.post("/v1/sessions"),
        ):
            assert_refused(refused, 400, "no memory of bounded size")

    run(language(mixer="attention"), test)


def test_models_and_made_up_session_names() -> None:
    async def test(asked: Asked) -> None:
        models = (await asked.client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["tiny"]
        assert (await asked.client.get("/v1/models/tiny")).json() == models[0]
        made = [(await asked.client.post("/v1/sessions")).json()["id"] for _ in range(2)]
        assert made[0] != made[1]
        assert all(len(name) == 37 for name in made)
        await asked.text("x", session=made[0])

    run(language(), test)


def test_metrics_add_up(tmp_path: Path) -> None:
    async def test(asked: Asked) -> None:
        for name in ("a", "b", "c"):
            await asked.create(name)
        await asked.text("abc", **GREEDY)
        await asked.complete("abc", n=2)
        await asked.client.get("/nowhere/in/particular")
        text = (await asked.client.get("/metrics")).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        for name, value in {
            'titans_requests_total{route="/v1/completions",status="200"}': 1,
            'titans_requests_total{route="/v1/completions",status="400"}': 1,
            'titans_requests_total{route="/v1/sessions",status="201"}': 3,
            'titans_requests_total{route="other",status="404"}': 1,
            'titans_request_seconds_count{route="/v1/completions"}': 2,
            'titans_request_seconds_bucket{route="/v1/completions",le="+Inf"}': 2,
            "titans_first_token_seconds_count": 1,
            'titans_tokens_total{kind="prompt"}': 4,
            'titans_tokens_total{kind="completion"}': 12,
            'titans_sessions{where="process"}': 2,
            'titans_sessions{where="disk"}': 1,
            "titans_active": 0,
        }.items():
            assert float(lines[name]) == value, name
        assert "particular" not in text

    run(language(tmp_path, in_process=2), test)


def test_counts_are_shown_to_the_last_digit() -> None:
    metrics = Metrics()
    metrics.set("titans_tokens_total", 12345678, kind="prompt")
    for _ in range(3):
        metrics.observe("titans_request_seconds", 4115226.25)
    text = metrics.text()
    assert 'titans_tokens_total{kind="prompt"} 12345678\n' in text
    assert "titans_request_seconds_sum 12345678.75\n" in text
    assert "titans_request_seconds_count 3\n" in text


def test_a_refusal_keeps_nothing_of_the_request() -> None:
    assert stopping() is not stopping()


def test_limits_are_checked() -> None:
    for name in ("max_body", "max_prompt", "max_tokens", "concurrency"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
            ServeConfig(**{name: 0})
    with pytest.raises(ValueError, match="queue must be 0 or more: got -1"):
        ServeConfig(queue=-1)
    with pytest.raises(ValueError, match="grace must be 0 seconds or more: got nan"):
        ServeConfig(grace=float("nan"))
