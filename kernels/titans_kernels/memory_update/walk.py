"""Goes through the chunks in order, with a backward of its own.

R rows times heads, N chunks, C tokens in a chunk, D width of a head, L layers, G gates per head.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titans_kernels.memory_update.chunk import Coefficients, Inputs, Layers, advance, query, write
from titans_kernels.memory_update.chunk_backward import chunk_backward
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    Weights,
)

KEEP_ALL_BYTES = 256 * 2**20
"""Up to this size the states of all chunk starts are kept for the backward; else every sqrt(N)-th."""

State = tuple[Layers, Layers, Layers]
"""Memory, memory at the chunk's start, surprise; [R, out, in] per layer."""

GradientState = tuple[Layers, Layers | None, Layers]
"""Gradients by a State; None where the memory at the chunk's start has none yet."""


class Layout(NamedTuple):
    """Where in the grid documents and chunks begin."""

    opens: Tensor  # Bool[B, N]: the row writes in this chunk, from its first token on
    resets: Tensor | None  # Bool[B, N]: a document begins with this chunk


def walk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Coefficients,
    initial: InitialWeights,
    norm: Norm | None,
    rule: UpdateRule,
    layout: Layout,
    state: MemoryState,
    start: MemoryState,
) -> tuple[Tensor, Weights, Weights, Weights]:
    """Outputs [N, R, C, D] for q, k, v [N, R, C, D], then memory, chunk memory and surprise at the end."""
    batch, heads = state.memory[0].shape[:2]

    def rows(x: Tensor) -> Tensor:
        return x.expand(batch, heads, *x.shape[-2:]).flatten(0, 1)

    layers = len(initial)
    base = [rows(w) for w in initial] if rule.forget_toward == "initial" else []
    affine = [rows(part[:, None]) for part in norm] if norm is not None else []
    states = [rows(w) for part in (*state[:3], start.memory, start.surprise) for w in part]
    opens = layout.opens.repeat_interleave(heads, 0)[..., None, None]  # [R, N, 1, 1]
    resets = None
    if layout.resets is not None:
        resets = layout.resets.repeat_interleave(heads, 0)[..., None, None]
    flat = Walk.apply(rule, layers, opens, resets, q, k, v, *gates, *states, *base, *affine)
    y, *ends = flat
    parts = [w.unflatten(0, (batch, heads)) for w in ends]
    return y, *(tuple(parts[i * layers : (i + 1) * layers]) for i in range(3))


