"""Goes through the chunks in order, with a backward of its own.

R rows times heads, N chunks, C tokens in a chunk, D width of a head, L layers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titans_kernels.memory_update.call import Call, Layout, State
from titans_kernels.memory_update.gradients import Gradients, GradientState
from titans_kernels.memory_update.types import InitialWeights, MemoryState, Norm, UpdateRule

KEEP_ALL_BYTES = 256 * 2**20
"""Up to this size the states of all chunk starts are kept for the backward; else every sqrt(N)-th."""


def walk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor],
    initial: InitialWeights,
    norm: Norm | None,
    rule: UpdateRule,
    layout: Layout,
    state: MemoryState,
    start: MemoryState | None,
) -> tuple[Tensor, MemoryState]:
    """Outputs [N, R, C, D] for q, k, v [N, R, C, D], and the state at the end but for its position."""
    batch, heads = state.memory[0].shape[:2]
    layers = len(initial)

    def rows(x: Tensor) -> Tensor:
        return x.expand(batch, heads, *x.shape[-2:]).flatten(0, 1)

    parts = [*state[:3], *(part for stream in state.passes for part in stream)]
    if layout.resets is not None and start is not None:
        parts += [start.memory, start.surprise]
    flat = Walk.apply(
        rule, layers, layout, q, k, v, *gates,
        *(rows(w) for part in parts for w in part),
        *(rows(w) for w in initial if rule.forget_toward == "initial"),
        *(rows(part[:, None]) for part in norm or ()),
    )  # fmt: skip
    y, *ends = flat
    split = by_part([w.unflatten(0, (batch, heads)) for w in ends], layers)
    memory, held, surprise, *passes = map(tuple, split)
    streams = tuple(zip(passes[::2], passes[1::2], strict=True))
    return y, MemoryState(memory, held, surprise, state.position, streams)


class Walk(torch.autograd.Function):
    """The loop over chunks. The backward recomputes each chunk from the state it began with."""

    @staticmethod
    def forward(
        ctx: Any, rule: UpdateRule, layers: int, layout: Layout, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        call = Call(rule, layers, layout, tensors)
        state = call.state
        every = interval(len(call.q), state) if any(ctx.needs_input_grad) else len(call.q) + 1
        outputs: list[Tensor] = []
        kept: list[Tensor] = []
        for n in range(len(call.q)):
            if n % every == 0:
                kept.extend(tensor for part in state for tensor in part)
            y, state = call.step(n, state)
            outputs.append(y)
        ctx.call = (rule, layers, layout, every, len(tensors))
        ctx.save_for_backward(*tensors, *kept)
        # An output must not be an input: a carried state may pass through unchanged.
        ends = [
            w.clone() if part is state[1] or any(w is x for x in tensors) else w
            for part in state
            for w in part
        ]
        return torch.stack(outputs), *ends

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule, layers, layout, every, count = ctx.call
        saved = ctx.saved_tensors
        call = Call(rule, layers, layout, saved[:count])
        dy, *ends = grads
        d_state: GradientState = by_part([g.clone() for g in ends], layers)
        kept = by_part(saved[count:], layers)
        total, width = Gradients(call), len(call.state)
        # Called under autocast, the products of a backward would be in its dtype.
        with torch.autocast(dy.device.type, enabled=False):
            for first in reversed(range(0, len(call.q), every)):
                states: list[State] = [kept[first // every * width :][:width]]
                for n in range(first, min(first + every, len(call.q)) - 1):
                    states.append(call.step(n, states[-1], read=False)[1])
                for n in reversed(range(first, first + len(states))):
                    d_state = total.step(n, states.pop(), dy[n], d_state)
        return None, None, None, *total.result(d_state)


def by_part(tensors: Sequence[Tensor], layers: int) -> State:
    """Split after every `layers` tensors."""
    return tuple(list(tensors[i : i + layers]) for i in range(0, len(tensors), layers))


def interval(chunks: int, state: State) -> int:
    # The memory at a chunk's start is the memory as it was kept then.
    parts = (state[0], *state[2:])
    size = chunks * sum(w.numel() * w.element_size() for part in parts for w in part)
    return 1 if size <= KEEP_ALL_BYTES else math.isqrt(chunks - 1) + 1
