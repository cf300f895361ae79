"""One token in C, alone and from a layer's projections on."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import assert_close, assert_same_bits, assert_same_result, make_problem, named

from titans_core import MemoryConfig, NeuralMemory
from titans_core import memory as memory_module
from titans_kernels import available_backends
from titans_kernels.memory_update import native

pytestmark = pytest.mark.skipif(
    available_backends()["native"] is not None, reason=str(available_backends()["native"])
)

SETTINGS: list[dict[str, Any]] = [
    {"depth": 1, "chunk_size": 4, "norm": False},
    {"depth": 2, "chunk_size": 16, "width": 9, "hidden": 35},
    {"depth": 2, "chunk_size": 1, "gates": "shared"},
    {"depth": 3, "chunk_size": 5, "max_surprise": 0.5, "activation": "silu"},
    {"depth": 2, "chunk_size": 16, "forget_toward": "zero", "residual": False},
    {"depth": 2, "chunk_size": 4, "objective": "dot", "max_surprise": 0.5},
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("carried", [True, False])
@torch.no_grad()
def test_token_by_token_equals_the_reference(setting: dict[str, Any], carried: bool) -> None:
    problem = make_problem(time=21, carried=carried, largest_step=0.05, **setting)
    state, outputs = problem.state, []
    for t in range(21):
        y, state = problem.tokens(t, t + 1, state).run("native")
        outputs.append(y)
    assert_same_result((torch.cat(outputs, 1), state), problem.run("reference"))


@torch.no_grad()
def test_masks_and_resets_row_by_row() -> None:
    problem = make_problem(batch=3, time=1, chunk_size=4, carried=True, started=True)
    assert problem.state is not None
    for position in ([3, 16, 6], [4, 7, 8]):
        problem.state.position.copy_(torch.tensor(position))
        reset = torch.tensor([[True], [False], [False]])
        mask = torch.tensor([[True], [False], [True]])
        problem = replace(problem, reset=reset, mask=mask)
        assert_same_result(problem.run("native"), problem.run("reference"))
        # As they are where a stream is cut: between other tokens' flags.
        apart = torch.stack([mask, ~mask, ~mask], 2).flatten(1)[:, :1]
        assert not apart.is_contiguous()
        assert_same_result(replace(problem, mask=apart).run("native"), problem.run("reference"))


@torch.no_grad()
def test_other_rows_and_threads_change_no_bit() -> None:
    problem = make_problem(
        batch=3, heads=5, time=1, carried=True, dtype=torch.float32, width=64, hidden=256
    )
    before, wanted = torch.get_num_threads(), problem.run("native")
    assert torch.equal(problem.row(1).run("native")[0], wanted[0][1:2])
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            assert_same_bits(problem.run("native"), wanted)
    finally:
        torch.set_num_threads(before)


def test_with_gradients_one_token_has_them() -> None:
    problem = make_problem(time=1, carried=True)
    problem.q.requires_grad_()
    (grad,) = torch.autograd.grad(problem.run("native")[0].sum(), problem.q)
    (wanted,) = torch.autograd.grad(problem.run("reference")[0].sum(), problem.q)
    assert_close({"q": grad}, {"q": wanted}, 1e-10)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens went the short way."""
    count = [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        return native.layer_token(*arguments, **named)

    monkeypatch.setattr(memory_module, "layer_token", counted)
    return count


CONFIGS = [
    MemoryConfig(num_heads=2, chunk_size=4),
    MemoryConfig(num_heads=3, chunk_size=4, depth=1, gates="shared", momentum=False, conv_size=2),
    MemoryConfig(num_heads=2, chunk_size=3, depth=3, forget="none", max_surprise=None),
    MemoryConfig(num_heads=1, chunk_size=16, forget="zero", max_step_size=0.3),
]


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_a_layer_token_by_token_equals_one_call(config: MemoryConfig, decoded: list[int]) -> None:
    torch.manual_seed(0)
    layer = NeuralMemory(18, config, num_persistent=3).double()
    layer.out_norm.add_(0.1 * torch.randn_like(layer.out_norm))
    x = torch.randn(2, 14, 18, dtype=torch.float64)
    wanted = layer(x)
    y, state = layer(x[:, :5])
    outputs = [y]
    for t in range(5, 14):
        y, state = layer(x[:, t : t + 1], state)
        outputs.append(y)
    assert decoded == [9]
    assert_close(named((torch.cat(outputs, 1), state)), named(wanted), 1e-10)


@torch.no_grad()
def test_what_needs_more_goes_the_long_way(decoded: list[int]) -> None:
    layer = NeuralMemory(16, MemoryConfig(num_heads=2, chunk_size=4))
    x = torch.randn(2, 1, 16)
    state = layer(x)[1]
    assert decoded == [1]
    live = torch.ones(2, 1, dtype=torch.bool)
    layer(x, mask=live)
    layer(x, state, reset=~live)
    layer(x, state, write=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x, state)
    with torch.enable_grad():
        assert layer(x, state)[0].requires_grad
    assert decoded == [1]


@torch.no_grad()
def test_a_state_of_another_dtype_is_refused() -> None:
    layer = NeuralMemory(16, MemoryConfig(num_heads=2, chunk_size=4))
    x = torch.randn(2, 1, 16)
    state = layer(x)[1]
    half = state._replace(
        memory=state.memory._replace(memory=tuple(w.bfloat16() for w in state.memory.memory))
    )
    with pytest.raises((TypeError, ValueError), match="state"):
        layer(x, half)


@pytest.mark.parametrize("names", [("norm_gain", "norm_bias"), ("norm_bias",)])
@torch.no_grad()
def test_a_norm_of_another_dtype_is_read_as_what_it_is(
    names: tuple[str, ...], decoded: list[int]
) -> None:
    layer = NeuralMemory(16, MemoryConfig(num_heads=2, chunk_size=4))
    x = torch.randn(2, 3, 16)
    for name in names:
        parameter = getattr(layer.recall, name)
        parameter.add_(torch.randn_like(parameter))
        parameter.data = parameter.bfloat16()
    y, state = layer(x[:, :2])
    y = torch.cat([y, layer(x[:, 2:], state)[0]], 1)
    assert_close({"y": y}, {"y": layer(x)[0]}, 1e-5)
    assert decoded == [0]


@torch.no_grad()
def test_an_output_norm_of_another_dtype_is_read_as_what_it_is(decoded: list[int]) -> None:
    layer = NeuralMemory(16, MemoryConfig(num_heads=2, chunk_size=4))
    layer.out_norm.add_(torch.randn_like(layer.out_norm))
    layer.out_norm.data = layer.out_norm.bfloat16()
    x = torch.randn(2, 3, 16)
    y, state = layer(x[:, :2])
    y = torch.cat([y, layer(x[:, 2:], state)[0]], 1)
    assert_close({"y": y}, {"y": layer(x)[0]}, 1e-5)
    # The memory itself may go the short way.
    assert decoded == [1]


@torch.no_grad()
def test_a_convolution_of_another_dtype_is_refused_at_every_length() -> None:
    layer = NeuralMemory(16, MemoryConfig(num_heads=2, chunk_size=4))
    assert layer.recall.conv is not None
    layer.recall.conv.double()
    for time in (1, 2):
        with pytest.raises(RuntimeError, match="same"):
            layer(torch.randn(2, time, 16))


def token_of(layer: NeuralMemory, x: torch.Tensor) -> dict[str, Any]:
    """What `layer_token` is given for a layer's first token."""
    recall = layer.recall
    assert recall.conv is not None
    state = layer.fresh_state(len(x))
    return {
        "projected": recall.qkv(x), "tail": state.conv_tail, "taps": recall.conv.weight,
        "logits": recall.gates(x), "gates": recall.gate_sizes, "max_step": 0.1,
        "initial": tuple(recall.initial), "rule": recall.rule, "norm": (recall.norm_gain, recall.norm_bias),
        "state": state.memory, "out": (layer.out_norm, layer.out_gate(x)),
    }  # fmt: skip


@torch.no_grad()
def test_what_is_read_as_raw_memory_is_what_it_should_be(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")
    layer = NeuralMemory(16, MemoryConfig(num_heads=2, chunk_size=4))
    given = token_of(layer, torch.randn(2, 1, 16))
    wanted = native.layer_token(**given)

    def refused(**changed: Any) -> None:
        with pytest.raises(ValueError, match=r" must .*: got "):
            native.layer_token(**{**given, **changed})

    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x.double(),
        lambda x: x.to("meta"),
        lambda x: x[..., :-1],
        lambda x: x[:-1],
    ]
    for change, name in itertools.product(changes, given):
        value = given[name]
        if name == "state":
            for part in ("memory", "chunk_memory", "surprise"):
                refused(state=value._replace(**{part: tuple(map(change, getattr(value, part)))}))
        elif isinstance(value, tuple):
            for i in range(len(value)):
                refused(**{name: (*value[:i], change(value[i]), *value[i + 1 :])})
        elif isinstance(value, torch.Tensor) and (name != "tail" or change is not changes[0]):
            refused(**{name: change(value)})
    # Under autocast a tail has another precision.
    native.layer_token(**{**given, "tail": given["tail"].bfloat16()})
    with pytest.raises(ValueError, match="gates must have 1 or 2 logits per head: got"):
        native.layer_token(**{**given, "gates": {"step_size": 3}})
    # Any strides.
    apart = {
        name: value.mT.contiguous().mT if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
    apart["projected"] = torch.stack([given["projected"]] * 2, -1)[..., 0]
    apart["logits"] = torch.stack([given["logits"]] * 2, -1)[..., 0]
    apart["out"] = tuple(torch.stack([x, x], -1)[..., 0] for x in given["out"])
    assert_same_bits(native.layer_token(**apart), wanted)