class Walk(torch.autograd.Function):
    """The loop over chunks. The backward recomputes each chunk from the state it began with."""

    @staticmethod
    def forward(
        ctx: Any,
        rule: UpdateRule,
        layers: int,
        opens: Tensor,
        resets: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        call = Call(rule, layers, opens, resets, tensors)
        state = call.first_state()
        every = interval(len(call.q), state) if any(ctx.needs_input_grad) else len(call.q) + 1
        outputs: Layers = []
        kept: Layers = []
        for n in range(len(call.q)):
            if n % every == 0:
                kept.extend(tensor for part in state for tensor in part)
            y, state = call.step(n, state)
            outputs.append(y)
        memory, chunk_memory, surprise = state
        ctx.call = (rule, layers, every, len(tensors))
        ctx.save_for_backward(opens, resets, *tensors, *kept)
        # An output must not be an input: a carried state may pass through unchanged.
        ends = [w.clone() if any(w is x for x in tensors) else w for w in memory + surprise]
        held = [w.clone() for w in chunk_memory]
        return torch.stack(outputs), *ends[:layers], *held, *ends[layers:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule, layers, every, count = ctx.call
        opens, resets, *saved = ctx.saved_tensors
        call = Call(rule, layers, opens, resets, saved[:count])
        kept = saved[count:]
        dy = grads[0]
        d_memory, d_chunk, d_surprise = (
            [g.clone() for g in grads[1 + i * layers :][:layers]] for i in range(3)
        )
        d_state: GradientState = (d_memory, d_chunk, d_surprise)
        total = Gradients(call)
        # Called under autocast, the products of a backward would be in its dtype.
        with torch.autocast(dy.device.type, enabled=False):
            for first in reversed(range(0, len(call.q), every)):
                parts = kept[first // every * 3 * layers :][: 3 * layers]
                memory, held, surprise = (list(parts[i * layers :][:layers]) for i in range(3))
                states: list[State] = [(memory, held, surprise)]
                for n in range(first, min(first + every, len(call.q)) - 1):
                    states.append(call.step(n, states[-1], read=False)[1])
                for n in reversed(range(first, first + len(states))):
                    d_state = total.step(n, states.pop(), dy[n], d_state)
        return None, None, None, None, *total.result(d_state)


def interval(chunks: int, state: State) -> int:
    size = chunks * sum(w.numel() * w.element_size() for part in state[::2] for w in part)
    return 1 if size <= KEEP_ALL_BYTES else math.isqrt(chunks - 1) + 1


class Call:
    """The tensors of one call of `Walk`, by name."""

    def __init__(
        self,
        rule: UpdateRule,
        layers: int,
        opens: Tensor,
        resets: Tensor | None,
        tensors: Sequence[Tensor],
    ) -> None:
        self.rule, self.layers, self.opens, self.resets = rule, layers, opens, resets
        self.q, self.k, self.v = tensors[:3]
        self.gates = Coefficients(*tensors[3:9])
        groups = [list(tensors[9 + i * layers :][:layers]) for i in range(6)]
        self.memory, self.chunk_memory, self.surprise = groups[:3]
        self.start_memory, self.start_surprise = groups[3:5]
        self.base = groups[5] if rule.forget_toward == "initial" else None
        affine = tensors[9 + (5 if self.base is None else 6) * layers :]
        self.affine = (affine[0], affine[1]) if affine else None
        self.all_open = opens.flatten(2).all(0)[:, 0].tolist()
        self.any_reset = None if resets is None else resets.flatten(2).any(0)[:, 0].tolist()

    def first_state(self) -> State:
        return self.memory, self.chunk_memory, self.surprise

    def inputs(self, n: int) -> Inputs:
        gates = Coefficients(*(x[n] for x in self.gates))
        return Inputs(self.q[n], self.k[n], self.v[n], gates, self.base, self.affine, self.rule)

    def enter(self, n: int, state: State) -> State:
        """The state with which chunk n begins: restored where a document does."""
        memory, chunk_memory, surprise = state
        if self.resets is not None and self.any_reset is not None and self.any_reset[n]:
            fresh = self.resets[:, n]
            memory = where(fresh, self.start_memory, memory)
            surprise = where(fresh, self.start_surprise, surprise)
        held = memory if self.all_open[n] else where(self.opens[:, n], memory, chunk_memory)
        return memory, held, surprise

    def step(self, n: int, state: State, read: bool = True) -> tuple[Tensor, State]:
        memory, held, surprise = self.enter(n, state)
        chunk = self.inputs(n)
        keys = write(chunk, held)
        y = query(chunk, memory, surprise, keys)[0] if read else chunk.q
        memory, surprise = advance(chunk, memory, surprise, keys)
        return y, (memory, held, surprise)


def where(condition: Tensor, chosen: Layers, other: Layers) -> Layers:
    return [torch.where(condition, a, b) for a, b in zip(chosen, other, strict=True)]


class Gradients:
    """Collects the gradients of a call's tensors, chunk by chunk from the last to the first."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.q, self.k, self.v = (torch.empty_like(x) for x in (call.q, call.k, call.v))
        self.gates = Coefficients(*(torch.zeros_like(x) for x in call.gates))
        self.base = None if call.base is None else [torch.zeros_like(w) for w in call.base]
        self.start: tuple[Layers, Layers] = (
            [torch.zeros_like(w) for w in call.start_memory],
            [torch.zeros_like(w) for w in call.start_surprise],
        )
        self.affine = [torch.zeros_like(x) for x in call.affine or ()]

    def step(self, n: int, state: State, dy: Tensor, d_state: GradientState) -> GradientState:
        """Gradients by the state before chunk n, from those by its output and by the state after."""
        call = self.call
        memory, held, surprise = call.enter(n, state)
        chunk = call.inputs(n)
        keys = write(chunk, held)
        _, queries = query(chunk, memory, surprise, keys, slopes=True)
        d_memory, d_chunk, d_surprise = d_state
        gates = Coefficients(*(x[n] for x in self.gates))
        self.q[n], self.k[n], self.v[n], d_held = chunk_backward(
            chunk, memory, surprise, keys, queries,
            dy, d_memory, d_surprise, gates, self.base, self.affine,
        )  # fmt: skip
        if d_chunk is not None:
            for d, part in zip(d_held, d_chunk, strict=True):
                d += part
        opens = None if call.all_open[n] else call.opens[:, n]
        for d, part in zip(d_memory, d_held, strict=True):
            d += part if opens is None else part * opens
        d_chunk = None if opens is None else [d * ~opens for d in d_held]
        if call.resets is not None and call.any_reset is not None and call.any_reset[n]:
            fresh = call.resets[:, n]
            for start, after in zip(self.start, (d_memory, d_surprise), strict=True):
                for d, w in zip(start, after, strict=True):
                    d += w * fresh
                    w *= ~fresh
        return d_memory, d_chunk, d_surprise

    def result(self, d_state: GradientState) -> list[Tensor]:
        d_memory, d_chunk, d_surprise = d_state
        if d_chunk is None:
            d_chunk = [torch.zeros_like(w) for w in d_memory]
        states = [d for part in (d_memory, d_chunk, d_surprise, *self.start) for d in part]
        return [self.q, self.k, self.v, *self.gates, *states, *(self.base or []), *self.affine]
