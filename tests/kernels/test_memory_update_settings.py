"""Several inner steps and forgetting per channel: the chunked form against the reference."""

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
    make_problem,
    named,
    values_and_gradients,
)

from titans_kernels import UpdateRule, momentary_surprise

RULES: list[dict[str, Any]] = [
    {"inner_steps": 2},
    {"inner_steps": 3},
    {"channel_forget": True},
    {"inner_steps": 2, "channel_forget": True},
]


def covering_cases() -> list[dict[str, Any]]:
    """Every rule at every chunk size and depth, and the other settings drawn for each."""
    draw = random.Random(0)
    others = {**CHOICES, "time": (1, 13, 22)}
    return [
        {**rule, "depth": depth, "chunk_size": size}
        | {name: draw.choice(values) for name, values in others.items()}
        for rule, size, depth in itertools.product(RULES, (1, 4, 16), (1, 2, 3))
    ]


@pytest.mark.parametrize(
    "case", covering_cases(), ids=lambda c: "-".join(str(x) for x in c.values())
)
def test_chunked_equals_reference(case: dict[str, Any]) -> None:
    assert_backends_agree(make_problem(**case, largest_step=0.02, largest_forget=0.5))


@pytest.mark.parametrize("rule", RULES)
def test_a_longer_sequence(rule: dict[str, Any]) -> None:
    assert_backends_agree(
        make_problem(time=64, width=8, hidden=16, carried=True, largest_step=0.02, **rule)
    )


@pytest.mark.parametrize("rule", RULES)
def test_float32(rule: dict[str, Any]) -> None:
    problem = make_problem(
        depth=3, time=40, width=16, hidden=32, dtype=torch.float32, carried=True,
        largest_step=0.02, **rule,
    )  # fmt: skip
    assert_backends_agree(problem)


@pytest.mark.parametrize("rule", RULES)
def test_resets_to_a_start_state(rule: dict[str, Any]) -> None:
    problem = make_problem(
        batch=3, time=29, chunk_size=4, carried=True, started=True, max_surprise=0.5,
        largest_step=0.02, **rule,
    )  # fmt: skip
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 16, 6]))
    reset, mask = torch.zeros(2, 3, 29, dtype=torch.bool).unbind()
    mask = ~mask
    # Row 0 begins a document at its first token and at 12, row 1 at 20, row 2 never does.
    reset[0, 0] = reset[0, 12] = reset[1, 20] = True
    mask[0, 7:12] = mask[1, 18:20] = mask[2, 27:] = False
    assert_backends_agree(replace(problem, reset=reset, mask=mask))


@pytest.mark.parametrize("rule", [RULES[0], RULES[3]])
@pytest.mark.parametrize("gates", list(itertools.product((0.0, 1.0), (0.0, 1.0))))
def test_gates_at_exactly_0_and_1(gates: tuple[float, float], rule: dict[str, Any]) -> None:
    problem = make_problem(time=13, chunk_size=6, largest_step=0.02, **rule)
    problem.momentum[:, 3:8] = gates[0]
    problem.forget[:, 2:9:2] = gates[1]
    # One channel, or one layer.
    problem.forget[:, 7, :, 1] = 1 - gates[1]
    problem.step_size[:, 5] = 0
    found = values_and_gradients(problem, "chunked")
    assert all(x.isfinite().all() for x in found.values())
    assert_close(found, values_and_gradients(problem, "reference"), 1e-10)


def test_a_zero_key_has_a_finite_gradient_under_the_clamp() -> None:
    problem = make_problem(
        time=9, chunk_size=4, max_surprise=0.5, norm=False, inner_steps=2, channel_forget=True
    )
    problem.k[:, 4] = 0
    found = values_and_gradients(problem, "chunked")
    assert all(x.isfinite().all() for x in found.values())
    assert_close(found, values_and_gradients(problem, "reference"), 1e-10)


