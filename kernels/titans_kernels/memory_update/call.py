"""The tensors of one walk by name, and the walk's step over one chunk.

R rows times heads, N chunks, C tokens in a chunk, D width of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from titans_kernels.memory_update.chunk import Inputs, Layers, write_and_read
from titans_kernels.memory_update.coefficients import (
    ChannelCoefficients,
    Coefficients,
    channel_coefficients,
)
from titans_kernels.memory_update.types import UpdateRule

State = tuple[Layers, ...]
"""Memory, memory at the chunk's start, surprise, then memory and surprise of every inner step but the
last; [R, out, in] per layer."""


class Layout(NamedTuple):
    """Where in the grid documents and chunks begin."""

    opens: Tensor  # Bool[R, N, 1, 1]: the row writes in this chunk, from its first token on
    resets: Tensor | None  # Bool[R, N, 1, 1]: a document begins with this chunk
    written: Tensor  # Bool[N, R, C]
    all_open: list[bool]  # of each chunk: every row opens
    any_reset: list[bool]

    def chunk(self, n: int) -> "Layout":
        """The layout of chunk n alone."""
        one = slice(n, n + 1)
        return Layout(
            self.opens[:, one],
            None if self.resets is None else self.resets[:, one],
            self.written[one],
            self.all_open[one],
            self.any_reset[one],
        )


class Call:
    """One call of `Walk`: q, k, v and gates of all chunks; state, start and what chunks share.

    The gates are `Coefficients`, or with forgetting per channel, of which those would be too many to
    keep, step and momentum [N, R, G, C] and forget [N, R, D, C].
    """

    def __init__(
        self, rule: UpdateRule, layers: int, layout: Layout, tensors: Sequence[Tensor]
    ) -> None:
        self.rule, self.layers, self.layout = rule, layers, layout
        rest = list(tensors)

        def take(count: int) -> Layers:
            taken = rest[:count]
            del rest[:count]
            return taken

        self.q, self.k, self.v = take(3)
        self.gates = take(3 if rule.channel_forget else 6)
        self.state: State = tuple(take(layers) for _ in range(2 * rule.inner_steps + 1))
        starts = layers if layout.resets is not None else 0
        self.start_memory, self.start_surprise = take(starts), take(starts)
        self.base = take(layers) if rule.forget_toward == "initial" else None
        self.affine = (rest[0], rest[1]) if rest else None

    def inputs(self, n: int) -> Inputs:
        gates: Coefficients | ChannelCoefficients
        if self.rule.channel_forget:
            step, momentum, forget = (x[n] for x in self.gates)
            written, layers = self.layout.written[n], self.layers
            gates = channel_coefficients(step, momentum, forget, written=written, layers=layers)
        else:
            gates = Coefficients(*(x[n] for x in self.gates))
        return Inputs(self.q[n], self.k[n], self.v[n], gates, self.base, self.affine, self.rule)

    def enter(self, n: int, state: State) -> State:
        """The state with which chunk n begins: restored where a document does."""
        memory, held, surprise, *passes = state
        if self.layout.resets is not None and self.layout.any_reset[n]:
            fresh = self.layout.resets[:, n]
            memory = where(fresh, self.start_memory, memory)
            surprise = where(fresh, self.start_surprise, surprise)
        begun = [memory, *[memory, surprise] * (len(passes) // 2)]
        if not self.layout.all_open[n]:
            opens = self.layout.opens[:, n]
            begun = [where(opens, a, b) for a, b in zip(begun, (held, *passes), strict=True)]
        return memory, begun[0], surprise, *begun[1:]

    def step(self, n: int, state: State, read: bool = True) -> tuple[Tensor, State]:
        """Outputs of chunk n [R, C, D] and the state after it."""
        memory, held, surprise, *passes = self.enter(n, state)
        streams = [*zip(passes[::2], passes[1::2], strict=True), (memory, surprise)]
        y, after = write_and_read(self.inputs(n), held, streams, read)
        *before, (memory, surprise) = after
        return y, (memory, held, surprise, *(part for stream in before for part in stream))


def where(condition: Tensor, chosen: Layers, other: Layers) -> Layers:
    return [torch.where(condition, a, b) for a, b in zip(chosen, other, strict=True)]
