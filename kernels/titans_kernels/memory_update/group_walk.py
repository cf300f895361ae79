"""Goes through the chunks in groups, with a backward of its own: one inner step, forgetting per head.

N chunks, R rows times heads, C tokens in a chunk, D width of a head, A and B sides of a pair, L layers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titans_kernels.memory_update import walk as general
from titans_kernels.memory_update.call import Layout
from titans_kernels.memory_update.coefficients import shares_of
from titans_kernels.memory_update.given import Given, Layers, halves, pair_up, turned
from titans_kernels.memory_update.group import Group
from titans_kernels.memory_update.keys import Place
from titans_kernels.memory_update.room import Room
from titans_kernels.memory_update.types import InitialWeights, MemoryState, Norm, UpdateRule

GROUP_BYTES = 32 * 2**20
"""A group has as many chunks as leave about so much behind them, and at least one."""


def group_walk(
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
    """Outputs [N, R, C, D] for q, k, v [N, R, C, D] and gates [N, R, G, C], and the state at the end."""
    batch, heads = state.memory[0].shape[:2]
    layers = len(initial)

    def rows(x: Tensor) -> Tensor:
        return x.expand(batch, heads, *x.shape[-2:]).flatten(0, 1)

    def pairs(a: MemoryState) -> Layers:
        both = enumerate(zip(a.memory, a.surprise, strict=True))
        return [pair_up(layer, rows(w), rows(s)) for layer, (w, s) in both]

    starts = [] if layout.resets is None or start is None else pairs(start)
    live = layout.written[:, None]
    step, momentum, forget = (gate.transpose(1, 2) for gate in gates)
    y, *ends = GroupWalk.apply(
        rule, layers, layout, q, k, v,
        torch.where(live, step, 0.0)[..., None], *shares_of(momentum, forget, live),
        *pairs(state), *(turned(i, rows(w)) for i, w in enumerate(state.chunk_memory)), *starts,
        *(
            turned(i, rows(w)).contiguous()
            for i, w in enumerate(initial)
            if rule.forget_toward == "initial"
        ),
        *(rows(part[:, None]) for part in norm or ()),
    )  # fmt: skip

    def weights(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(turned(i, w).unflatten(0, (batch, heads)) for i, w in enumerate(parts))

    memory, surprise = zip(*map(halves, ends[:layers]), strict=True)
    held = weights(ends[layers:])
    return y, MemoryState(weights(memory), held, weights(surprise), state.position)


class Groups:
    """The groups of one walk, and which of what they leave is kept for the backward."""

    def __init__(self, rule: UpdateRule, layout: Layout, given: Given) -> None:
        self.rule, self.layout, self.given = rule, layout, given
        chunks, rows, tokens, _ = given.q.shape
        # A token leaves about three times a hidden layer, its outputs and a row of scores.
        sides = sum(a + 1.5 * b + tokens for _, a, b in (pair.shape for pair in given.memory))
        pairs = sum(pair.numel() for pair in given.memory) * given.q.element_size()
        left = int(rows * tokens * sides * given.q.element_size())
        size = min(chunks, max(1, GROUP_BYTES // (pairs + left)))
        self.spans = [(at, min(at + size, chunks)) for at in range(0, chunks, size)]
        starts = len(self.spans) * pairs
        self.keep_all = starts + chunks * left <= general.KEEP_ALL_BYTES
        self.work = Room(given.q)
        self.every = 1 if starts <= general.KEEP_ALL_BYTES else math.isqrt(len(self.spans) - 1) + 1

    def group(self, index: int, held: Layers, left: Room | None = None) -> Group:
        """`left` is where what the backward may want is written."""
        first, last = self.spans[index]
        at = Place(self.layout, first)
        rooms = (left or self.work, self.work)
        return Group(self.given.chunks(first, last), self.rule, at, held, *rooms)

    def kept(self, index: int, pairs: Layers, held: Layers) -> list[Tensor]:
        """The state before a group, if it is one of every sqrt(N)-th."""
        if index % self.every:
            return []
        # Where all rows open, nobody asks for the memory held before.
        asked = not self.layout.all_open[self.spans[index][0]]
        return [x.clone() for x in (*(held if asked else []), *pairs)]

    def again(self, index: int, kept: list[Tensor]) -> Iterator[tuple[Group, Layers]]:
        """The groups from `index`, of which this was kept, to the next such, and the pairs of their chunks.

        From the last to the first.
        """
        layers = len(self.given.memory)
        asked = not self.layout.all_open[self.spans[index][0]]
        held, rest = (kept[:layers], kept[layers:]) if asked else (self.given.held, kept)
        starts = [(held, rest[:layers])]
        last = min(index + self.every, len(self.spans)) - 1
        for between in range(index, last):
            held, pairs = starts[-1]
            pairs = [pair.clone() for pair in pairs]
            starts.append((self.group(between, held).forward(pairs, read=False), pairs))
        for between in reversed(range(index, last + 1)):
            held, pairs = starts.pop()
            group = self.group(between, held)
            slots = [
                self.work.take(f"slots {layer}", len(group.given.q), *pair.shape)
                for layer, pair in enumerate(pairs)
            ]
            if self.keep_all:
                group.restore(rest[layers:])
                group.refill(pairs, slots)
            else:
                group.forward([pair.clone() for pair in pairs], slots)
            yield group, slots


class GroupWalk(torch.autograd.Function):
    """The loop over groups. The backward takes what a group left, or makes it again."""

    @staticmethod
    def forward(
        ctx: Any, rule: UpdateRule, layers: int, layout: Layout, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        given = Given.of(tensors, layers, rule, layout)
        groups = Groups(rule, layout, given)
        keep = any(ctx.needs_input_grad)
        kept: list[list[Tensor]] = []
        y, held = torch.empty_like(given.q), given.held
        pairs = [pair.clone() for pair in given.memory]
        for index, (first, last) in enumerate(groups.spans):
            left = Room(y) if keep and groups.keep_all else None
            group = groups.group(index, held, left)
            begun = groups.kept(index, pairs, held) if keep else []
            held = group.forward(pairs)
            y[first:last] = group.outputs()
            kept.append([*begun, *group.left()] if left else begun)
        ctx.call = (rule, layout, layers, len(tensors), [len(part) for part in kept])
        ctx.save_for_backward(*tensors, *(x for part in kept for x in part))
        return y, *pairs, *held

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *d_ends: Tensor) -> tuple[Tensor | None, ...]:
        rule, layout, layers, count, counts = ctx.call
        saved = ctx.saved_tensors
        tensors, rest = saved[:count], list(saved[count:])
        given = Given.of(tensors, layers, rule, layout)
        groups = Groups(rule, layout, given)
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        kept = [rest[end - size : end] for end, size in zip(ends, counts, strict=True)]
        # Those by q, k and v are written, all others added to.
        zeros = [torch.zeros_like(x) for x in tensors[3:]]
        total = Given.of([*map(torch.empty_like, tensors[:3]), *zeros], layers, rule, layout)
        d_pairs = [d.contiguous().clone() for d in d_ends[:layers]]
        d_held: Layers | None = list(d_ends[layers:])
        # Called under autocast, the products of a backward would be in its dtype.
        with torch.autocast(dy.device.type, enabled=False):
            for index in reversed(range(0, len(counts), groups.every)):
                for group, slots in groups.again(index, kept[index]):
                    first = group.at.first
                    last = first + len(group.given.q)
                    d_held = group.backward(
                        dy[first:last], slots, d_pairs, d_held, total.chunks(first, last)
                    )
        total = total._replace(memory=d_pairs, held=d_held or total.held)
        return None, None, None, *total.flat()
