"""The rival systems beside other people's layers, patterns of mixers, and what a configuration may say.

Their equations and the properties of every mixer are tested where the other mixers' are.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from memory_problems import assert_close, assert_same_result
from small_mixers import SETTINGS, in_pieces, inputs, middle, packed
from torch import Tensor, nn

from titans_core import (
    MIXERS,
    PATTERNS,
    PRESETS,
    AttentionConfig,
    Backbone,
    BackboneConfig,
    HybridConfig,
    MemoryConfig,
    NeuralMemory,
    SystemConfig,
    decay_groups,
)
from titans_core.state import named_tensors
from titans_core.systems import SYSTEMS, RecurrentState
from titans_core.systems.linear import HeadMemory
from titans_core.systems.mamba import Mamba, Mamba2
from titans_core.systems.slots import GatedSlotAttention


@pytest.fixture
def _shapes_unchecked(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")


wrong_on_purpose = pytest.mark.usefixtures("_shapes_unchecked")
every_system = pytest.mark.parametrize("name", SYSTEMS)
PAIRS = (*PATTERNS, "lmm/attention", "mac/gla/swa")


def config(mixer: str, **changes: Any) -> BackboneConfig:
    return BackboneConfig(
        dim=16,
        mixer=mixer,
        num_layers=3,
        memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=4),
        attention=AttentionConfig(num_heads=2),
        hybrid=HybridConfig(num_persistent=3, window=5, segment_len=8, num_retrieved=5),
        system=SystemConfig(**{"state_size": 6, **changes}),
    )


def stack(mixer: str) -> Backbone:
    """Every parameter off its start."""
    model = Backbone(config(mixer)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def same_as_theirs(ours: nn.Module, theirs: nn.Module, **pairs: Tensor) -> None:
    """Copies their weights into ours by ours' names, each of which has one; the outputs agree."""
    weights = dict(ours.named_parameters())
    assert pairs.keys() == {name.replace(".", "_") for name in weights}
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(pairs[name.replace(".", "_")].view(p.shape))
        x = torch.randn(2, 23, 16)
        got, wanted = ours(x)[0], theirs.eval()(x)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    assert_close({"y": got}, {"y": wanted}, 1e-5)


