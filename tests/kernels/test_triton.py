"""The Triton backend: in the interpreter, compiled for a GPU that is not there, and on one that is."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_problems import (
    Problem,
    assert_close,
    assert_same_bits,
    convert,
    make_problem,
    named,
    values_and_gradients,
)

from titans_kernels import available_backends
from titans_kernels.memory_update import triton_launch, triton_update

ROOT = Path(__file__).parents[2]
KERNELS = ["walk_forward", "read_forward", "read_backward", "walk_backward", "token"]
NAME = "backend 'triton' cannot take this call"

needs_triton = pytest.mark.skipif(
    triton_update.missing() == "triton is not installed", reason="triton is not installed"
)


def python(*arguments: str, **environment: str) -> str:
    """What a Python process of its own prints, with the folders of this one."""
    path = os.pathsep.join([str(ROOT / name) for name in ("", "kernels", "tests", "benchmarks")])
    plain = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**plain, "PYTHONPATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("the interpreter reads the kernels' source, which --shapes rewrites")
    tests = "tests/kernels/test_triton_interpreted.py"
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, TRITON_INTERPRET="1")
    assert "passed" in said


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter_in_every_setting() -> None:
    tests = "tests/kernels/test_triton_interpreted.py"
    command = ("-m", "pytest", "-q", "-m", "slow", "--timeout", "3000", tests)
    assert "passed" in python(*command, TRITON_INTERPRET="1")


COMPILE = """
import json, sys
import compile_kernels as c
names, widths, chunks, precision, settings = json.loads(sys.argv[1])
all_kernels = c.kernels()
found = [
    c.compiled(all_kernels[name], width, chunk, precision, **settings)
    for name in names for width in widths for chunk in (chunks if name != "token" else [1])
]
print(json.dumps(found))
"""


def assert_compiles(
    names: list[str], widths: list[int], chunks: list[int], precision: str = "tf32", **settings: Any
) -> None:
    asked = json.dumps([names, widths, chunks, precision, settings])
    for found in json.loads(python("-c", COMPILE, asked)):
        assert found["spill stores"] == found["spill loads"] == 0, found
        assert found["fits"], found


@needs_triton
def test_compiles_for_a_gpu_without_spills_in_tf32() -> None:
    assert_compiles(["walk_forward", "token"], [64], [16])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_compiles_for_a_gpu_without_spills_in_tf32(kernel: str) -> None:
    assert_compiles([kernel], [32, 48, 64], [16, 64])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"DEPTH": 1},
    {"LIMIT": 0.5, "HELD": True, "RESETS": True},
    {"GELU": False, "NORM": False, "BASE": False},
], ids=str)  # fmt: skip
def test_every_setting_compiles_for_a_gpu(settings: dict[str, Any]) -> None:
    assert_compiles(KERNELS, [64], [16], **settings)


def test_says_why_it_cannot_run_here() -> None:
    said = available_backends()["triton"]
    assert said == triton_update.missing()
    if not torch.cuda.is_available():
        assert said is not None


@pytest.mark.parametrize(("change", "said"), [
    ({"depth": 3}, "got a memory of 3 layers"),
    ({"inner_steps": 2}, "got inner_steps = 2"),
    ({"channel_forget": True}, "got channel_forget"),
    ({"chunk_size": 128}, "got chunk_size = 128"),
    ({"width": 300, "hidden": 4}, "got heads of width 300"),
    ({"hidden": 33}, "got a hidden width of 33, in 2 slices .* this device runs 1 at once"),
])  # fmt: skip
def test_what_it_does_not_take(
    change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_update, "missing", lambda: None)
    monkeypatch.setattr(triton_update, "interpreted", lambda: True)
    with pytest.raises(ValueError, match=f"{NAME}: {said}.*backend='chunked'"):
        make_problem(**{"time": 2, **change}).run("triton")


@pytest.mark.parametrize(("programs", "shared", "hidden", "said"), [
    (132, 232_448, 4_224, None),
    (132, 232_448, 4_225, "got a hidden width of 4225, in 133 slices"),
    (188, 101_376, 16, "got a device with 99 KiB of shared memory for a program; it takes 227"),
    (60, 0, 16, "got a device with 0 KiB"),
])  # fmt: skip
def test_what_it_takes_on_other_devices(
    programs: int, shared: int, hidden: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_update, "missing", lambda: None)
    monkeypatch.setattr(triton_update, "interpreted", lambda: True)
    monkeypatch.setattr(triton_update, "limits", lambda _: (programs, shared))
    problem = make_problem(time=2, hidden=hidden)
    found = triton_update.refusal(problem.q, problem.initial, problem.rule)
    assert found == said or (said is not None and str(found).startswith(said))
    assert said is None or str(found).endswith(", or take backend='chunked'")
    # A single layer is one slice, however wide.
    one = make_problem(time=2, depth=1, width=16)
    if shared:
        monkeypatch.setattr(triton_update, "limits", lambda _: (1, 232_448))
        assert triton_update.refusal(one.q, one.initial, one.rule) is None


def test_the_limits_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        multi_processor_count, shared_memory_per_block_optin = 132, 232_448

    asked: list[Any] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: asked.append(device) or Properties
    )
    try:
        assert triton_update.limits(torch.device("cuda:3")) == (132, 232_448)
    finally:
        triton_update.limits.cache_clear()
    assert asked == [torch.device("cuda:3")]


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        arg_names = ("first", "q", "SIZE")
        __name__ = "kernel"

        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda **given: events.append((grid, given["SIZE"]))

    @contextlib.contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        events.append(x)
        yield
        events.append("over")

    events: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    q = torch.zeros(2)
    triton_launch.launch(Kernel(), 7, {"q": q, "SIZE": 4, "first": 0, "unasked": None})
    assert events[0] is q
    assert events[1:] == [((7,), 4), "over"]


def test_tensors_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(time=2)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="backend='chunked'"):
            problem.run("triton")
    monkeypatch.setattr(triton_update, "missing", lambda: None)
    with pytest.raises(ValueError, match=f"{NAME}: got tensors on cpu; move them to a CUDA device"):
        problem.run("triton")


def test_nothing_imports_triton_before_it_is_asked_for() -> None:
    python("-c", "import sys, titans_kernels; assert 'triton' not in sys.modules")


def on_gpu(problem: Problem) -> Problem:
    return convert(problem, lambda x: x.cuda())


def assert_agrees_on_gpu(problem: Problem, tolerance: float) -> None:
    """With the reference in float64, on the CPU."""
    wide = convert(problem, lambda x: x.double() if x.is_floating_point() else x)
    wanted = values_and_gradients(wide, "reference")
    found = values_and_gradients(on_gpu(problem), "triton")
    assert_close({n: x.cpu().to(wanted[n].dtype) for n, x in found.items()}, wanted, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("chunk_size", [4, 16, 64])
@pytest.mark.parametrize("max_surprise", [None, 0.5])
def test_on_a_gpu(depth: int, chunk_size: int, max_surprise: float | None) -> None:
    problem = make_problem(
        depth=depth, time=300, width=64, hidden=256, chunk_size=chunk_size, max_surprise=max_surprise,
        carried=True, dtype=torch.float32,
    )  # fmt: skip
    assert_agrees_on_gpu(problem, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [16, 32, 48, 128])
def test_widths_on_a_gpu(width: int) -> None:
    problem = make_problem(time=70, width=width, hidden=4 * width, dtype=torch.float32)
    assert_agrees_on_gpu(problem, 1e-3)


@pytest.mark.gpu
def test_documents_on_a_gpu() -> None:
    problem = make_problem(
        batch=2,
        time=40,
        width=32,
        hidden=128,
        chunk_size=8,
        carried=True,
        started=True,
        dtype=torch.float32,
    )
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 16]))
    reset, mask = torch.zeros(2, 2, 40, dtype=torch.bool).unbind()
    mask = ~mask
    reset[0, 13] = reset[1, 0] = True
    mask[0, 10:13] = mask[1, 30:] = False
    assert_agrees_on_gpu(replace(problem, reset=reset, mask=mask), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 64])
def test_more_programs_than_a_gpu_holds(rows: int) -> None:
    problem = on_gpu(
        make_problem(batch=rows, heads=8, time=70, width=64, hidden=256, dtype=torch.float32)
    )
    found = values_and_gradients(problem, "triton")
    assert_close(found, values_and_gradients(problem, "chunked"), 1e-3)
    assert_same_bits(values_and_gradients(problem, "triton"), found)


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [1, 2])
def test_one_token_after_another_on_a_gpu(depth: int) -> None:
    problem = on_gpu(
        make_problem(depth=depth, time=40, width=64, hidden=256, carried=True, dtype=torch.float32)
    )
    at = wanted = problem.state
    for t in range(40):
        y, at = problem.tokens(t, t + 1, at).run("triton")
        expected, wanted = problem.tokens(t, t + 1, wanted).run("chunked")
        assert_close(named((y, at)), named((expected, wanted)), 1e-3)
