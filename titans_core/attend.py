"""Attention on tensors: rotary positions, sliding windows, and prefixes at no distance.

B batch, T time, S keys, N prefix tokens, H heads, K heads of keys and values, D width of a head.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

EMPTY = -(2**40)
"""The place of a cached token where there is none: before everything."""

Prefix = tuple[Float[Tensor, "N K D"], Float[Tensor, "N K D"]]
"""Keys and values of tokens that everyone sees."""


class Queries(NamedTuple):
    turned: Float[Tensor, "B T H D"]  # by their places
    plain: Float[Tensor, "B T H D"]


def attend(
    q: Queries,
    k: Float[Tensor, "B S K D"],
    v: Float[Tensor, "B S K D"],
    seen: Bool[Tensor, "B T S"] | None = None,
    prefix: Prefix | None = None,
) -> Float[Tensor, "B T H D"]:
    """Softmax attention over the keys that each token sees; without `seen`, over those up to its own.

    Scores against the prefix are those of queries and keys that were not turned, so that its distance
    does not grow with the text; one softmax takes both.
    """
    width, turned = q.turned.shape[-1], q.turned
    if prefix is not None:
        # Twice as wide: what was turned meets the text, what was not meets the prefix.
        before = [part.expand(len(k), *part.shape) for part in prefix]
        turned = torch.cat([q.turned, q.plain], -1)
        k = torch.cat([F.pad(before[0], (width, 0)), F.pad(k, (0, width))], 1)
        v = F.pad(torch.cat([before[1], v], 1), (0, width))
        assert seen is not None
        seen = F.pad(seen, (before[0].shape[1], 0), value=True)
    y = F.scaled_dot_product_attention(
        turned.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if seen is None else seen[:, None],
        is_causal=seen is None,
        scale=width**-0.5,
        enable_gqa=turned.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)[..., :width]


class Places(NamedTuple):
    """Where tokens stand. The index counts a call's tokens, the cached ones before it from -S to -1."""

    index: Int[Tensor, "*B T"]  # type: ignore[assignment]
    at: Int[Tensor, "*B T"]  # place in the document
    first: Int[Tensor, "*B T"] | None = None  # index at which the document began


def visible(query: Places, key: Places, window: int | None) -> Bool[Tensor, "*B T S"]:
    """What each token may see: its document, up to itself, within the window."""
    assert query.first is not None
    index, at = key.index[..., None, :], key.at[..., None, :]
    seen = (index <= query.index[..., None]) & (index >= query.first[..., None]) & (at >= 0)
    if window is not None:
        seen = seen & (query.at[..., None] - at < window)
    # Padding must see something, or its softmax is NaN; nobody reads it.
    return seen | (index == query.index[..., None])


def attend_causally(
    q: Queries,
    k: Float[Tensor, "B S K D"],
    v: Float[Tensor, "B S K D"],
    query: Places,
    key: Places,
    window: int | None = None,
    prefix: Prefix | None = None,
) -> Float[Tensor, "B T H D"]:
    """Attention of the last T of S tokens; by blocks of a window where there are more than that."""
    time = query.index.shape[1]
    if window is None or time <= window:
        return attend(q, k, v, visible(query, key, window), prefix)
    blocks = -(-time // window)
    extra = blocks * window - time
    before = window - (k.shape[1] - time)

    def queries(x: Tensor, fill: int = 0) -> Tensor:
        """[B, T, ...] to [B blocks, window, ...]."""
        x = pad_time(x, 0, extra, fill)
        return x.unflatten(1, (blocks, window)).flatten(0, 1)

    def keys(x: Tensor, fill: int = 0) -> Tensor:
        """[B, S, ...] to [B blocks, 2 window, ...]: each block's own tokens and those before."""
        x = pad_time(x, before, extra, fill)
        return x.unfold(1, 2 * window, window).movedim(-1, 2).flatten(0, 1)

    batch, device = k.shape[0], k.device
    index = torch.arange(-window, time + extra, device=device).expand(batch, -1)
    assert query.first is not None
    # Counted on past the end, where a token of the filled block sees itself.
    own = index[:, window:].unflatten(1, (blocks, window)).flatten(0, 1)
    seen = visible(
        Places(own, queries(query.at), queries(query.first)),
        Places(index.unfold(1, 2 * window, window).flatten(0, 1), keys(key.at, EMPTY)),
        window,
    )
    blocked = Queries(queries(q.turned), queries(q.plain))
    y = attend(blocked, keys(k), keys(v), seen, prefix)
    return y.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :time]


def pad_time(x: Tensor, before: int, after: int, fill: int = 0) -> Tensor:
    return F.pad(x, (*(0, 0) * (x.ndim - 2), before, after), value=fill)


def places(position: Int[Tensor, " B"], time: int, reset: Bool[Tensor, "B T"] | None) -> Places:
    """Of each token of a call; documents begun before the call have `first` far below 0."""
    batch = position.shape[0]
    index = torch.arange(time, device=position.device).expand(batch, time)
    if reset is None or time == 0:
        return Places(index, position[:, None] + index, torch.full_like(index, EMPTY))
    first = index.where(reset, EMPTY).cummax(1).values
    at = torch.where(first >= 0, index - first, position[:, None] + index)
    return Places(index, at, first)


def next_position(
    position: Int[Tensor, " B"], query: Places, mask: Bool[Tensor, "B T"] | None
) -> Int[Tensor, " B"]:
    """The place of the token that comes next; padding does not count."""
    if query.index.shape[1] == 0:
        return position
    assert query.first is not None
    current = query.index >= query.first[:, -1:]
    written = current if mask is None else current & mask
    return torch.where(query.first[:, -1] >= 0, 0, position) + written.sum(1)


def rotary_angles(at: Int[Tensor, "B T"], width: int, base: float) -> Float[Tensor, "B T 1 half"]:
    # In float64: at a position of a million, float32 would be off by a tenth of a turn.
    exponents = torch.arange(0, width, 2, device=at.device, dtype=torch.float64) / width
    return (at[..., None].double() * base**-exponents)[:, :, None]


def rotate(x: Float[Tensor, "B T H D"], angles: Tensor) -> Float[Tensor, "B T H D"]:
    """Rotary position embedding: turns the pair (i, i + D/2) by its angle."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
