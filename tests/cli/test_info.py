"""`titans info`: what is installed and what can run, for the eye and for scripts."""

import json
import os
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from console import Titans

from titans_cli import info as module
from titans_kernels import available_backends

Info = Callable[..., str]


@pytest.fixture
def info(titans: Titans) -> Info:
    def call(*args: str) -> str:
        done = titans("info", *args)
        assert (done.code, done.err) == (0, "")
        return done.out

    return call


def test_json_holds_what_this_machine_has(info: Info) -> None:
    facts: dict[str, Any] = json.loads(info("--json"))
    assert list(facts) == ["versions", "devices", "backends", "domains", "extras"]
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["titans-toolkit"]
    # What only developers need is no part of it, what the toolkit needs is.
    assert {"numpy", "safetensors", "lightning", "typer"} <= facts["versions"].keys()
    assert "pytest" not in facts["versions"]
    assert facts["extras"].keys() >= {"plot", "eval", "serve", "tensorboard", "wandb"}
    assert not {"test", "dev", "docs"} & facts["extras"].keys()
    assert facts["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert facts["domains"]["language"]["summary"].startswith("Language modelling")
    assert facts["domains"]["language"]["provider"].startswith("titans-toolkit ")
    for name, reason in available_backends().items():
        assert facts["backends"][name] == reason
    assert facts["backends"]["reference"] is None
    assert facts["backends"]["chunked"] is None


def test_text_holds_the_same(info: Info) -> None:
    text = info()
    facts = json.loads(info("--json"))
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(facts)
    rows = {line.split()[0]: line for line in lines if line.startswith(" ")}
    assert rows.keys() == {name for section in facts.values() for name in section}
    assert rows["torch"].endswith(f" {torch.__version__}")
    assert rows["chunked"].endswith("  can run here")
    # Columns are aligned over all sections.
    width = max(map(len, rows)) + 4
    assert all(line[width - 1] == " " and line[width] != " " for line in rows.values())


def test_what_is_missing_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, info: Info
) -> None:
    monkeypatch.setattr(module, "installed", lambda name: None if name == "matplotlib" else "1.0")
    monkeypatch.setattr(
        module, "requirements", lambda: [("torch", None), ("matplotlib", "plot"), ("ruff", "dev")]
    )
    facts = json.loads(info("--json"))
    assert facts["extras"] == {"plot": {"matplotlib": None}}
    assert "matplotlib missing: pip install 'titans-toolkit[plot]'" in info()


def test_a_machine_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch, info: Info) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, reason in (
        (None, "the installed torch is a build without CUDA"),
        ("13.0", "torch is built for CUDA 13.0 but sees no GPU"),
    ):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert json.loads(info("--json"))["devices"]["cuda"] == reason
        assert f"none: {reason}" in info()


def test_a_machine_with_gpus_names_each(monkeypatch: pytest.MonkeyPatch, info: Info) -> None:
    class Properties:
        name, total_memory, major, minor = "Big GPU", 80 * 2**30, 9, 0

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    devices = json.loads(info("--json"))["devices"]
    assert list(devices) == ["cpu", "cuda:0", "cuda:1"]
    assert devices["cuda:1"] == {"model": "Big GPU", "memory_gib": 80.0, "capability": "9.0"}
    assert "Big GPU, 80.0 GiB, sm 9.0" in info()


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, info: Info) -> None:
    monkeypatch.setattr(module, "backends", lambda: {"chunked": None, "triton": "no GPU"})
    rows = {line.split()[0]: line for line in info().splitlines()}
    assert rows["triton"].endswith("  cannot run here: no GPU")
    assert rows["chunked"].endswith("  can run here")


@pytest.mark.parametrize(("given", "taken"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_leave_the_machine_to_others_unless_asked(
    info: Info, monkeypatch: pytest.MonkeyPatch, given: str | None, taken: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    info()
    assert os.environ["OMP_WAIT_POLICY"] == taken
