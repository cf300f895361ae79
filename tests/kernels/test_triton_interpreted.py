"""The Triton kernels in Triton's interpreter against the reference: output, final state, every gradient.

The interpreter is chosen when triton is imported, so these tests run in a process of their own, which
`test_triton.py` starts. Programs run one after another there; where those of a row wait for each other, every
program gets a process.
"""

import multiprocessing
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import (
    TOLERANCES,
    Problem,
    assert_close,
    assert_same_result,
    make_problem,
    values_and_gradients,
)
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton.py runs these in the interpreter", allow_module_level=True)

from titans_kernels.memory_update import (
    triton_function,
    triton_launch,
    triton_token,
    triton_update,
)
from titans_kernels.memory_update.triton_parts import derivatives

# One row and two heads, or two rows, of a few chunks: a chunk of a row takes the interpreter half a second.
CASES: list[dict[str, Any]] = [
    {"depth": 1, "chunk_size": 4, "time": 10, "max_surprise": 0.5, "carried": True},
    {"depth": 1, "chunk_size": 1, "time": 3, "forget_toward": "zero", "norm": False},
    {"depth": 1, "chunk_size": 16, "time": 20, "objective": "dot", "gates": "shared"},
    {"depth": 2, "chunk_size": 4, "time": 10, "max_surprise": 0.5, "carried": True},
    {"depth": 2, "chunk_size": 1, "time": 3, "forget_toward": "zero", "activation": "silu"},
    {"depth": 2, "chunk_size": 16, "time": 20, "objective": "dot", "norm": False},
    {"depth": 2, "chunk_size": 64, "time": 70, "gates": "shared", "residual": False},
]
SLOW_CASES: list[dict[str, Any]] = [
    {"depth": depth, "chunk_size": chunk, "time": 2 * chunk + 3, "max_surprise": limit, **other}
    for depth in (1, 2)
    for chunk in (1, 4, 16, 64)
    for limit in (None, 0.5)
    for other in (
        {"forget_toward": "zero", "norm": False, "carried": True},
        {"forget_toward": "zero", "activation": "silu", "width": 12, "hidden": 20},
        {"gates": "shared", "objective": "dot", "residual": False, "carried": True},
    )
]


def assert_equals_reference(problem: Problem) -> None:
    wanted = values_and_gradients(problem, "reference")
    assert_close(values_and_gradients(problem, "triton"), wanted, TOLERANCES[problem.q.dtype])


def small(**case: Any) -> Problem:
    return make_problem(**{"batch": 1, "heads": 2, "largest_step": 0.05, **case})


def documents(depth: int, **rule: Any) -> Problem:
    """Rows at different phases of their chunks; one goes on in the middle, and begins a document later."""
    problem = make_problem(
        batch=2, heads=1, time=14, depth=depth, chunk_size=4, carried=True, started=True, largest_step=0.05,
        **rule,
    )  # fmt: skip
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 8]))
    reset, mask = torch.zeros(2, 2, 14, dtype=torch.bool).unbind()
    mask = ~mask
    reset[0, 9] = reset[1, 0] = True
    mask[0, 7:9] = mask[1, 10:] = False
    return replace(problem, reset=reset, mask=mask)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(case: dict[str, Any]) -> None:
    assert_equals_reference(small(**case))


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES, ids=str)
def test_equals_the_reference_in_every_setting(case: dict[str, Any]) -> None:
    assert_equals_reference(small(**case))


@pytest.mark.parametrize("depth", [1, 2])
def test_masks_resets_and_rows_in_the_middle_of_a_chunk(depth: int) -> None:
    assert_equals_reference(documents(depth, max_surprise=0.5))


def test_a_start_state_begins_a_stream() -> None:
    assert_equals_reference(small(time=5, chunk_size=4, started=True))


@pytest.mark.parametrize("depth", [1, 2])
def test_float32(depth: int) -> None:
    problem = small(depth=depth, time=18, width=16, hidden=32, dtype=torch.float32, carried=True)
    assert_equals_reference(problem)


