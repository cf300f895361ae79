"""The kernels' benchmark: no time of what is wrong, and no measurement without a place to write it."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from titans_kernels import available_backends
from titans_kernels.memory_update import triton_update

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """By its file: a folder of the repository has the name of one of them."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("kernels", monkeypatch)


def test_all_that_is_timed_is_compared(bench: ModuleType) -> None:
    shape = bench.Shape(width=8, chunk=8)
    errors = bench.check(shape, "cpu")
    assert errors.keys() == {"auto", "chunked", "one token at a time"}
    assert all(0 < found["torch.float64"] < 1e-10 for found in errors.values())
    timed = bench.rows_of(replace(shape, batch=1, time=9, heads=1), "cpu", True)
    assert {name for name in timed if name.startswith("memory_update")} == {
        "memory_update", "memory_update, chunked",
    }  # fmt: skip


class Wrong(torch.autograd.Function):
    """The same values, and another gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 1.01


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("what", ["output", "state", "gradient", "not a number"])
def test_what_is_wrong_is_not_timed(
    what: str, backend: str, bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any, **given: Any) -> Any:
        changed = given["backend"] == backend
        if changed and what == "gradient":
            given["forget"] = Wrong.apply(given["forget"])
        y, state = right(*args, **given)
        if changed and what == "state":
            state = state._replace(surprise=tuple(1.01 * w for w in state.surprise))
        if changed and what in ("output", "not a number"):
            y = y * (1.01 if what == "output" else torch.nan)
        return y, state

    right = bench.memory_update
    monkeypatch.setattr(bench, "memory_update", wrong)
    with pytest.raises(AssertionError, match=backend):
        bench.check(bench.Shape(width=8, chunk=8), "cpu")


@pytest.mark.skipif(available_backends()["native"] is not None, reason="no C compiler was found")
def test_a_wrong_token_is_not_timed(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from titans_core import memory

    def wrong(*args: Any, **given: Any) -> Any:
        y, tail, state = right(*args, **given)
        return 1.01 * y, tail, state

    right = memory.layer_token
    monkeypatch.setattr(memory, "layer_token", wrong)
    with pytest.raises(AssertionError, match="one token at a time"):
        bench.check(bench.Shape(width=8, chunk=8), "cpu")


def test_a_folder_that_is_not_there_is_made_before_anything_is_measured(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "not" / "there"

    def measure(*_: Any) -> dict[str, Any]:
        assert out.is_dir()
        return {}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "table", lambda _: "")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    known = {"titans-pytorch": "0.5.3", "triton": "3.7.1"}

    def version(name: str) -> str:
        if name not in known:
            raise bench.importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(bench.importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--chunks", "16", "--out", str(out)])
    bench.main()
    results = json.loads((out / "kernels-cpu.json").read_text())
    assert results["versions"] == known


@pytest.mark.skipif(
    triton_update.missing() == "triton is not installed", reason="triton is not installed"
)
def test_compiling_makes_its_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, out = script("compile_kernels", monkeypatch), tmp_path / "not" / "there"

    def sweep(*_: Any) -> list[dict[str, Any]]:
        assert out.is_dir()
        return []

    monkeypatch.setattr(module, "sweep", sweep)
    monkeypatch.setattr(sys, "argv", ["compile_kernels.py", "--out", str(out)])
    module.main()
    assert (out / "kernels-sm90.json").is_file()
