"""What may not be given to the memory update: one sentence each that says what to do. And what is public."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import Problem, assert_same_bits, convert, make_problem
from torch import Tensor
from torch.autograd import forward_ad

import titans_kernels
from titans_kernels import (
    BACKENDS,
    MemoryState,
    UpdateRule,
    available_backends,
    memory_read,
    momentary_surprise,
)

HERE = [name for name in BACKENDS if available_backends()[name] is None]


@pytest.fixture(autouse=True)
def _shapes_unchecked(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")


def carried(**change: Any) -> tuple[Problem, MemoryState]:
    problem = make_problem(**{"time": 5, "carried": True, **change})
    assert problem.state is not None
    return problem, problem.state


def refused(problem: Problem, sentence: str, error: type[Exception] = ValueError) -> None:
    for backend in HERE:
        with pytest.raises(error, match=sentence):
            problem.run(backend)


def test_public_names() -> None:
    assert titans_kernels.__all__ == [
        "BACKENDS", "MemoryState", "UpdateRule", "available_backends", "fresh_state",
        "linear_recurrence", "memory_read", "memory_update", "momentary_surprise", "selective_scan",
    ]  # fmt: skip


def test_a_norm_on_another_device() -> None:
    problem, _ = carried()
    assert problem.norm is not None
    gain, bias = problem.norm
    for norm in ((gain.to("meta"), bias), (gain, bias.to("meta"))):
        refused(replace(problem, norm=norm), "norm must be on q's device cpu: got meta")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_norm_is_two_tensors(count: int) -> None:
    problem, _ = carried()
    assert problem.norm is not None
    norm: Any = (problem.norm[0],) * count
    refused(replace(problem, norm=norm), r"norm must be a gain and a bias of shape \[H, D\] = ")


@pytest.mark.parametrize(("setting", "sentence"), [
    ({"max_surprise": 1e-46}, r"max_surprise must be a norm of at least 1.2e-38, or None .*got 1e-46\."),
    ({"max_surprise": 0.0}, "max_surprise must be a norm of at least"),
    ({"max_surprise": float("nan")}, "max_surprise must be a norm of at least"),
    ({"chunk_size": 16.0}, r"chunk_size must be an integer: got 16\.0\."),
    ({"chunk_size": True}, "chunk_size must be an integer: got True"),
    ({"inner_steps": 2.0}, r"inner_steps must be an integer: got 2\.0\."),
])  # fmt: skip
def test_settings(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UpdateRule(**setting)


@pytest.mark.parametrize("name", ["k", "v", "step_size", "forget"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.long])
def test_inputs_are_floating_point(name: str, dtype: torch.dtype) -> None:
    problem = make_problem(time=5, dtype=torch.float32)
    change = {name: getattr(problem, name).to(dtype)}
    refused(replace(problem, **change), f"{name} must be floating point: got {dtype}", TypeError)


def test_positions_are_whole_numbers_beside_the_weights() -> None:
    problem, state = carried()
    for position in (state.position.double(), state.position.to("meta"), state.position > 3):
        changed = replace(problem, state=state._replace(position=position))
        refused(changed, "state.position must be whole numbers, torch.int64, on cpu: got ")
    narrow = state._replace(position=state.position.int())
    assert_same_bits(replace(problem, state=narrow).run()[0], problem.run()[0])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("time", [0, 1, 3])
@pytest.mark.parametrize("flags", [False, True])
def test_no_rows(backend: str, time: int, flags: bool) -> None:
    problem, state = carried(time=time, started=True)
    none = convert(replace(problem, state=None, start=None, initial=(), norm=None), lambda x: x[:0])
    live = torch.ones(0, time, dtype=torch.bool)
    none = replace(
        none, initial=problem.initial, norm=problem.norm, state=convert(state, lambda x: x[:0]),
        start=problem.start, mask=live if flags else None, reset=live if flags else None,
    )  # fmt: skip
    assert none.state is not None
    y, after = none.run(backend)
    assert y.shape == (0, time, 2, 4)
    assert_same_bits(after, none.state)
    given: Any = {"rule": none.rule, "norm": none.norm}
    assert memory_read(none.q, none.state, none.initial, **given).shape == y.shape
    norms = momentary_surprise(none.k, none.v, none.state, none.initial, **given)
    assert norms.shape == (0, time, 2, 2)


@pytest.mark.parametrize("change", [{"heads": 0}, {"width": 0}])
def test_no_heads_or_no_channels(change: dict[str, int]) -> None:
    shape = {"heads": 2, "width": 4, **change}
    tokens = torch.zeros(2, 3, shape["heads"], shape["width"])
    problem = make_problem(time=3, dtype=torch.float32)
    gates = dict.fromkeys(("step_size", "momentum", "forget"), tokens[..., :1])
    sizes = (shape["heads"], shape["width"], shape["width"])
    problem = replace(
        problem, q=tokens, k=tokens, v=tokens, **gates, initial=(torch.zeros(sizes),), norm=None
    )
    refused(problem, "q must have at least one head and one channel, .*: got ")


def test_no_hidden_units() -> None:
    problem = make_problem(time=3)
    first, last = problem.initial
    problem = replace(problem, initial=(first[:, :0], last[..., :0]))
    refused(problem, r"initial\[0\] must have shape \[H, out, in\] = \[2, 16, 4\]: got \[2, 0, 4\]")


def test_a_frozen_read_of_something_else() -> None:
    problem, state = carried()
    given: Any = {"rule": problem.rule, "norm": problem.norm}
    with pytest.raises(ValueError, match=r"q must have shape \[B, T, H, D\]: got \[2, 5, 8\]"):
        memory_read(problem.q.flatten(2), state, problem.initial, **given)
    with pytest.raises(TypeError, match="q must be floating point: got torch.complex128"):
        memory_read(problem.q.to(torch.complex128), state, problem.initial, **given)


def surprise(problem: Problem, state: MemoryState, **change: Tensor) -> Tensor:
    given: Any = {"k": problem.k, "v": problem.v, **change}
    return momentary_surprise(
        **given, state=state, initial=problem.initial, rule=problem.rule, norm=problem.norm
    )


def test_the_surprise_of_something_else() -> None:
    problem, state = carried()
    with pytest.raises(ValueError, match=r"k must have shape \[B, T, H, D\]: got \[2, 5, 8\]"):
        surprise(problem, state, k=problem.k.flatten(2))
    with pytest.raises(ValueError, match=r"v must have k's shape .* got \[2, 4, 2, 4\]"):
        surprise(problem, state, v=problem.v[:, 1:])
    with pytest.raises(
        TypeError, match="v must have k's precision torch.float64: got torch.float32"
    ):
        surprise(problem, state, v=problem.v.float())
    with pytest.raises(ValueError, match="state must hold weights of shape .* batch size"):
        surprise(problem, convert(state, lambda x: x[:1]))
    with pytest.raises(ValueError, match="state must be torch.float64 on cpu: got torch.float32"):
        surprise(problem, state._replace(chunk_memory=convert(state.chunk_memory, Tensor.float)))


def test_surprise_is_float32_also_under_autocast_and_of_bf16_inputs() -> None:
    problem, state = carried(dtype=torch.float32)
    wanted = surprise(problem, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(surprise(problem, state), wanted)
    half = convert(problem, lambda x: x.bfloat16() if x.is_floating_point() else x)
    wide = convert(half, lambda x: x.float() if x.is_floating_point() else x)
    found = surprise(replace(half, initial=problem.initial), state)
    assert found.dtype == torch.float32
    assert torch.equal(found, surprise(replace(wide, initial=problem.initial), state))


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize("grad", [True, False])
def test_a_tangent_is_carried_by_the_reference_alone(time: int, grad: bool) -> None:
    problem, _ = carried(time=time)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        # Without a tangent there is nothing to lose.
        for backend in HERE:
            problem.run(backend)
        dual = replace(problem, v=forward_ad.make_dual(problem.v, torch.ones_like(problem.v)))
        assert forward_ad.unpack_dual(dual.run("reference")[0]).tangent.any()
        if "native" in HERE:
            with pytest.raises(
                ValueError, match="backend 'native' takes tensors without a tangent"
            ):
                dual.run("native")
