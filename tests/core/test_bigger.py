"""Blocks that are checkpointed or compiled, and memories that stay float32 under bf16."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import assert_same_bits
from small_mixers import SETTINGS, Setting, inputs, memories
from torch import Tensor

import titans_core.context
import titans_core.memory
from titans_core import Backbone, BackboneConfig, build_backbone
from titans_core.allocations import Allocations

TITANS = ("lmm", "lmm by channels", "mac", "mac previous", "mag", "mal", "mac+mal")
NAMES = (*TITANS, "attention grouped", "mamba", "gated-deltanet")


def stack(config: BackboneConfig, layers: int = 3) -> Backbone:
    torch.manual_seed(1)
    return build_backbone(replace(config, num_layers=layers)).double()


def trained(model: Backbone) -> tuple[Tensor, Any, tuple[Tensor, ...]]:
    """Outputs, state and gradients of two sequences, of which the second goes on with the first's state."""
    grid = model.config.grid
    reset = torch.zeros(2, 3 * grid, dtype=torch.bool)
    reset[0, grid] = True
    x = inputs(2, 3 * grid)
    y, state = model(x, reset=reset)
    more, state = model(x.flip(1), state)
    model.zero_grad()
    (y.square().sum() + more.square().sum()).backward()
    grads = [p.grad for p in model.parameters()]
    assert all(grad is not None for grad in grads)
    return torch.cat([y, more], 1), state, tuple(grads)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpointed_stack_gives_the_same_bits(name: str) -> None:
    model = stack(SETTINGS[name].config())
    wanted = trained(model)
    model.checkpoint_activations = True
    assert_same_bits(trained(model), wanted)


@pytest.mark.parametrize("mixer", ["rmt", "armt"])
def test_a_checkpointed_recurrence_gives_the_same_bits(mixer: str) -> None:
    model = stack(replace(SETTINGS["attention"].config(), mixer=mixer))
    wanted = trained(model)
    model.checkpoint_activations = True
    assert_same_bits(trained(model), wanted)


def kept_and_most(model: Backbone, x: Tensor) -> tuple[int, int]:
    with Allocations() as memory:
        y, _state = model(x)
        kept = memory.now
        y.square().mean().backward()
    return kept, memory.most


@pytest.mark.parametrize("name", ["lmm", "mag", "attention"])
def test_checkpointing_keeps_less_the_more_so_the_deeper(name: str) -> None:
    plain, saving = (stack(SETTINGS[name].config(), layers=6) for _ in range(2))
    saving.checkpoint_activations = True
    x = inputs(2, 64)
    kept, most = kept_and_most(plain, x)
    less, least = kept_and_most(saving, x)
    assert less < 0.4 * kept
    assert least < 0.6 * most


def test_without_gradients_nothing_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack(SETTINGS["lmm"].config())
    model.checkpoint_activations = True
    monkeypatch.setattr("titans_core.backbone.checkpoint", lambda *_: pytest.fail("checkpointed"))
    with torch.no_grad():
        model(inputs(1, 8))


def test_allocations_count_what_is_there_and_forget_what_is_not() -> None:
    before = torch.zeros(1000)
    with Allocations() as memory:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]  # no memory of its own
        before.mul_(2)
        assert memory.now == 4000
        c = a + before
        del a
        assert memory.now == 8000
        del b, c
        assert (memory.now, memory.most) == (0, 8000)
        memory.restart()
        torch.zeros(10)
        assert memory.most == 40


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's
@pytest.mark.parametrize(
    "name", ["lmm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mac", "attention"))]
)
def test_compiled_blocks_have_the_names_and_numbers_of_others(name: str) -> None:
    """With dynamo alone: what stands behind it is torch's."""
    config = SETTINGS[name].config()
    model, other = stack(config, 2), stack(config, 2)
    other.compile_blocks(backend="eager")
    assert list(other.state_dict()) == list(model.state_dict())
    assert_same_bits(trained(other), trained(model))
    other.checkpoint_activations = True
    assert_same_bits(trained(other), trained(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["lmm", "mag"])
def test_blocks_by_inductor_are_near(name: str) -> None:
    config = SETTINGS[name].config()
    model, other = stack(config, 2), stack(config, 2)
    other.compile_blocks()
    (y, _, grads), (wanted, _, wanted_grads) = trained(other), trained(model)
    assert torch.allclose(y, wanted, rtol=1e-9, atol=1e-12)
    for grad, same in zip(grads, wanted_grads, strict=True):
        assert torch.allclose(grad, same, rtol=1e-7, atol=1e-9)


class Witness:
    """Stands before a function of the kernels: what it is given, what comes out, and autocast's part."""

    def __init__(self, module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.function = getattr(module, name)
        self.calls: list[tuple[Any, Any, Any]] = []
        monkeypatch.setattr(module, name, self)

    def __call__(self, *args: Any, **named: Any) -> Any:
        made = self.function(*args, **named)
        self.calls.append((args, named, made))
        return made

    def again_in_float32(self) -> None:
        """Every call gives the same, bit for bit, where nothing is bf16 but what came in."""
        for args, named, made in self.calls:
            wide = [x.float() if isinstance(x, Tensor) else x for x in args]
            with torch.autocast("cpu", enabled=False):
                same = self.function(*wide, **named)
            y, wanted = (part[0] if isinstance(part, tuple) else part for part in (made, same))
            assert torch.equal(y, wanted.to(y.dtype))
            if isinstance(made, tuple):
                assert_same_bits(made[1], same[1])


@pytest.mark.parametrize("name", TITANS)
def test_under_bf16_a_memory_is_float32_and_so_is_its_arithmetic(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting: Setting = SETTINGS[name]
    model, x = stack(setting.config(), 2).float(), inputs(2, 3 * setting.grid).float()
    reset = torch.zeros(2, x.shape[1], dtype=torch.bool)
    reset[0, setting.grid] = True
    writes = Witness(titans_core.memory, "memory_update", monkeypatch)
    reads = Witness(titans_core.context, "memory_read", monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x, reset=reset)
        carried = model.take_up(model.put_down(state))
        more, after = model(x, carried)
        # Backward under autocast too, as trainers may call it.
        (y.float().square().sum() + more.float().square().sum()).backward()
    for held in (state, carried, after):
        found = memories(held)
        assert found
        floats = {x.dtype for x in found.values() if x.is_floating_point()}
        assert floats == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    # Something did come in as bf16: else nothing was shown.
    assert any(x.dtype == torch.bfloat16 for args, *_ in writes.calls for x in args[:3])
    assert bool(reads.calls) == ("mac" in name)
    writes.again_in_float32()
    reads.again_in_float32()


@pytest.mark.parametrize("name", ["lmm", "mag"])
def test_gradients_through_a_memory_are_those_of_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the memory's inputs on, whether autocast is on in the backward or not."""
    model = stack(SETTINGS[name].config(), 1).float()
    writes = Witness(titans_core.memory, "memory_update", monkeypatch)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(inputs(2, 16).float())
    args, named, _ = writes.calls[-1]
    found = []
    for wide in (False, True):
        leaves = [x.detach().float() if wide else x.detach() for x in args[:6]]
        leaves = [x.requires_grad_() for x in leaves]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not wide):
            y, _ = writes.function(*leaves, *args[6:], **named)
            found.append(torch.autograd.grad(y.float().square().sum(), leaves))
    for narrow, same in zip(*found, strict=True):
        # The outputs' own rounding to bf16 is all the difference there may be.
        scale = same.abs().max()
        assert (narrow.float() - same).abs().max() < 0.01 * scale
