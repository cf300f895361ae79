"""Causal rotary attention as a layer, with a cache.

B batch, T time, S cached tokens, N prefix tokens, H heads, K heads of keys and values, D width of a head.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core.attend import (
    EMPTY,
    Places,
    Queries,
    attend,
    attend_causally,
    next_position,
    places,
    rotary_angles,
    rotate,
)
from titans_core.checks import check_call, check_numbers, check_state, fingerprint, pattern_of
from titans_core.convolution import CausalConvolution


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    num_heads: int = 4  # heads of queries
    num_kv_heads: int | None = None  # heads of keys and values, each for a group of heads
    window: int | None = None  # tokens that a token attends to, itself among them; None for all
    conv_size: int = 0  # tokens that the convolutions of q, k and v see; 0 for none
    rope_base: float = 10_000.0  # of the rotary positions

    def __post_init__(self) -> None:
        check_numbers(self, "attention.")
        if self.num_heads < 1:
            raise ValueError(f"attention.num_heads must be at least 1: got {self.num_heads}.")
        groups = self.num_kv_heads
        if groups is not None and (groups < 1 or self.num_heads % groups):
            raise ValueError(
                f"attention.num_kv_heads must divide attention.num_heads = {self.num_heads}: "
                f"got {groups}."
            )
        if self.conv_size < 0 or self.conv_size == 1:
            raise ValueError(f"attention.conv_size must be 0 or at least 2: got {self.conv_size}.")
        if self.window is not None and self.window < max(1, self.conv_size):
            raise ValueError(
                "attention.window must be at least 1 token and no less than attention.conv_size "
                f"= {self.conv_size}: got {self.window}."
            )
        if not 0 < self.rope_base < math.inf:
            raise ValueError(
                f"attention.rope_base must be positive and finite: got {self.rope_base}."
            )


class Heads(nn.Module):
    """Queries, keys and values of rotary attention, with an optional convolution over time."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        if dim % (2 * config.num_heads):
            raise ValueError(
                "dim must be a multiple of twice attention.num_heads, since rotary positions turn "
                f"pairs, = {2 * config.num_heads}: got {dim}."
            )
        self.width, self.rope_base = dim // config.num_heads, config.rope_base
        self.count, self.kv_count = config.num_heads, config.num_kv_heads or config.num_heads
        channels = (self.count + 2 * self.kv_count) * self.width
        self.qkv = nn.Linear(dim, channels, bias=False)
        self.conv = CausalConvolution(channels, config.conv_size) if config.conv_size else None

    def fresh_tail(self, batch: int) -> Tensor | None:
        return None if self.conv is None else self.conv.fresh_tail(batch, self.qkv.weight)

    def no_keys(self, batch: int) -> Float[Tensor, "B 0 K D"]:
        return self.qkv.weight.new_zeros(batch, 0, self.kv_count, self.width)

    def forward(
        self, x: Tensor, tail: Tensor | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q [B, T, H, D], k and v [B, T, K, D], none of them turned; the convolution's tail."""
        qkv = self.qkv(x)
        if self.conv is not None and tail is not None:
            qkv, tail = self.conv(qkv, tail, mask=mask, reset=reset)
        counts = [self.count, self.kv_count, self.kv_count]
        q, k, v = qkv.unflatten(-1, (-1, self.width)).split(counts, 2)
        return q, k, v, tail

    def keys_values(self, x: Float[Tensor, "*B N dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values [*B, N, K, D] of what is no part of the text: without convolution."""
        rows = self.qkv.weight[self.count * self.width :]
        k, v = F.linear(x, rows).unflatten(-1, (-1, self.width)).chunk(2, -2)
        return k, v

    def turn(self, x: Float[Tensor, "B T H D"], at: Int[Tensor, "B T"]) -> Tensor:
        """Rotated by its places."""
        return rotate(x, rotary_angles(at, self.width, self.rope_base))


class AttentionState(NamedTuple):
    """The cache; it grows with what was fed unless the attention has a window."""

    keys: Float[Tensor, "B S K D"]
    values: Float[Tensor, "B S K D"]
    at: Int[Tensor, "B S"]  # place of each cached token in its document, or EMPTY
    position: Int[Tensor, " B"]
    conv_tail: Float[Tensor, "B R C"] | None
    settings: str  # fingerprint of the mixer's configuration

    @property
    def cached(self) -> tuple[str, ...]:
        """The fields that hold a place for each cached token."""
        return ("keys", "values", "at")


class AttentionCore(nn.Module):
    """Attention before its output projection: [B, T, dim] to [B, T, dim], the heads side by side.

    `settings` is the fingerprint of the mixer that it stands in.
    """

    def __init__(self, dim: int, config: AttentionConfig, settings: str) -> None:
        super().__init__()
        self.settings, self.window = settings, config.window
        self.heads = Heads(dim, config)

    def fresh_state(self, batch: int) -> AttentionState:
        none = self.heads.no_keys(batch)
        position = torch.zeros(batch, dtype=torch.long, device=none.device)
        tail = self.heads.fresh_tail(batch)
        return AttentionState(none, none, position[:, None][:, :0], position, tail, self.settings)

    @property
    def most_cached(self) -> int | None:
        return None if self.window is None else self.window - 1

    def restart_caches(self, state: AttentionState) -> AttentionState:
        """The state with an empty cache; the position goes on."""
        return self.fresh_state(len(state.position))._replace(position=state.position)

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: AttentionState,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        persistent: Float[Tensor, "N dim"] | None = None,
    ) -> tuple[Float[Tensor, "B T dim"], AttentionState]:
        """`persistent` tokens are seen by every token, at no distance, and are not cached."""
        heads, time = self.heads, x.shape[1]
        q, k, v, tail = heads(x, state.conv_tail, mask, reset)
        query = places(state.position, time, reset)
        q = Queries(heads.turn(q, query.at), q)
        at = query.at if mask is None else query.at.where(mask, EMPTY)
        keys = torch.cat([state.keys.to(k.dtype), heads.turn(k, query.at)], 1)
        values = torch.cat([state.values.to(v.dtype), v], 1)
        at = torch.cat([state.at, at], 1)
        cached = keys.shape[1] - time
        index = torch.arange(-cached, time, device=x.device).expand(len(x), -1)
        prefix = None if persistent is None else heads.keys_values(persistent)
        plain = mask is None and reset is None and prefix is None and cached == 0
        if plain and (self.window is None or time <= self.window):
            y = attend(q, keys, values)
        else:
            y = attend_causally(q, keys, values, query, Places(index, at), self.window, prefix)
        cache = self._trim(keys, values, at, index, query, mask)
        after = next_position(state.position, query, mask)
        return y.flatten(2), AttentionState(*cache, after, tail, self.settings)

    def _trim(
        self,
        keys: Tensor,
        values: Tensor,
        at: Tensor,
        index: Tensor,
        query: Places,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache that the next token needs: of its document, and within the window.

        An empty place holds zeros, so that a state does not tell how it came about.
        """
        resets = query.first is not None and query.first.shape[1] > 0
        if query.first is not None and resets:
            at = at.where(index >= query.first[:, -1:], EMPTY)
        if mask is not None or resets:
            empty = (at == EMPTY)[..., None, None]
            keys, values = keys.masked_fill(empty, 0), values.masked_fill(empty, 0)
        if self.window is None:
            return keys, values, at
        if mask is not None:
            keys, values, at = gather_valid(keys, values, at)
        keep = max(keys.shape[1] - (self.window - 1), 0)
        if not keep:
            return keys, values, at
        # Copies: views would hold all that was read for as long as the state is kept.
        return keys[:, keep:].clone(), values[:, keep:].clone(), at[:, keep:].clone()


def gather_valid(keys: Tensor, values: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same cache with its empty places first, so that they do not push tokens out of it."""
    order = (at != EMPTY).sort(dim=1, stable=True).indices
    rows = order[..., None, None].expand_as(keys)
    return keys.gather(1, rows), values.gather(1, rows), at.gather(1, order)


class Attention(nn.Module):
    """Maps [B, T, dim] to [B, T, dim]; a token sees itself and what came before in its document."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.core = AttentionCore(dim, config, fingerprint(config))
        self._pattern = pattern_of(self.core.fresh_state(1))
        self.out = nn.Linear(dim, dim, bias=False)

    def fresh_state(self, batch: int) -> AttentionState:
        return self.core.fresh_state(batch)

    def restart_memory(self, state: AttentionState) -> AttentionState:
        """The same state: a cache is no memory."""
        return state

    def restart_caches(self, state: AttentionState) -> AttentionState:
        """The state with an empty cache; the position goes on."""
        return self.core.restart_caches(state)

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
        core = self.core
        check_call(x, self.out.weight, mask, reset)
        if state is None:
            state = self.fresh_state(x.shape[0])
        else:
            check_state(state, self._pattern, x, core.most_cached)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        y, state = core(x, state, mask=mask, reset=reset)
        return self.out(y), state
