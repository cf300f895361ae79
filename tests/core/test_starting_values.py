"""Where a memory starts, and the defaults: what was measured, and what the paper says."""

import math

import pytest
import torch

from titans_core import PRESETS, AttentionConfig, BackboneConfig, HybridConfig, MemoryConfig
from titans_core.memory import Recall

GATES = [
    {},
    {"gates": "shared"},
    {"forget_per": "channel"},
    {"depth": 3, "expansion": 1, "forget": "zero"},
]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


START = {"step_size": 0.1 / 2, "momentum": sigmoid(1.0), "forget": sigmoid(-4.6)}
"""With these a rough model learned recall; a forget gate near one half has erased all memories."""


def fresh(**settings: object) -> Recall:
    return Recall(64, MemoryConfig(**{"num_heads": 2, **settings}), "a mixer's")  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", GATES, ids=str)
@torch.no_grad()
def test_a_token_of_zeros_meets_the_gates_starts(settings: dict[str, object]) -> None:
    recall = fresh(**settings)
    gates = recall._gates(torch.zeros(1, 1, 64))
    for (name, wanted), gate in zip(START.items(), gates, strict=True):
        assert torch.allclose(gate, torch.tensor(wanted), rtol=1e-5, atol=0), name
    assert START["forget"] == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("settings", GATES, ids=str)
@torch.no_grad()
def test_over_text_the_gates_stay_near_their_starts(settings: dict[str, object]) -> None:
    recall = fresh(**settings)
    # Of the size that a norm gives out.
    gates = recall._gates(torch.randn(8, 512, 64))
    for (name, wanted), gate in zip(START.items(), gates, strict=True):
        # Every gate by itself, so that none stands elsewhere and is outweighed by the others.
        means = gate.mean((0, 1))
        assert torch.allclose(means, torch.full_like(means, wanted), rtol=0.05), name
        assert gate.max() < 2 * wanted, name
        assert gate.min() > wanted / 2, name
        # They do depend on the token.
        assert (gate.std((0, 1)) > 1e-3 * wanted).all(), name


@torch.no_grad()
def test_gates_that_are_off_are_zero() -> None:
    recall = fresh(momentum=False, forget="none")
    step_size, momentum, forget = recall._gates(torch.randn(2, 3, 64))
    assert (step_size > 0).all()
    assert not momentum.any()
    assert not forget.any()


@torch.no_grad()
def test_the_initial_memory_keeps_a_keys_size() -> None:
    recall = fresh()
    first, second = recall.initial
    assert (first.shape, second.shape) == ((2, 128, 32), (2, 32, 128))
    assert first.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert second.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert (recall.norm_gain == 1).all()
    assert (recall.norm_bias == 0).all()


def test_the_memorys_defaults() -> None:
    assert MemoryConfig() == MemoryConfig(
        num_heads=4,
        depth=2,
        expansion=4,
        chunk_size=16,
        conv_size=4,
        max_step_size=0.1,
        gates="layer",
        momentum=True,
        forget="initial",
        forget_per="head",
        inner_steps=1,
        max_surprise=1.0,
    )


def test_the_hybrids_defaults_are_the_papers() -> None:
    assert HybridConfig() == HybridConfig(
        num_persistent=128,
        window=2048,
        segment_len=512,
        retrieve="aligned",
        num_retrieved=256,
        num_previous=0,
    )
    assert AttentionConfig() == AttentionConfig(
        num_heads=4, num_kv_heads=None, window=None, conv_size=0, rope_base=10_000.0
    )


@pytest.mark.parametrize(
    ("name", "layers", "dim", "heads"),
    [("170m", 12, 768, 16), ("340m", 24, 1024, 16), ("760m", 24, 1536, 16), ("1.3b", 18, 2048, 8)],
)
def test_the_papers_presets(name: str, layers: int, dim: int, heads: int) -> None:
    assert PRESETS[name] == BackboneConfig(
        num_layers=layers,
        dim=dim,
        memory=MemoryConfig(num_heads=dim // 64),
        attention=AttentionConfig(num_heads=heads),
        hybrid=HybridConfig(),
    )
