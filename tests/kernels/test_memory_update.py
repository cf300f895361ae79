"""The chunked form against the reference: output, final state and the gradient of every input."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import (
    CHOICES,
    assert_backends_agree,
    assert_close,
    assert_same_bits,
    convert,
    make_problem,
    values_and_gradients,
)

from titans_kernels.memory_update import walk

LENGTHS = (1, 15, 16, 17, 63, 100)
CHUNKS = (1, 4, 16, 64)


def covering_cases() -> list[dict[str, Any]]:
    """Every length at every chunk size at two depths, and the other settings drawn for each."""
    draw = random.Random(0)
    cases = []
    for i, (chunk_size, time) in enumerate(itertools.product(CHUNKS, LENGTHS)):
        for other in (0, 1):
            case = {name: draw.choice(values) for name, values in CHOICES.items()}
            depth = 1 + (i + i // len(LENGTHS) + other) % 3
            cases.append({"depth": depth, "chunk_size": chunk_size, "time": time, **case})
    return cases


def test_the_cases_hold_every_pair_of_settings() -> None:
    cases = covering_cases()
    for a, b in itertools.combinations([*CHOICES, "depth"], 2):
        values = [CHOICES.get(name, (1, 2, 3)) for name in (a, b)]
        assert {(c[a], c[b]) for c in cases} == set(itertools.product(*values)), (a, b)


@pytest.mark.parametrize(
    "case", covering_cases(), ids=lambda c: "-".join(str(x) for x in c.values())
)
def test_chunked_equals_reference(case: dict[str, Any]) -> None:
    # Toward zero without much room: the recurrence is chaotic when its steps are large.
    assert_backends_agree(make_problem(**case, largest_step=0.05, largest_forget=0.05))


@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
def test_the_default_shape_over_a_longer_sequence(forget_toward: str) -> None:
    problem = make_problem(
        time=250, width=8, hidden=32, largest_step=0.05, largest_forget=0.02,
        carried=True, forget_toward=forget_toward,
    )  # fmt: skip
    assert_backends_agree(problem)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
def test_float32(depth: int, forget_toward: str) -> None:
    # Wide: over four channels the norm divides by a deviation that may be near zero.
    problem = make_problem(
        depth=depth, time=63, width=16, hidden=64, dtype=torch.float32, carried=True,
        largest_step=0.05, forget_toward=forget_toward,
    )  # fmt: skip
    assert_backends_agree(problem)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("max_surprise", [None, 0.5])
def test_resets_to_a_start_state(depth: int, max_surprise: float | None) -> None:
    problem = make_problem(
        depth=depth, batch=3, time=53, chunk_size=8, carried=True, started=True,
        max_surprise=max_surprise, largest_step=0.05,
    )  # fmt: skip
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 16, 6]))
    reset, mask = torch.zeros(2, 3, 53, dtype=torch.bool).unbind()
    mask = ~mask
    # Row 0 begins a document at its first token and at 24, row 1 at 40, row 2 never does.
    reset[0, 0] = reset[0, 24] = reset[1, 40] = True
    mask[0, 19:24] = mask[1, 33:40] = mask[2, 50:] = False
    assert_backends_agree(replace(problem, reset=reset, mask=mask))


def test_the_start_state_also_begins_a_stream_without_a_state() -> None:
    problem = make_problem(time=21, started=True)
    grads = values_and_gradients(problem, "chunked")
    assert grads["gradient by start.memory.0"].abs().max() > 0
    assert_backends_agree(problem)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("forget", [0.0, 1.0])
@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
def test_gates_at_exactly_0_and_1(momentum: float, forget: float, forget_toward: str) -> None:
    problem = make_problem(time=21, chunk_size=8, largest_step=0.05, forget_toward=forget_toward)
    problem.momentum[:, 3:12] = momentum
    problem.forget[:, 2:11:2] = forget
    problem.step_size[:, 5] = 0
    found = values_and_gradients(problem, "chunked")
    assert all(x.isfinite().all() for x in found.values())
    assert_close(found, values_and_gradients(problem, "reference"), 1e-10)


def test_a_clamp_that_never_bites_changes_nothing() -> None:
    problem = make_problem(time=33)
    loose = replace(problem, rule=replace(problem.rule, max_surprise=1e6))
    assert_same_bits(loose.run(), problem.run())
    tight = replace(problem, rule=replace(problem.rule, max_surprise=0.5))
    assert not torch.allclose(tight.run()[0], problem.run()[0])


def test_a_zero_key_has_a_finite_gradient_under_the_clamp() -> None:
    problem = make_problem(time=9, chunk_size=4, depth=2, max_surprise=0.5, norm=False)
    problem.k[:, 4] = 0
    found = values_and_gradients(problem, "chunked")
    assert all(x.isfinite().all() for x in found.values())
    assert_close(found, values_and_gradients(problem, "reference"), 1e-10)


@pytest.mark.parametrize("time", [1, 16, 17, 33, 100])
@pytest.mark.parametrize("rule", [{}, {"inner_steps": 2, "channel_forget": True}])
def test_recomputing_from_every_sqrt_n_th_chunk(
    time: int, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(time=time, chunk_size=4, carried=True, started=True, **rule)
    reset = torch.zeros(2, time, dtype=torch.bool)
    reset[1, 0] = True
    if time > 16:
        assert problem.state is not None
        problem.state.position[0] = 0
        reset[0, 16] = True
    problem = replace(problem, reset=reset)
    wanted = values_and_gradients(problem, "chunked")
    monkeypatch.setattr(walk, "KEEP_ALL_BYTES", 0)
    found = values_and_gradients(problem, "chunked")
    for name, x in wanted.items():
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 9, 10, 100])
def test_the_interval_keeps_about_sqrt_n_states(
    chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ([torch.zeros(1)], [torch.zeros(1)], [torch.zeros(1)])
    assert walk.interval(chunks, state) == 1
    monkeypatch.setattr(walk, "KEEP_ALL_BYTES", 0)
    every = walk.interval(chunks, state)
    assert (every - 1) ** 2 < chunks <= every**2


def test_gradcheck() -> None:
    problem = make_problem(
        batch=1, time=5, heads=1, width=2, hidden=3, chunk_size=2, carried=True, largest_step=0.5
    )
    assert problem.state is not None
    problem.state.position.fill_(1)
    differentiable = (
        problem.q, problem.k, problem.v, problem.step_size, problem.momentum, problem.forget,
        *problem.initial, *problem.norm, *problem.state.memory, *problem.state.surprise,
    )  # fmt: skip

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stream, rest = tensors[:6], tensors[6:]
        names = ("q", "k", "v", "step_size", "momentum", "forget")
        changed = replace(
            problem,
            **dict(zip(names, stream, strict=True)),
            initial=rest[:2],
            norm=rest[2:4],
            state=problem.state._replace(memory=rest[4:6], surprise=rest[6:]),
        )
        y, state = changed.run()
        return y, *state.memory, *state.surprise

    inputs = [x.requires_grad_() for x in differentiable]
    assert torch.autograd.gradcheck(run, inputs)


def test_bf16_inputs_keep_a_float32_state() -> None:
    problem = make_problem(time=40, dtype=torch.bfloat16)
    exact = convert(problem, lambda x: x.float())
    y, state = problem.run()
    assert y.dtype == torch.bfloat16
    assert all(w.dtype == torch.float32 for part in state[:3] for w in part)
    wanted_y, wanted_state = exact.run()
    assert torch.equal(y, wanted_y.bfloat16())
    assert_same_bits(state, wanted_state)


def test_autocast_changes_nothing() -> None:
    problem = make_problem(time=40, dtype=torch.float32)
    wanted = values_and_gradients(problem, "chunked")
    found = values_and_gradients(problem, "chunked", autocast=True)
    for name, x in wanted.items():
        assert found[name].dtype == x.dtype, name
        assert torch.equal(found[name], x), name


def test_a_backward_under_autocast_runs() -> None:
    problem = make_problem(time=40, width=16, hidden=32, dtype=torch.float32)
    wanted = values_and_gradients(problem, "chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values_and_gradients(problem, "chunked")
    # Torch takes the gates' own products in bf16 then; the chunks stay in float32.
    for name, x in wanted.items():
        loose = name.rpartition(" ")[2] in ("momentum", "forget")
        assert_close({name: found[name]}, {name: x}, 0.05 if loose else 1e-5)