@pytest.mark.parametrize("depth", [1, 2])
def test_segments_change_nothing(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = documents(depth, forget_toward="zero", max_surprise=0.5)
    spans = triton_launch.segments(
        triton_launch.Sizes.of((4, 2, 16, 16), depth, 6, 1), torch.zeros(9), True
    )
    assert spans == [(0, 4)]
    monkeypatch.setattr(triton_launch, "BUDGET_BYTES", 0)
    spans = triton_launch.segments(
        triton_launch.Sizes.of((4, 2, 16, 16), depth, 6, 1), torch.zeros(9), True
    )
    assert spans == [(0, 2), (2, 4)]
    assert_equals_reference(problem)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_one_token_after_another(depth: int, limit: float | None) -> None:
    problem = documents(depth, max_surprise=limit)
    at = wanted = problem.state
    for t in (0, 1, 7, 8, 9, 10):
        found, at = problem.tokens(t, t + 1, at).run("triton")
        y, wanted = problem.tokens(t, t + 1, wanted).run("reference")
        assert_same_result((found, at), (y, wanted))


def test_the_normal_distribution_without_branches() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(z, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
        i = tl.arange(0, SIZE)
        x, slope, curve = derivatives(tl.load(z + i), True)
        tl.store(out + i, x)
        tl.store(out + SIZE + i, slope)
        tl.store(out + 2 * SIZE + i, curve)

    z, found = torch.linspace(-9, 9, 1024), torch.empty(3, 1024)
    kernel[(1,)](z, found, 1024)
    exact = torch.empty(3, 1024, dtype=torch.float64)
    kernel[(1,)](z.double(), exact, 1024)
    assert (found - exact).abs().max() < 1e-6
    x = z.double().requires_grad_()
    y = torch.nn.functional.gelu(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(exact, torch.stack((y, slope, curve)).detach())


def side_by_side(kernel: Any, programs: int, given: dict[str, Any]) -> None:
    """`launch` with every program in a process of its own, on tensors that they share."""
    from triton.runtime import interpreter

    shared = {at: x.clone().share_memory_() for at, x in storages(given).items()}
    tensors = {
        name: shared[place(x)].as_strided(x.shape, x.stride(), x.storage_offset())
        for name, x in given.items()
        if isinstance(x, Tensor)
    }
    names = {name: tensors.get(name, given[name]) for name in kernel.arg_names}

    def program(index: int) -> None:
        # Copying back what the others are writing would undo it.
        interpreter.GridExecutor._restore_args_dev = lambda *_: None
        builder = interpreter.interpreter_builder
        builder.set_grid_idx = lambda *_: setattr(builder, "grid_idx", (index, 0, 0))
        kernel[(1,)](**names)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=program, args=(i,), daemon=True) for i in range(programs)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        # Who waits for one that has failed waits for ever.
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
        processes[-1].join(0.05)
    assert [process.exitcode for process in processes] == [0] * programs
    for name, x in tensors.items():
        given[name].data.copy_(x)  # as a kernel writes: autograd is not told


def place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def storages(given: dict[str, Any]) -> dict[int, Tensor]:
    """Every storage once, as a flat tensor."""
    found = {}
    for x in given.values():
        if isinstance(x, Tensor):
            found[place(x)] = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return found


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts the hidden units into slices of 16, whose programs meet."""
    monkeypatch.setattr(triton_launch, "SLICE", 16)
    monkeypatch.setattr(triton_update, "limits", lambda _: (8, triton_launch.SHARED_BYTES))
    for module in (triton_function, triton_token):
        monkeypatch.setattr(module, "launch", side_by_side)


@pytest.mark.usefixtures("sliced")
@pytest.mark.parametrize("hidden", [32, 40])
def test_slices_that_meet(hidden: int) -> None:
    problem = make_problem(
        batch=1, heads=1, time=6, chunk_size=4, width=4, hidden=hidden, carried=True, max_surprise=0.5,
        largest_step=0.05,
    )  # fmt: skip
    assert_equals_reference(problem)


@pytest.mark.usefixtures("sliced")
def test_slices_of_one_token_that_meet() -> None:
    problem = make_problem(
        batch=1, heads=2, time=2, chunk_size=4, hidden=40, carried=True, max_surprise=0.5
    )
    at = wanted = problem.state
    for t in range(2):
        found, at = problem.tokens(t, t + 1, at).run("triton")
        y, wanted = problem.tokens(t, t + 1, wanted).run("reference")
        assert_same_result((found, at), (y, wanted))
