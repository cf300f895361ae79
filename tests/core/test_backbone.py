"""The stack: any mixer in it, what decays, sizes of the presets, precision, and what is public."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import assert_same_bits, assert_same_result
from small_mixers import SETTINGS, Setting, in_pieces, inputs, right_padding
from torch import Tensor, nn

import titans_core
from titans_core import (
    MIXERS,
    PATTERNS,
    PRESETS,
    Backbone,
    BackboneConfig,
    NeuralMemory,
    count_parameters,
    decay_groups,
    detach,
    map_state,
    state_bytes,
)

NAMES = ("lmm", "mac", "mac previous", "mag", "mal", "mac+mal", "attention", "mamba2", "gsa")
every_mixer = pytest.mark.parametrize("setting", [SETTINGS[n] for n in NAMES], ids=NAMES)


def backbone(setting: Setting, layers: int = 2) -> Backbone:
    return Backbone(replace(setting.config(), num_layers=layers)).double()


@every_mixer
@torch.no_grad()
def test_a_stack_streams_and_is_causal(setting: Setting) -> None:
    model, x = backbone(setting), inputs(2, 40)
    wanted = model(x)
    assert_same_result(in_pieces(model, x, [3, 4, 21]), wanted)
    x[:, 30:] += 1
    assert torch.equal(model(x)[0][:, :30], wanted[0][:, :30])


@every_mixer
def test_padding_may_be_anything_in_a_stack(setting: Setting) -> None:
    model, x = backbone(setting), inputs(2, 20)
    mask, found = right_padding([20, 9], 20), []
    for other in (0.0, torch.nan):
        x[~mask] = other
        model.zero_grad()
        y, state = model(x, mask=mask)
        y[mask].square().sum().backward()
        found.append((y[mask], state, tuple(p.grad for p in model.parameters())))
    assert_same_bits(*found)


@every_mixer
@torch.no_grad()
def test_float32_is_near_float64(setting: Setting) -> None:
    model, x = backbone(setting), inputs(2, 64)
    wanted, _ = model(x)
    got, state = model.float()(x.float())
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
    tensors: list[Tensor] = []
    map_state(lambda x: tensors.append(x) or x, state)
    assert {x.dtype for x in tensors} == {torch.float32, torch.long}


@pytest.mark.parametrize("setting", [SETTINGS[n] for n in ("lmm", "mac", "mag")])
def test_a_half_precision_model_trains_and_keeps_its_memory_in_float32(setting: Setting) -> None:
    model, x = backbone(setting).bfloat16(), inputs(2, 3 * setting.grid).bfloat16()
    reset = torch.zeros(2, x.shape[1], dtype=torch.bool)
    reset[0, 2 * setting.grid] = True
    y, state = model(x, mask=right_padding([x.shape[1], 2], x.shape[1]), reset=reset)
    y, state = model(x, state)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if setting.mixer == "lmm":
        assert {w.dtype for w in state[0].memory.memory} == {torch.float32}


@pytest.mark.parametrize("setting", [SETTINGS[n] for n in ("lmm", "mac", "mag")])
def test_autocast_trains_too(setting: Setting) -> None:
    model, x = backbone(setting).float(), inputs(2, 3 * setting.grid + 1).float()
    reset = torch.zeros(2, x.shape[1], dtype=torch.bool)
    reset[0, 2 * setting.grid] = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x, reset=reset)
        more, _ = model(x, state)
    (y.float().square().sum() + more.float().square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    wanted, _ = model(x, reset=reset)
    assert torch.allclose(y.float(), wanted, atol=0.2)


class Average(nn.Module):
    """Somebody else's mixer: the mean of what came so far."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.dim, dtype=torch.float64))

    def fresh_state(self, batch: int) -> Tensor:
        return self.weight.new_zeros(batch, 1 + len(self.weight))

    def restart_memory(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state)

    def restart_caches(self, state: Tensor) -> Tensor:
        return state

    def forward(self, x: Tensor, state: Any = None, **context: Any) -> tuple[Tensor, Tensor]:
        state = self.fresh_state(len(x)) if state is None else state
        counts = state[:, None, :1] + torch.arange(1, x.shape[1] + 1)[:, None]
        sums = state[:, None, 1:] + x.cumsum(1)
        return self.weight * sums / counts, torch.cat([counts, sums], -1)[:, -1]


@torch.no_grad()
def test_a_mixer_of_somebody_else_stands_in_a_block() -> None:
    config = SETTINGS["lmm"].config()
    model = Backbone(replace(config, num_layers=3), mixer=Average).double()
    x = inputs(2, 12)
    assert_same_result(in_pieces(model, x, [1, 5]), model(x))
    assert [type(block.mixer) for block in model.blocks] == [Average] * 3
    assert not any(part.any() for part in model.restart_memory(model(x)[1]))


@torch.no_grad()
def test_a_block_adds_its_mixer_and_a_swiglu() -> None:
    model, x = backbone(SETTINGS["attention"], layers=1), inputs(2, 9)
    (block,) = model.blocks

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    wanted = x + block.mixer(norm(x, block.mixer_norm.weight))[0]
    gate, value = block.ffn.up(norm(wanted, block.ffn_norm.weight)).chunk(2, -1)
    wanted = wanted + block.ffn.out(gate * gate.sigmoid() * value)
    got = model(x)[0]
    assert torch.allclose(got, norm(wanted, model.norm.weight), rtol=0, atol=1e-12)