@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equal_channels_are_one_gate(depth: int, inner_steps: int) -> None:
    problem = make_problem(
        time=21, chunk_size=8, depth=depth, gates="shared", largest_forget=0.5, carried=True,
        largest_step=0.02, inner_steps=inner_steps,
    )  # fmt: skip
    channels = replace(
        problem,
        forget=problem.forget[..., None].expand_as(problem.q).contiguous(),
        rule=replace(problem.rule, channel_forget=True),
    )
    assert_close(named(channels.run()), named(problem.run()), 1e-12)


def test_every_step_and_every_channel_changes_the_output() -> None:
    problem = make_problem(time=9, depth=3, inner_steps=3, channel_forget=True, carried=True)
    y, _ = problem.run()
    fewer = replace(problem, rule=replace(problem.rule, inner_steps=2))
    assert problem.state is not None
    fewer = replace(fewer, state=problem.state._replace(passes=problem.state.passes[:1]))
    assert not torch.allclose(fewer.run()[0], y)
    grads = values_and_gradients(problem, "chunked")
    assert (grads["gradient by forget"] != 0).all()
    assert all(
        x.abs().max() > 0 for n, x in grads.items() if n.startswith("gradient by state.passes")
    )


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_at_a_closed_chunk_every_pass_is_the_memory(backend: str) -> None:
    problem = make_problem(time=12, chunk_size=4, inner_steps=3)
    _, state = problem.run(backend)
    assert len(state.passes) == 2
    for memory, surprise in state.passes:
        assert_same_bits(memory, state.memory)
        assert_same_bits(surprise, state.surprise)
    _, state = problem.tokens(0, 11).run(backend)
    for memory, _ in state.passes:
        assert not torch.equal(memory[0], state.memory[0])


def test_gradcheck() -> None:
    problem = make_problem(
        batch=1, time=4, heads=1, width=2, hidden=3, chunk_size=2, carried=True,
        largest_step=0.3, norm=False, inner_steps=2, channel_forget=True,
    )  # fmt: skip
    assert problem.state is not None
    problem.state.position.fill_(1)
    names = ("q", "k", "v", "step_size", "momentum", "forget")

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert problem.state is not None
        state = problem.state._replace(
            memory=tensors[8:10], passes=((tensors[10:12], tensors[12:]),)
        )
        stream = dict(zip(names, tensors[:6], strict=True))
        y, state = replace(problem, **stream, initial=tensors[6:8], state=state).run()
        return tuple(x for x in named((y, state)).values() if x.is_floating_point())

    (memory, surprise), *_ = problem.state.passes
    inputs = (
        *(getattr(problem, name) for name in names),
        *problem.initial, *problem.state.memory, *memory, *surprise,
    )  # fmt: skip
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_momentary_surprise_is_that_of_the_first_step() -> None:
    problem = make_problem(time=5, carried=True, inner_steps=3)
    assert problem.state is not None
    arguments = (problem.k, problem.v, problem.state, problem.initial)
    got = momentary_surprise(*arguments, rule=problem.rule, norm=problem.norm)
    once = replace(problem.rule, inner_steps=1)
    assert torch.equal(got, momentary_surprise(*arguments, rule=once, norm=problem.norm))


@pytest.mark.parametrize("steps", [0, 4])
def test_inner_steps_beyond_three_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"inner_steps must be 1, 2 or 3: got {steps}"):
        UpdateRule(inner_steps=steps)


def test_what_does_not_fit_the_rule_is_refused() -> None:
    problem = make_problem(time=5, carried=True, channel_forget=True)
    with pytest.raises(
        ValueError, match=r"forget must have one value per head and channel, .*2, 5"
    ):
        replace(problem, forget=problem.step_size).run()
    scalar = replace(problem, rule=replace(problem.rule, channel_forget=False))
    with pytest.raises(ValueError, match="forget must have one value per head, shape"):
        scalar.run()
    twice = replace(problem, rule=replace(problem.rule, inner_steps=2))
    with pytest.raises(ValueError, match="state must hold 1 passes for inner_steps = 2: got 0"):
        twice.run()
