"""What the rival systems share: their state, the life of it, and the reading of a frozen one.

B batch, T time, H heads, G heads of queries and keys (H or 1), K, V widths of keys and values, S = size
of the convolution - 1 earlier inputs of it.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core.attend import next_position, places
from titans_core.checks import check_call, check_state, fingerprint, frozen_reset, pattern_of
from titans_core.convolution import CausalConvolution
from titans_kernels import linear_recurrence, selective_scan
from titans_kernels.memory_update.types import state_dtype


class RecurrentMemory(NamedTuple):
    parts: tuple[Float[Tensor, "B ..."], ...]
    position: Int[Tensor, " B"]  # tokens written since the row's start


class RecurrentState(NamedTuple):
    memory: RecurrentMemory
    conv_tail: Float[Tensor, "B S C"] | None
    settings: str  # fingerprint of the mixer's configuration


class Context(NamedTuple):
    """What a call says of its tokens."""

    mask: Bool[Tensor, "B T"] | None
    reset: Bool[Tensor, "B T"] | None
    write: bool
    at: Int[Tensor, "B T"]  # place in the document; of a frozen read, that of the next token


class Recurrent(nn.Module):
    """A mixer whose memory is written in one pass and starts at zero.

    A system says in `mix` what it makes of its input; `shapes` are those of its memory's parts in one
    row. `self.conv`, over `channels`, has its tail in the state.
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        *,
        name: str,
        shapes: tuple[tuple[int, ...], ...],
        channels: int,
        conv_size: int,
    ) -> None:
        super().__init__()
        self.shapes = shapes
        self.settings = fingerprint({"system": name, "shapes": shapes, "conv_size": conv_size})
        self.conv = CausalConvolution(channels, conv_size) if conv_size else None
        self.out = nn.Linear(inner, dim, bias=False)
        self._pattern = pattern_of(self.fresh_state(1))

    def mix(
        self, x: Float[Tensor, "B T dim"], state: RecurrentState, context: Context
    ) -> tuple[Float[Tensor, "B T inner"], tuple[Tensor, ...], Tensor | None]:
        """What `out` is given, the memory's parts, and the convolution's tail."""
        raise NotImplementedError

    def fresh_memory(self, batch: int) -> RecurrentMemory:
        like = self.out.weight
        dtype = state_dtype(like.dtype)
        parts = tuple(like.new_zeros(batch, *shape, dtype=dtype) for shape in self.shapes)
        return RecurrentMemory(parts, like.new_zeros(batch, dtype=torch.long))

    def fresh_state(self, batch: int) -> RecurrentState:
        """The state before the first token."""
        tail = None if self.conv is None else self.conv.fresh_tail(batch, self.out.weight)
        return RecurrentState(self.fresh_memory(batch), tail, self.settings)

    def restart_memory(self, state: RecurrentState) -> RecurrentState:
        """The state with memory and write position as before the first token."""
        return state._replace(memory=self.fresh_memory(len(state.memory.position)))

    def restart_caches(self, state: RecurrentState) -> RecurrentState:
        """The state with the convolution as before the first token; the memory goes on."""
        fresh = self.fresh_state(len(state.memory.position))
        return state._replace(conv_tail=fresh.conv_tail)

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: RecurrentState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], RecurrentState]:
        """Outputs and the state after them. `write=False` reads the memory as it is (frozen)."""
        check_call(x, self._beside(), mask, reset)
        if state is None:
            state = self.fresh_state(x.shape[0])
        else:
            check_state(state, self._pattern, x)
        if not write and reset is not None:
            raise frozen_reset()
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        position = state.memory.position
        token = places(position, x.shape[1], reset)
        at = token.at if write else position[:, None].expand_as(token.at)
        y, parts, tail = self.mix(x, state, Context(mask, reset, write, at))
        memory = state.memory
        if write:
            memory = RecurrentMemory(parts, next_position(position, token, mask))
        return self.out(y), RecurrentState(memory, tail, self.settings)

    def _beside(self) -> Tensor:
        """A weight as wide as the input."""
        return self.out.weight.mT

    def convolved(
        self, x: Float[Tensor, "B T C"], state: RecurrentState, context: Context
    ) -> tuple[Float[Tensor, "B T C"], Tensor | None]:
        """Through the convolution, where there is one, and its tail."""
        if self.conv is None or state.conv_tail is None:
            return x, None
        return self.conv(x, state.conv_tail, mask=context.mask, reset=context.reset)


def recur(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    state: Float[Tensor, "B H V K"],
    context: Context,
    **gates: Any,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H V K"]]:
    """`linear_recurrence` with the gates given, or a read of the state as it is."""
    if context.write:
        return linear_recurrence(
            q, k, v, mask=context.mask, reset=context.reset, state=state, **gates
        )
    with torch.autocast(q.device.type, enabled=False):
        y = q.to(state.dtype).movedim(2, 1) @ state.mT
        return y.movedim(1, 2).to(v.dtype), state


def scanned(
    x: Float[Tensor, "B T E"],
    step: Float[Tensor, "B T E"],
    rate: Float[Tensor, "E N"],
    writer: Float[Tensor, "B T N"],
    reader: Float[Tensor, "B T N"],
    state: Float[Tensor, "B E N"],
    context: Context,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """`selective_scan`, or a read of the state as it is."""
    if context.write:
        return selective_scan(
            x, step, rate, writer, reader, mask=context.mask, reset=context.reset, state=state
        )
    with torch.autocast(x.device.type, enabled=False):
        return (reader.to(state.dtype) @ state.mT).to(x.dtype), state


def gated_norm(
    y: Float[Tensor, "B T *H V"], gain: Float[Tensor, " V"], gate: Tensor | None = None
) -> Tensor:
    """RMS norm over the last axis, times SiLU of a gate of y's size."""
    y = F.rms_norm(y, y.shape[-1:], eps=1e-5) * gain
    return y if gate is None else y * F.silu(gate.view(y.shape))


def unflattened(
    x: Float[Tensor, "B T _"], *sizes: tuple[int, int]
) -> tuple[Float[Tensor, "B T H D"], ...]:
    """Cut into parts of so many heads and so wide."""
    parts = x.split([heads * width for heads, width in sizes], -1)
    return tuple(part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True))


def in_full_precision(linear: nn.Linear, x: Tensor) -> Tensor:
    """The map of a gate in its weights' precision: near 1 a decay has no digits left in bf16."""
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.to(linear.weight.dtype))