def test_states_of_another_stack_are_refused() -> None:
    model = backbone(SETTINGS["lmm"])
    with pytest.raises(ValueError, match="one part for each of 2 blocks: got 1"):
        model(inputs(2, 3), model.fresh_state(2)[:1])
    with pytest.raises(TypeError, match="state"):
        model(inputs(2, 3), list(model.fresh_state(2)))
    with pytest.raises(TypeError, match="must be a NeuralMemoryState: got AttentionState"):
        model(inputs(2, 3), backbone(SETTINGS["attention"]).fresh_state(2))


@every_mixer
def test_weights_decay_and_starts_gates_and_norms_do_not(setting: Setting) -> None:
    model = backbone(setting)
    decayed, exempt = decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    found = [sorted(names[id(p)] for p in group["params"]) for group in (decayed, exempt)]
    assert sorted(found[0] + found[1]) == sorted(names.values())
    spared = ("persistent", "first_asked", "initial", "gates", "norm", "bias", "rate_log", "skip")
    assert [name for name in found[0] if any(part in name for part in spared)] == []
    assert [name for name in found[1] if not any(part in name for part in spared)] == []
    assert any("qkv" in name for name in found[0])


def test_parameters_are_counted() -> None:
    setting = Setting(mixer="attention")
    width, hidden = 16, 64
    attention = 4 * width * width
    block = attention + 3 * width * hidden + 2 * width
    assert count_parameters(backbone(setting)) == 2 * block + width


VOCABULARY = 32_000
SIZES = {"170m": 170e6, "340m": 340e6, "760m": 760e6, "1.3b": 1.3e9}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built_and_are_about_as_large_as_named(mixer: str, name: str) -> None:
    config = replace(PRESETS[name], mixer=mixer)
    with torch.device("meta"):
        model = Backbone(config)
    size = count_parameters(model) + VOCABULARY * config.dim
    if name not in SIZES:
        assert count_parameters(model) < 2e6
    elif mixer == "mac+mal":
        # Two memories in each block.
        assert size < 1.9 * SIZES[name]
    else:
        assert 0.6 < size / SIZES[name] < 1.45


def test_the_start_is_scaled_down_with_depth() -> None:
    torch.manual_seed(0)
    one = backbone(SETTINGS["lmm"], layers=1)
    torch.manual_seed(0)
    four = backbone(SETTINGS["lmm"], layers=4)
    ours, theirs = (model.blocks[0].mixer.out.weight for model in (one, four))
    assert torch.allclose(ours, theirs * 2)


def test_functions_on_states() -> None:
    memory = NeuralMemory(16, SETTINGS["lmm"].config().memory)
    x = torch.randn(2, 5, 16)
    state = memory(x)[1]
    assert state.memory.memory[0].requires_grad
    cut = detach(state)
    assert type(cut) is type(state)
    assert not cut.memory.memory[0].requires_grad
    assert_same_bits(cut, state)
    heads, width, hidden = 2, 8, 16
    weights = 3 * 2 * heads * width * hidden * 2 * 4
    assert state_bytes(state) == weights + 2 * 8 + 2 * 3 * 48 * 4


def test_surprise_is_the_size_of_the_gradient() -> None:
    memory, x = SETTINGS["lmm"].build(), inputs(2, 10)
    assert isinstance(memory, NeuralMemory)
    surprise = memory.surprise(x)
    assert surprise.shape == (2, 10, 2, 2)
    first = torch.cat([memory.surprise(x[:, :6]), surprise[:, 6:]], 1)
    assert torch.allclose(first, surprise, rtol=0, atol=1e-12)
    assert (surprise > 0).all()


PUBLIC = [
    "Attention",
    "AttentionConfig",
    "Backbone",
    "BackboneConfig",
    "HybridConfig",
    "MIXERS",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MemoryConfig",
    "MemoryStore",
    "Mixer",
    "NeuralMemory",
    "NeuralMemoryState",
    "PATTERNS",
    "PRESETS",
    "Reading",
    "SegmentConfig",
    "SystemConfig",
    "added_parameters",
    "attach",
    "build_backbone",
    "carried",
    "count_parameters",
    "decay_groups",
    "detach",
    "detach_memory",
    "join",
    "load_attached",
    "load_memory",
    "map_state",
    "read",
    "save_attached",
    "save_memory",
    "split",
    "state_bytes",
]


def test_public_names() -> None:
    assert sorted(titans_core.__all__) == sorted(PUBLIC)
    assert all(hasattr(titans_core, name) for name in titans_core.__all__)
    assert list(MIXERS) == [
        "lmm", "mac", "mag", "mal", "mac+mal", "attention", "swa", "linear", "retnet", "gla",
        "mamba2", "deltanet", "gated-deltanet", "longhorn", "mamba", "gsa", "ttt-linear", "ttt-mlp",
    ]  # fmt: skip
    assert list(PATTERNS) == ["samba", "gated-deltanet-h2"]
    assert list(PRESETS) == ["tiny", "small", "170m", "340m", "760m", "1.3b"]


def test_the_core_imports_nothing_of_a_domain() -> None:
    heavy = (
        "gluonts", "Bio", "datasets", "triton", "lightning", "transformers",
        "titans_domains", "titans_cli",
    )  # fmt: skip
    code = f"import sys, titans_core; print([m for m in {heavy} if m in sys.modules])"
    path = [str(p) for p in sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
