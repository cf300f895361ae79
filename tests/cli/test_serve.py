"""`titans serve` as a process: it listens, answers, and stops so that nothing is lost."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from console import Titans, assert_refused

from titans_core import MemoryStore
from titans_domains.language.task import load_run
from titans_domains.serving.sessions import name_of

GREEDY = {"temperature": 0, "max_tokens": 5}


class Served:
    """A server of the run in the working folder."""

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        script = Path(sysconfig.get_path("scripts"), "titans")
        self.process = subprocess.Popen(
            [str(script), "serve", "run", "--port", "0", *args],
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.process.communicate()
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def complete(self, prompt: str, **body: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": prompt, **body})

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit code and what it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


Serve = Callable[..., Served]


@pytest.fixture
def serve(here: Path) -> Iterator[Serve]:
    running: list[Served] = []

    def start(*args: str, **env: str) -> Served:
        running.append(Served(here, *args, **env))
        return running[-1]

    yield start
    for served in running:
        served.end()


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def test_a_server_that_is_stopped_answers_first_and_keeps_its_sessions(serve: Serve) -> None:
    first = serve("--sessions", "kept", "--name", "mine")
    assert first.client.get("/healthz").json() == {"status": "ok"}
    for name in ("a", "b"):
        assert first.client.post("/v1/sessions", json={"id": name}).status_code == 201
    assert first.complete("The memory", **GREEDY, session="a", model="mine").status_code == 200
    about = first.client.get("/v1/sessions/a").json()
    assert about["positions"] == 1 + 10 + 5
    body = {"max_tokens": 300, "temperature": 0, "session": "b"}
    thread, found = in_background(lambda: first.complete("x", **body))
    while not first.client.get("/v1/sessions/b").json()["in_use"]:
        time.sleep(0.02)
    first.process.send_signal(signal.SIGTERM)
    while first.client.get("/healthz").status_code != 503:
        time.sleep(0.02)
    refused = first.complete("x")
    assert refused.status_code == 503
    assert "The service is stopping" in refused.json()["error"]["message"]
    thread.join(60)
    assert found[0].json()["usage"]["completion_tokens"] == 300
    _, err = first.process.communicate(timeout=60)
    assert (first.process.returncode, err) == (0, "")

    again = serve("--sessions", "kept")
    assert again.client.get("/v1/sessions/a").json() == about
    assert again.client.get("/v1/sessions/b").json()["positions"] == 1 + 1 + 300
    assert again.complete("x", model="run", **GREEDY, session="a").status_code == 200
    assert again.stop(signal.SIGINT) == (0, "")


def test_what_runs_too_long_is_ended_and_its_session_stays(here: Path, serve: Serve) -> None:
    served = serve("--sessions", "kept", "--grace", "0.2", "--max-tokens", "1000000000")
    served.client.post("/v1/sessions", json={"id": "a"})
    served.complete("before", **GREEDY, session="a")
    before = served.client.get("/v1/sessions/a").json()
    body = {"max_tokens": 10**9, "temperature": 0, "session": "a", "stream": True}
    thread, found = in_background(lambda: served.complete("x", **body))
    while not served.client.get("/v1/sessions/a").json()["in_use"]:
        time.sleep(0.02)
    time.sleep(0.2)
    assert served.stop() == (0, "")
    thread.join(60)
    last = found[0].text.removesuffix("\n\n").rpartition("data: ")[2]
    assert json.loads(last)["error"]["code"] == "stopping"
    assert "[DONE]" not in found[0].text
    model, _, _ = load_run(here / "run", torch.device("cpu"))
    store = MemoryStore(model.backbone, here / "kept")
    assert store.about(name_of("", "a")).sha256 == before["sha256"]
    store.close()


def test_no_further_signal_ends_the_writing_of_sessions(here: Path, serve: Serve) -> None:
    (here / "slow").mkdir()
    # What every Python reads first: a disk that takes its time.
    (here / "slow" / "sitecustomize.py").write_text(
        "import os, time\nfsync = os.fsync\n"
        "os.fsync = lambda file: (time.sleep(0.03), fsync(file))[1]\n"
    )
    served = serve("--sessions", "kept", PYTHONPATH=str(here / "slow"))
    for number in range(20):
        served.client.post("/v1/sessions", json={"id": f"s{number}"})
    served.process.send_signal(signal.SIGTERM)
    while not list((here / "kept").glob("*.memory")):
        time.sleep(0.005)
    served.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert len(list((here / "kept").glob("*.memory"))) < 20
    assert served.stop() == (0, "")
    assert len(list((here / "kept").glob("*.memory"))) == 20


def test_openais_client_works(serve: Serve) -> None:
    openai = pytest.importorskip("openai")
    served = serve(TITANS_API_KEY="sesame")
    url = f"{served.url}/v1"
    with openai.OpenAI(base_url=url, api_key="sesame", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["run"]
        asked = {"model": "run", "prompt": "The memory", "max_tokens": 20, "seed": 1}
        done = client.completions.create(**asked)
        assert done.usage.completion_tokens == 20
        chunks = list(client.completions.create(**asked, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == done.choices[0].text
        assert chunks[-1].choices[0].finish_reason == "length"
        client.post("/sessions", body={"id": "a"}, cast_to=object)
        read = 1
        for _ in range(2):
            used = client.completions.create(**asked, extra_body={"session": "a"}).usage
            read += used.total_tokens
        assert client.get("/sessions/a", cast_to=object)["positions"] == read > 30
        for kind, changes in (
            (openai.BadRequestError, {"n": 2}),
            (openai.NotFoundError, {"model": "gpt"}),
            (openai.NotFoundError, {"extra_body": {"session": "b"}}),
        ):
            with pytest.raises(kind) as caught:
                client.completions.create(**{**asked, **changes})
            assert caught.value.body["message"].endswith(".")
    with (
        openai.OpenAI(base_url=url, api_key="open", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"),
    ):
        client.models.list()
    assert served.stop() == (0, "")


def test_what_cannot_be_served_is_said(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(titans("serve", "nowhere"), "There is no run folder 'nowhere'")
    (here / "empty").mkdir()
    assert_refused(titans("serve", "empty"), "empty is no run of titans")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = titans("serve", "run", "--port", port)
        assert_refused(done, f"127.0.0.1, port {port}, cannot be listened at: Address already")
    (here / "keys").write_text("")
    done = titans("serve", "run", "--port", 0, "--api-key-file", "keys")
    assert_refused(done, "keys holds no key")
    (here / "file").write_text("")
    done = titans("serve", "run", "--port", 0, "--sessions", "file")
    assert_refused(done, "file")
    config = here / "run/config.json"
    config.write_text(config.read_text().replace('"language"', '"music"'))
    assert_refused(titans("serve", "run", "--port", 0), "'music', which cannot be served")
    done = titans("serve", "run", "--port", 0, "--durable")
    assert_refused(done, "only text has sessions")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "uvicorn" else find(name)
    )
    monkeypatch.setattr("titans_cli.serve.find_spec", importlib.util.find_spec)
    assert_refused(
        titans("serve", "run"), "titans serve needs uvicorn: pip install 'titans-toolkit[serve]'"
    )
