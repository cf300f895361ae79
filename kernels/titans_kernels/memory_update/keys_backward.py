"""The walk back from chunk to chunk, over what `keys.py` did. The folder's README derives it.

N chunks of a group, R rows times heads, C tokens in a chunk, D width of a head, A and B sides of a pair.
"""

import torch
from torch import Tensor

from titans_kernels.memory_update.given import Given, Layers, flat, halves
from titans_kernels.memory_update.keys import Keys, KeyWalk, Place
from titans_kernels.memory_update.network import curve_into, slope_into
from titans_kernels.memory_update.outer_backward import OuterBackward
from titans_kernels.memory_update.queries import QueryGradients
from titans_kernels.memory_update.room import Room


class KeyWalkBack:
    """Back over one group. All gradients but those by its pairs are added to `total`."""

    def __init__(
        self, walk: KeyWalk, keys: Keys, found: QueryGradients, total: Given, work: Room
    ) -> None:
        self.walk, self.keys, self.found, self.total = walk, keys, found, total
        self.layers = range(len(keys.sums))
        self.narrow, self.wide = ([x.unbind(0) for x in part] for part in found[3:])
        self.d_inputs, self.d_errors = ([x.unbind(0) for x in part] for part in found[:2])
        self.by_narrow = [torch.empty_like(x) for x in found.narrow]
        self.by_decay = [x.new_empty(*x.shape[:2], 2, 2) for x in found.wide]
        self.slopes, self.bends = [], []
        for i, (z, back) in enumerate(zip(keys.sums, keys.backs, strict=False)):
            slope, bend = (work.take(f"{name} {i}", *z.shape) for name in ("slope", "bend"))
            self.slopes.append(slope_into(slope, z, walk.rule.activation).unbind(0))
            # The slope's own derivative, with what it is multiplied by in D_{l-1}.
            curve_into(bend, z, walk.rule.activation).mul_(back)
            self.bends.append(bend.unbind(0))
        self.outer = OuterBackward(walk, keys)
        if walk.clamped:
            self.bites = [
                torch.where(clamp < 1, -weight, 0)
                for clamp, weight in zip(keys.clamps, keys.weights, strict=True)
            ]
            self.squares = [
                [
                    x.square().sum(-1, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny)
                    for x in part
                ]
                for part in (keys.inputs, keys.errors)
            ]

    def run(
        self, at: Place, slots: Layers, holds: list[Layers], d_pairs: Layers, d_held: Layers | None
    ) -> Layers | None:
        """Gradient by the held memory before the group, from that after it; by the pairs, in place."""
        for n in reversed(range(len(holds))):
            for layer in self.layers:
                self.advance(n, layer, slots[layer][n], d_pairs[layer])
            if self.walk.clamped:
                for layer in self.layers:
                    self.clamp(n, layer)
            d_held = self.enter(n, at, d_pairs, self.write(n, self.walk.matrices(holds[n])), d_held)
        self.finish()
        return d_held

    def advance(self, n: int, layer: int, pair: Tensor, d_pair: Tensor) -> None:
        """From the gradient by the pair after chunk n that by the pair before it, in place."""
        narrow, wide = self.walk.sides(n, layer)
        by_narrow = self.by_narrow[layer][n]
        torch.bmm(wide, d_pair.mT, out=by_narrow)
        by_wide = self.d_errors[0][n] if layer == 0 else self.d_inputs[layer][n]
        by_wide.baddbmm_(narrow, d_pair)
        if layer > 0:
            both = by_narrow.unflatten(-1, (2, -1)) * self.walk.parts(n, layer)
            self.d_errors[layer][n].add_(both.sum(-2))
        torch.bmm(flat(d_pair), flat(pair).mT, out=self.by_decay[layer][n])
        (d_memory, d_surprise), (retain, past, keep) = halves(d_pair), self.walk.decays[layer][n]
        d_surprise.mul_(keep).addcmul_(d_memory, past)
        d_memory.mul_(retain)
        d_pair.baddbmm_(self.narrow[layer][n].mT, self.wide[layer][n])

    def by_parts(self, layer: int, n: slice | int) -> Tensor:
        """Gradient by what the tokens are weighted with in the next pair [..., R, C, 2, 1]."""
        narrow = self.keys.inputs[0] if layer == 0 else self.keys.errors[layer]
        both = self.by_narrow[layer][n].unflatten(-1, (2, -1))
        return (both * narrow[n][..., None, :]).sum(-1, keepdim=True)

    def clamp(self, n: int, layer: int) -> None:
        """Where the clamp bites, it is max_surprise / (|D| |X|)."""
        by_weight = (self.by_parts(layer, n) * self.walk.ends[layer][n]).sum(-2)
        pull = by_weight.add_(self.found.weights[layer][n]).mul_(self.bites[layer][n])
        for d, x, square in (
            (self.d_inputs, self.keys.inputs, self.squares[0]),
            (self.d_errors, self.keys.errors, self.squares[1]),
        ):
            d[layer][n].addcmul_(x[layer][n], pull / square[layer][n])

    def write(self, n: int, weights: Layers) -> Layers:
        """Gradients by the memory that chunk n's gradients were taken at."""
        d_weights, d_sums = [], []
        # D_{l-1} = (D_l W_l) * slope, walked the other way.
        for layer in self.layers[1:]:
            d_error = self.d_errors[layer - 1][n]
            d_back = d_error * self.slopes[layer - 1][n]
            d_sums.append(d_error.mul_(self.bends[layer - 1][n]))
            d_weights.append(torch.bmm(self.walk.errors[layer][n].mT, d_back))
            self.d_errors[layer][n].baddbmm_(d_back, weights[layer].mT)
        d_sum = self.outer.step(n, self.d_errors[-1][n])
        for layer in reversed(self.layers[1:]):
            d_weights[layer - 1].baddbmm_(d_sum.mT, self.walk.inputs[layer][n])
            d_input = self.d_inputs[layer][n].baddbmm_(d_sum, weights[layer])
            d_sum = d_sums[layer - 1].addcmul_(d_input, self.slopes[layer - 1][n])
        self.d_inputs[0][n].baddbmm_(d_sum, weights[0].mT)
        return [torch.bmm(self.walk.inputs[0][n].mT, d_sum), *d_weights]

    def enter(
        self, n: int, at: Place, d_pairs: Layers, d_write: Layers, d_held: Layers | None
    ) -> Layers | None:
        """Gradient by the memory held before chunk n; that by the pairs before it, in place."""
        for total, d in zip(self.total.base, d_write, strict=False):
            total += d
        if d_held is not None:
            d_write = [a + b for a, b in zip(d_write, d_held, strict=True)]
        opens, fresh = at.opens(n), at.resets(n)
        for d_pair, d in zip(d_pairs, d_write, strict=True):
            halves(d_pair)[0].add_(d if opens is None else d * opens)
        if fresh is not None:
            for total, d_pair in zip(self.total.start, d_pairs, strict=True):
                total += d_pair * fresh
                d_pair *= ~fresh
        return None if opens is None else [d * ~opens for d in d_write]

    def finish(self) -> None:
        """What no other chunk waits for, of the whole group at once."""
        total, given, everything = self.total, self.walk.given, slice(None)
        for layer in self.layers:
            weight = self.keys.weights[layer][..., None]  # [N, R, C, 1, 1]
            by_parts = self.by_parts(layer, everything)  # [N, R, C, 2, 1]
            by_gate = total.gate(layer)
            by_weight = (
                (by_parts * given.gate(layer).ends()).sum(-2).add_(self.found.weights[layer])
            )
            clamp = self.keys.clamps[layer] if self.walk.clamped else 1
            by_gate.step.sub_(by_weight * clamp)
            by_ends = (by_parts * weight)[..., 0]
            by_gate.shares[..., -1, 2:] += by_ends[..., 0]
            by_gate.kept[..., 1:] += by_ends[..., 1]
            by_gate.shares[..., -1, :2] += self.by_decay[layer][..., 0, :]
            by_gate.kept[..., 0] += self.by_decay[layer][..., 1, 1]
        both = self.by_narrow[0].unflatten(-1, (2, -1))
        parts = given.gate(0).ends() * self.keys.weights[0][..., None]
        torch.add(self.found.inputs[0], (both * parts).sum(-2), out=total.k)
        self.outer.finish(total)
