"""Attention against one written out score by score; windows, groups of heads, prefixes, documents."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_mixers import SlowAttention
from small_mixers import inputs

from titans_core import Attention, AttentionConfig
from titans_core.attend import rotary_angles, rotate
from titans_core.attention import AttentionCore

CONFIGS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"window": 5},
    "one token": {"window": 1},
    "wide": {"window": 40},
    "grouped": {"num_heads": 4, "num_kv_heads": 2, "window": 6},
    "one head for all": {"num_heads": 4, "num_kv_heads": 1},
    "convolved": {"conv_size": 3, "window": 4, "rope_base": 100.0},
}


def core(config: dict[str, Any]) -> AttentionCore:
    return AttentionCore(16, AttentionConfig(**{"num_heads": 2, **config}), "a mixer's").double()


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_it_equals_a_softmax_over_explicit_scores(config: dict[str, Any], count: int) -> None:
    attention, x = core(config), inputs(1, 33)
    persistent = inputs(1, count, seed=1)[0] if count else None
    other = SlowAttention(attention.heads, attention.window, persistent)
    wanted = torch.stack([other.token(t) for t in x[0]])
    y, _ = attention(x, attention.fresh_state(1), persistent=persistent)
    assert torch.allclose(y[0], wanted, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 5])
def test_the_prefix_is_at_no_distance(window: int | None) -> None:
    """A token far in the stream sees the prefix as the first one does."""
    attention, x = core({"window": window}), inputs(1, 1)
    persistent = inputs(1, 3, seed=1)[0]
    near = attention.fresh_state(1)
    far = near._replace(position=near.position + 1_000_000)
    wanted, _ = attention(x, near, persistent=persistent)
    y, _ = attention(x, far, persistent=persistent)
    assert torch.allclose(y, wanted, rtol=0, atol=1e-9)
    assert not torch.allclose(y, attention(x, near)[0])


@torch.no_grad()
def test_only_distances_count_between_tokens() -> None:
    attention, x = core({"window": 5}), inputs(1, 20)
    near = attention.fresh_state(1)
    far = near._replace(position=near.position + 1_000_000)
    assert torch.allclose(attention(x, near)[0], attention(x, far)[0], rtol=0, atol=1e-8)


@given(data=st.data())
@settings(max_examples=10)
def test_a_window_sees_so_many_tokens_and_no_more(data: st.DataObject) -> None:
    window, at = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 29))
    attention, x = core({"window": window}), inputs(1, 30)
    changed = x.clone()
    changed[:, at] += 1
    y, got = (attention(z, attention.fresh_state(1))[0] for z in (x, changed))
    seen = [t for t in range(30) if not torch.equal(y[:, t], got[:, t])]
    assert seen == list(range(at, min(at + window, 30)))


def test_blocks_beyond_the_end_have_finite_gradients() -> None:
    """The last block of a window is filled up with tokens that see nothing."""
    attention = core({"window": 5})
    x = inputs(2, 23).requires_grad_()
    y, state = attention(x, attention.fresh_state(2))
    (y.square().sum() + state.keys.square().sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_a_rotation_is_one_of_complex_numbers() -> None:
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    at = torch.randint(0, 1000, (2, 7))
    angles = at[..., None, None] * 500.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    z = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angles)
    turned = rotate(x, rotary_angles(at, 8, 500.0))
    assert torch.allclose(turned, torch.cat([z.real, z.imag], -1), rtol=0, atol=1e-10)


def test_far_places_keep_their_precision_in_float32() -> None:
    at = torch.tensor([[1_000_003]])
    x = torch.randn(1, 1, 1, 8)
    exact = rotate(x.double(), rotary_angles(at, 8, 10_000.0))
    assert torch.allclose(rotate(x, rotary_angles(at, 8, 10_000.0)).double(), exact, atol=1e-6)


@torch.no_grad()
def test_the_cache_of_a_window_holds_what_the_next_token_sees() -> None:
    attention = Attention(16, AttentionConfig(num_heads=2, window=5)).double()
    _, state = attention(inputs(2, 23))
    assert state.keys.shape[1] == state.values.shape[1] == 4
    assert state.at.tolist() == [[19, 20, 21, 22]] * 2
    _, state = attention(inputs(2, 23)[:, :2])
    assert state.at.tolist() == [[0, 1]] * 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_heads": 4, "num_kv_heads": 3}, "must divide attention.num_heads = 4"),
        ({"conv_size": 1}, "must be 0 or at least 2"),
        ({"window": 0}, "at least 1 token"),
        ({"window": 2, "conv_size": 3}, "no less than attention.conv_size"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AttentionConfig(**config)


def test_a_width_of_odd_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of twice attention.num_heads"):
        Attention(18, AttentionConfig(num_heads=2))
