"""A group of chunks: forward chunk by chunk, back over all its queries at once, then chunk by chunk.

N chunks of the group, R rows times heads, C tokens in a chunk, A and B sides of a pair.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from titans_kernels.memory_update.given import Given, Layers
from titans_kernels.memory_update.keys import Keys, KeyWalk, Place, empty_keys
from titans_kernels.memory_update.keys_backward import KeyWalkBack
from titans_kernels.memory_update.network import activate_backward_into, activate_into
from titans_kernels.memory_update.queries import Queries, QueryWalk, outputs, read_backward
from titans_kernels.memory_update.room import Room
from titans_kernels.memory_update.types import UpdateRule


class Group:
    """`held` is the memory at the start of the chunk before it."""

    def __init__(
        self,
        given: Given,
        rule: UpdateRule,
        at: Place,
        held: Layers,
        left: Room,
        work: Room,
    ) -> None:
        self.given, self.rule, self.at, self.held = given, rule, at, held
        self.rooms = (left, work)

    def forward(self, pairs: Layers, slots: Layers | None = None, read: bool = True) -> Layers:
        """The memory held after; `pairs` [R, 2 A, B] go on to the group's end, in place.

        Into slots [N, R, 2 A, B] go the pairs that each chunk begins with.
        """
        self.keys = empty_keys(self.given, pairs, self.rule, *self.rooms)
        walk = KeyWalk(self.given, self.keys, self.rule, self.rooms[1])
        queries = QueryWalk(self.given, self.keys, self.rule, *self.rooms) if read else None
        held = self.held
        for n in range(len(self.given.q)):
            walk.restart(n, self.at, pairs)
            held = walk.hold(n, self.at, pairs, held)
            walk.write(n, walk.matrices(held))
            if queries is not None:
                queries.read(n, pairs)
            if self.at.asks(n + 1):
                held = [w.clone() for w in held]
            for slot, pair in zip(slots or [], pairs, strict=False):
                slot[n] = pair
            walk.advance(n, pairs, pairs)
        if queries is not None:
            self.queries = queries.found
        return held

    def outputs(self) -> Tensor:
        """f(M_t; q_t) for every token of the group [N, R, C, D]."""
        return outputs(self.given, self.queries.sums[-1], self.rule)

    def left(self) -> list[Tensor]:
        """What the backward wants of the way forward."""
        keys, queries = self.keys, self.queries
        ends = [keys.errors[-1], *keys.clamps]
        parts = (keys.sums, keys.backs, ends, *queries)
        return [x for part in parts for x in part]

    def restore(self, left: Sequence[Tensor]) -> None:
        """From what `left` gave."""
        layers, rest = len(self.given.memory), list(left)

        def take(count: int) -> Layers:
            taken = rest[:count]
            del rest[:count]
            return taken

        sums, backs = take(layers), take(layers - 1)
        (error,) = take(1)
        clamps = take(0 if self.rule.max_surprise is None else layers)
        self.queries = Queries(take(layers), take(layers - 1), take(layers))
        inputs, errors = [self.given.k], []
        activation, work = self.rule.activation, self.rooms[1]
        for i, (z, back) in enumerate(zip(sums, backs, strict=False)):
            x, d = (work.take(f"{name} {i}", *z.shape) for name in ("inputs", "errors"))
            inputs.append(activate_into(x, z, activation))
            errors.append(activate_backward_into(d, back, z, activation))
        self.keys = Keys(
            sums=sums,
            inputs=inputs,
            backs=backs,
            errors=[*errors, error],
            clamps=clamps,
            weights=[
                -self.given.gate(layer).step * (clamps[layer] if clamps else 1)
                for layer in range(layers)
            ],
        )

    def refill(self, pairs: Layers, slots: Layers) -> None:
        """Fills the slots, from the pairs before the group and what was restored."""
        walk = KeyWalk(self.given, self.keys, self.rule, self.rooms[1])
        states = [list(chunk) for chunk in zip(*(slot.unbind(0) for slot in slots), strict=True)]
        for target, pair in zip(states[0], pairs, strict=True):
            target.copy_(pair)
        walk.restart(0, self.at, states[0])
        for n, (before, after) in enumerate(pairwise(states)):
            walk.advance(n, before, after)
            walk.restart(n + 1, self.at, after)

    def backward(
        self, dy: Tensor, slots: Layers, d_pairs: Layers, d_held: Layers | None, total: Given
    ) -> Layers | None:
        """Gradient by the held memory before the group, from that after it; by the pairs, in place.

        The slots hold the pairs of every chunk.
        """
        work = self.rooms[1]
        found = read_backward(
            self.given, self.keys, self.queries, slots, dy, self.rule, total, work
        )
        walk = KeyWalk(self.given, self.keys, self.rule, work)
        back = KeyWalkBack(walk, self.keys, found, total, work)
        holds, held = [], self.held
        for n in range(len(dy)):
            held = walk.hold(n, self.at, [slot[n] for slot in slots], held)
            holds.append(held)
        return back.run(self.at, slots, holds, d_pairs, d_held)