def shaken(module: nn.Module) -> nn.Module:
    """Their layer with all weights of one size, so that no part of it is without effect."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    return module


def test_mamba_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    settings = transformers.MambaConfig(hidden_size=16, state_size=6, num_hidden_layers=1)
    theirs = shaken(MambaMixer(settings, 0))
    ours = MIXERS["mamba"](config("mamba"))
    same_as_theirs(
        ours, theirs,
        conv_weight=theirs.conv1d.weight, conv_bias=theirs.conv1d.bias,
        value_gate_weight=theirs.in_proj.weight, selection_weight=theirs.x_proj.weight,
        gates_weight=theirs.dt_proj.weight, gates_bias=theirs.dt_proj.bias,
        rate_log=theirs.A_log, skip=theirs.D, out_weight=theirs.out_proj.weight,
    )  # fmt: skip


def test_mamba2_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    settings = transformers.Mamba2Config(
        hidden_size=16, state_size=6, num_hidden_layers=1, num_heads=4, head_dim=8, n_groups=1,
        chunk_size=8,
    )  # fmt: skip
    theirs = shaken(Mamba2Mixer(settings, 0))
    gate, qkv, step = theirs.in_proj.weight.split([32, 32 + 12, 4])
    same_as_theirs(
        MIXERS["mamba2"](config("mamba2")), theirs,
        conv_weight=theirs.conv1d.weight, conv_bias=theirs.conv1d.bias,
        qkv_weight=qkv, gates_weight=step, step_bias=theirs.dt_bias, rate_log=theirs.A_log,
        skip=theirs.D, out_gate_weight=gate, out_norm=theirs.norm.weight,
        out_weight=theirs.out_proj.weight,
    )  # fmt: skip


def test_gated_deltanet_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    settings = transformers.Qwen3NextConfig(
        hidden_size=16, num_hidden_layers=1, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=6, linear_value_head_dim=12, linear_conv_kernel_dim=4, rms_norm_eps=1e-5,
    )  # fmt: skip
    theirs = shaken(module.Qwen3NextGatedDeltaNet(settings, 0))
    # Theirs holds each head's rows together: q, k, v, gate, and beta before step.
    whole = theirs.in_proj_qkvz.weight.view(2, -1, 16)
    q, k, v, gate = (part.reshape(-1, 16) for part in whole.split([6, 6, 12, 12], 1))
    beta, step = (
        part.reshape(-1, 16) for part in theirs.in_proj_ba.weight.view(2, 2, 16).unbind(1)
    )
    same_as_theirs(
        MIXERS["gated-deltanet"](config("gated-deltanet")), theirs,
        conv_weight=theirs.conv1d.weight, qkv_weight=torch.cat([q, k, v]),
        gates_weight=torch.cat([beta, step]), step_bias=theirs.dt_bias, rate_log=theirs.A_log,
        out_gate_weight=gate, out_norm=theirs.norm.weight, out_weight=theirs.out_proj.weight,
    )  # fmt: skip


def heads_of(ours: HeadMemory, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads, key, value = ours.sizes
    parts = ours.qkv(x).split([heads * key, heads * key, heads * value], -1)
    q, k, v = (p.unflatten(-1, (heads, -1)) for p in parts)
    return q, k, v


def test_retention_is_that_of_fla() -> None:
    naive = pytest.importorskip("fla.ops.retention.naive", reason="needs flash-linear-attention")
    rotary = pytest.importorskip("fla.modules.rotary", reason="needs flash-linear-attention")
    ours: Any = MIXERS["retnet"](config("retnet"))
    x = torch.randn(2, 23, 16)
    q, k, v = heads_of(ours, x)
    angles = torch.outer(torch.arange(23.0), 10_000 ** -(torch.arange(0, 8, 2) / 8))
    q, k = (rotary.rotary_embedding_ref(p, angles.cos(), angles.sin()) for p in (q, k))
    y = naive.naive_retention(*(p.transpose(1, 2) for p in (q, k, v))).transpose(1, 2)
    y = F.rms_norm(y, (16,), eps=1e-5) * F.silu(ours.out_gate(x)).view(2, 23, 2, 16)
    assert_close({"y": ours(x)[0]}, {"y": ours.out(y.flatten(2))}, 1e-5)


def test_slots_are_those_of_fla() -> None:
    naive = pytest.importorskip("fla.ops.gsa.naive", reason="needs flash-linear-attention")
    ours = MIXERS["gsa"](config("gsa", num_slots=3))
    assert isinstance(ours, GatedSlotAttention)
    x = torch.randn(2, 23, 16)
    q, k, v = (F.silu(p).unflatten(-1, (2, 8)) for p in ours.qkv(x).chunk(3, -1))
    decay = F.logsigmoid(ours.gates(x).unflatten(-1, (2, 3))) / 8
    y, _ = naive.naive_recurrent_gsa(q, k, v, 1 - decay.exp(), decay, scale=1.0)
    y = F.rms_norm(F.silu(y.flatten(2)), (16,), eps=1e-5)
    assert_close({"y": ours(x)[0]}, {"y": ours.out(y)}, 1e-5)


@pytest.mark.parametrize(("name", "depth", "step"), [("ttt-linear", 1, 1.0), ("ttt-mlp", 2, 0.1)])
def test_test_time_training_is_a_memory_without_momentum_and_forgetting(
    name: str, depth: int, step: float
) -> None:
    memory = MIXERS[name](config(name))
    assert isinstance(memory, NeuralMemory)
    assert memory.config == MemoryConfig(
        num_heads=2, expansion=2, chunk_size=4, depth=depth, momentum=False, forget="none",
        gates="shared", max_surprise=None, max_step_size=step / 8,
    )  # fmt: skip


@pytest.mark.parametrize("mixer", PAIRS)
@torch.no_grad()
def test_a_pattern_streams_and_is_causal(mixer: str) -> None:
    model, x = stack(mixer), inputs(2, 40)
    wanted = model(x)
    assert_same_result(in_pieces(model, x, [1, 4, 21, 22]), wanted)
    x[:, 30:] += 1
    assert torch.equal(model(x)[0][:, :30], wanted[0][:, :30])


@pytest.mark.parametrize("mixer", PAIRS)
@torch.no_grad()
def test_documents_of_a_pattern_begin_on_its_grid(mixer: str) -> None:
    model = stack(mixer)
    rows = packed(model.config.grid)
    y, _ = model(rows.x, mask=rows.mask, reset=rows.reset)
    for row, spans in enumerate(rows.places):
        for first, last in spans:
            alone, _ = model(rows.x[row : row + 1, first:last])
            assert_same_result((y[row : row + 1, first:last], None), (alone, None))


@pytest.mark.parametrize("mixer", PAIRS)
def test_every_parameter_of_a_pattern_learns(mixer: str) -> None:
    model, x = stack(mixer), inputs(2, 26)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x)[0] - inputs(2, 26, seed=1)).square().sum().backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.ne(0).any(), name


def test_mixers_take_turns_from_layer_to_layer() -> None:
    model = Backbone(replace(config("gated-deltanet-h2"), num_layers=5))
    kinds = [type(block.mixer).__name__ for block in model.blocks]
    assert kinds == ["Mamba2", "GatedDeltaNet", "Attention", "Mamba2", "GatedDeltaNet"]
    seen = []

    def build(layer: BackboneConfig) -> nn.Module:
        seen.append(layer.mixer)
        return MIXERS[layer.mixer](layer)

    Backbone(replace(config("samba/lmm"), num_layers=4), build)
    assert seen == ["mamba", "swa", "lmm", "mamba"]


@pytest.mark.parametrize(
    ("mixer", "grid", "remembers", "bounded"),
    [
        ("mamba", 1, True, True),
        ("attention", 1, False, False),
        ("swa", 1, False, True),
        ("ttt-mlp", 4, True, True),
        ("samba", 1, True, True),
        ("lmm/attention", 4, True, False),
        ("mamba/lmm", 4, True, True),
        ("lmm/mac", 8, True, True),
        ("mac/ttt-linear", 8, True, True),
        ("swa/attention", 1, False, False),
    ],
)
def test_what_a_pattern_is(mixer: str, grid: int, remembers: bool, bounded: bool) -> None:
    asked = config(mixer)
    assert (asked.grid, asked.remembers, asked.bounded) == (grid, remembers, bounded)
    windowed = replace(asked.attention, window=6)
    if "swa" not in mixer and "samba" not in mixer and "mac" not in mixer:
        assert replace(asked, attention=windowed).bounded


@wrong_on_purpose
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixer": "rnn"}, r"armt, or several of layers with / between: got 'rnn'\."),
        ({"mixer": "lmm/rnn"}, r"with / between: got 'rnn' in 'lmm/rnn'\."),
        ({"mixer": "lmm/"}, r"with / between: got '' in 'lmm/'\."),
        ({"mixer": 3}, r"with / between: got 3\."),
        (
            {"mixer": "mamba/gla/swa", "num_layers": 2},
            r"num_layers must be at least 3, one for each mixer of mamba/gla/swa: got 2\.",
        ),
        (
            {"mixer": "gla/swa", "attention": AttentionConfig(window=8)},
            r"attention.window must be None where mixer is swa: got 8\. It is hybrid.window",
        ),
        (
            {
                "mixer": "swa",
                "attention": AttentionConfig(conv_size=4),
                "hybrid": HybridConfig(window=3),
            },
            r"hybrid.window must be at least the convolution's size = 4: got 3\.",
        ),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BackboneConfig(**changes)


@wrong_on_purpose
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 0}, "system.num_heads must be at least 1, or None: got 0"),
        ({"state_size": -1}, "system.state_size must be at least 1, or None: got -1"),
        ({"num_slots": 2.0}, "system.num_slots must be an integer: got 2.0"),
        (
            {"key_expansion": 0.0},
            "system.key_expansion must be positive and finite, or None: got 0.0",
        ),
        ({"value_expansion": float("inf")}, "system.value_expansion must be positive and finite"),
        ({"conv_size": 1}, "system.conv_size must be 0 or at least 2, or None: got 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SystemConfig(**changes)


@pytest.mark.parametrize(
    ("mixer", "changes", "words"),
    [
        (
            "gla",
            {"key_expansion": 0.3},
            r"dim = 16 times system.key_expansion = 0.3 must be a mult",
        ),
        ("deltanet", {"num_heads": 3}, r"must be a multiple of system.num_heads = 3: got 16"),
        ("retnet", {"num_heads": 16}, "The width of a key must be even in retnet"),
        ("mamba2", {"value_expansion": 1.25}, "must make whole heads of 8 channels in mamba2"),
    ],
)
def test_widths_that_do_not_fit_are_refused(
    mixer: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        MIXERS[mixer](config(mixer, **changes))


@wrong_on_purpose
@every_system
def test_a_state_of_another_system_is_refused(name: str) -> None:
    mixer, x = SETTINGS[name].build(), inputs(2, 6)
    for other in SYSTEMS:
        state = middle(SETTINGS[other].build(), [9, 6])
        if other != name:
            with pytest.raises(ValueError, match="belongs to another configuration"):
                mixer(x, state)
    with pytest.raises(TypeError, match="must be a RecurrentState: got NeuralMemoryState"):
        mixer(x, middle(SETTINGS["lmm"].build(), [9, 6]))
    with pytest.raises(ValueError, match="must have shape"):
        mixer(x[:1], middle(mixer, [9, 6]))
    with pytest.raises(ValueError, match="A frozen memory cannot be reset: pass reset=None"):
        mixer(x, reset=torch.ones(2, 6, dtype=torch.bool), write=False)
    sized = replace(SETTINGS[name], system={"conv_size": 3, "num_heads": 1})
    state = middle(sized.build(), [9, 6])
    with pytest.raises(ValueError, match="belongs to another configuration"):
        mixer(x, state)


@every_system
def test_there_are_as_many_heads_as_the_memorys_unless_given(name: str) -> None:
    plain, given = config(name), config(name, num_heads=2)
    states = [MIXERS[name](c).fresh_state(1) for c in (plain, given)]
    assert states[0].settings == states[1].settings


@every_system
def test_what_decays_are_projections_and_convolutions(name: str) -> None:
    mixer = MIXERS[name](config(name))
    decayed, _ = decay_groups(mixer, 0.1)
    names = {id(p): n for n, p in mixer.named_parameters()}
    found = {names[id(p)] for p in decayed["params"]}
    projections = {"qkv", "value_gate", "out_gate", "keys_queries", "selection", "out", "conv"}
    assert found == {n for n in names.values() if n.rpartition(".")[0] in projections}


@every_system
def test_a_carried_state_is_put_down_and_taken_up(name: str) -> None:
    model, x = stack(name), inputs(2, 30)
    _, state = model(x[:, :17])
    held = model.put_down(state)
    assert not any(t.requires_grad for t in named_tensors(held).values())
    y, after = model(x[:, 17:], model.take_up(held))
    assert_same_result((y, after), model(x[:, 17:], state))


@pytest.mark.parametrize("name", ["retnet", "gla", "mamba2", "gated-deltanet", "longhorn", "mamba"])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_trains_and_the_memory_is_float32(name: str, autocast: bool) -> None:
    model, x = stack(name).float(), inputs(2, 20).float()
    wanted, _ = model(x)
    if not autocast:
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y, state = model(x)
    more, _ = model(x[:, :1], state) if not autocast else (y, state)
    (y.float().square().sum() + more.float().square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert isinstance(state[0], RecurrentState)
    assert {part.dtype for part in state[0].memory.parts} == {torch.float32}
    assert (y.float() - wanted).abs().mean() < 0.05


@torch.no_grad()
def test_states_forget_slowly_at_the_start() -> None:
    """Decay in one token of zeros: what the authors' starting values make of it."""
    torch.manual_seed(0)
    large = replace(config("mamba"), dim=128, system=SystemConfig(num_heads=32))
    mamba, mamba2 = (MIXERS[name](large) for name in ("mamba", "mamba2"))
    assert isinstance(mamba, Mamba)
    assert isinstance(mamba2, Mamba2)
    for bias in (mamba.gates.bias, mamba2.step_bias):
        step = F.softplus(bias)
        assert 1e-3 <= step.min() < 3e-3
        assert 3e-2 < step.max() <= 0.1 + 1e-6
    assert torch.allclose(mamba.rate_log.exp(), torch.arange(1.0, 17).expand(256, 16))
    assert 1 <= mamba2.rate_log.exp().min() < 4 < 13 < mamba2.rate_log.exp().max() <= 16
    gated = MIXERS["gated-deltanet"](large)
    assert isinstance(gated, HeadMemory)
    assert gated.rate_log.isfinite().all()


def test_a_preset_has_systems_with_the_authors_widths() -> None:
    widths = {
        "linear": (2, 32, 32), "retnet": (2, 64, 32), "gla": (2, 32, 16), "mamba2": (4, 32, 128),
        "deltanet": (2, 32, 32), "gated-deltanet": (2, 48, 24), "longhorn": (2, 64, 16),
        "mamba": (128, 16),
    }  # fmt: skip
    for name, shape in widths.items():
        mixer: Any = MIXERS[name](replace(PRESETS["tiny"], mixer=name))
        assert mixer.shapes == (shape,), name
    slots: Any = MIXERS["gsa"](replace(PRESETS["tiny"], mixer="gsa"))
    assert slots.shapes == ((2, 32, 32), (2, 32, 32))
