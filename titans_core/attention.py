"""Causal rotary attention with a cache. B batch, T time, S cached tokens, H heads, D width of a head."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core.convolution import CausalConvolution


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    num_heads: int = 4
    window: int | None = None  # tokens that a token attends to, itself among them; None for all
    conv_size: int = 0  # 0 for none
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"attention.num_heads must be at least 1: got {self.num_heads}.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention.window must be at least 1 token: got {self.window}.")
        if self.conv_size < 0 or self.conv_size == 1:
            raise ValueError(f"attention.conv_size must be 0 or at least 2: got {self.conv_size}.")


class AttentionState(NamedTuple):
    """The cache; it grows with what was fed unless the attention has a window."""

    keys: Float[Tensor, "B S H D"]
    values: Float[Tensor, "B S H D"]
    at: Int[Tensor, "B S"]  # position of each cached token; -1 where there is none
    position: Int[Tensor, " B"]
    conv_tail: Float[Tensor, "B R C"] | None


class Attention(nn.Module):
    """Maps [B, T, dim] to [B, T, dim]; a token sees itself and what came before in its document."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        if dim % (2 * config.num_heads):
            raise ValueError(
                "dim must be a multiple of twice attention.num_heads, since rotary positions turn "
                f"pairs, = {2 * config.num_heads}: got {dim}."
            )
        self.config = config
        self.shape = (config.num_heads, dim // config.num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = CausalConvolution(3 * dim, config.conv_size) if config.conv_size else None
        self.out = nn.Linear(dim, dim, bias=False)

    def fresh_state(self, batch: int) -> AttentionState:
        weight = self.qkv.weight
        empty = weight.new_zeros(batch, 0, *self.shape)
        position = torch.zeros(batch, dtype=torch.long, device=weight.device)
        tail = None if self.conv is None else self.conv.fresh_tail(batch, weight)
        return AttentionState(empty, empty, position[:, None][:, :0], position, tail)

    def restart_memory(self, state: AttentionState) -> AttentionState:
        """The same state: a cache is no memory."""
        return state

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: AttentionState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], AttentionState]:
        """Outputs and the state after them; a frozen read (`write=False`) is the same as any other."""
        if state is None:
            state = self.fresh_state(x.shape[0])
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        qkv, tail = self.qkv(x), state.conv_tail
        if self.conv is not None and tail is not None:
            qkv, tail = self.conv(qkv, tail, mask=mask, reset=reset)
        q, k, v = qkv.unflatten(-1, (3, *self.shape)).unbind(2)
        at, first = positions(state.position, x.shape[1], mask, reset)
        angles = rotary_angles(at, self.shape[1], self.config.rope_base)
        q, k = rotate(q, angles), rotate(k, angles)
        keys, values = (
            torch.cat([state.keys.to(k.dtype), k], 1),
            torch.cat([state.values.to(v.dtype), v], 1),
        )
        key_at = torch.cat([state.at, at if mask is None else at.where(mask, -1)], 1)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            **self._visible(state, at, first, key_at, plain=mask is None and reset is None),
        )
        cache = self._trim(keys, values, key_at, first, mask)
        after = next_position(state.position, first, mask)
        return self.out(y.transpose(1, 2).flatten(2)), AttentionState(*cache, after, tail)

    def _visible(
        self, state: AttentionState, at: Tensor, first: Tensor, key_at: Tensor, plain: bool
    ) -> dict:
        """What scaled_dot_product_attention needs so that each token sees only what it may."""
        window = self.config.window
        time, cached = at.shape[1], state.keys.shape[1]
        if plain and cached == 0 and (window is None or time <= window):
            return {"is_causal": True}
        index = torch.arange(cached + time, device=at.device)
        # `first` is where the document of token t began, as an index into cache and tokens.
        seen = (index <= index[cached:, None]) & (index >= (first + cached)[..., None])
        seen = seen & (key_at >= 0)[:, None]
        if window is not None:
            seen = seen & (at[..., None] - key_at[:, None] < window)
        # A padded token must see something, or its softmax is NaN; nobody reads it.
        seen = seen | (index == index[cached:, None])
        return {"attn_mask": seen[:, None]}

    def _trim(
        self, keys: Tensor, values: Tensor, at: Tensor, first: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache that the next token needs: of its document, and within the window."""
        cached = keys.shape[1] - first.shape[1]
        index = torch.arange(keys.shape[1], device=keys.device)
        if first.shape[1]:
            at = at.where(index >= (first[:, -1:] + cached), -1)
        if self.config.window is None:
            return keys, values, at
        if mask is not None:
            # Move padding out of the way, so that it does not push real tokens out of the window.
            order = (at >= 0).sort(dim=1, stable=True).indices
            at = at.gather(1, order)
            order = order[..., None, None].expand_as(keys)
            keys, values = keys.gather(1, order), values.gather(1, order)
        keep = max(keys.shape[1] - (self.config.window - 1), 0)
        return keys[:, keep:], values[:, keep:], at[:, keep:]


def positions(
    position: Tensor, time: int, mask: Tensor | None, reset: Tensor | None
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Each token's place in its document, and the index at which that document began (far below 0
    where it began before this call)."""
    batch = position.shape[0]
    index = torch.arange(time, device=position.device).expand(batch, time)
    if reset is None:
        return position[:, None] + index, torch.full_like(index, -(2**40))
    first = index.where(reset, -(2**40)).cummax(1).values if time else index
    return torch.where(first >= 0, index - first, position[:, None] + index), first


def next_position(position: Tensor, first: Tensor, mask: Tensor | None) -> Int[Tensor, " B"]:
    """The place of the token that comes next; padding does not count."""
    batch, time = first.shape
    if time == 0:
        return position
    index = torch.arange(time, device=position.device).expand(batch, time)
    current = index >= first[:, -1:]
    written = current if mask is None else current & mask
    return torch.where(first[:, -1] >= 0, 0, position) + written.sum(1)


def rotary_angles(at: Int[Tensor, "B T"], width: int, base: float) -> Float[Tensor, "B T 1 half"]:
    # In float64: at a position of a million, float32 would be off by a tenth of a turn.
    exponents = torch.arange(0, width, 2, device=at.device, dtype=torch.float64) / width
    return (at[..., None].double() * base**-exponents)[:, :, None]


def rotate(x: Float[Tensor, "B T H D"], angles: Tensor) -> Float[Tensor, "B T H D"]:
    """Rotary position embedding: turns the pair (i, i + D/2) by its angle."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
