"""The keys' part in the walk from chunk to chunk: keys forward, errors back, next state.

N chunks of a group, R rows times heads, C tokens in a chunk, A and B sides of a pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from titans_kernels.memory_update.call import Layout, where
from titans_kernels.memory_update.given import Given, Layers, halves, turned, weighted
from titans_kernels.memory_update.network import (
    activate_backward_into,
    activate_into,
    layer_norm,
    layer_norm_backward,
)
from titans_kernels.memory_update.room import Room
from titans_kernels.memory_update.types import UpdateRule


class Place(NamedTuple):
    """The layout, seen from a group's first chunk on."""

    layout: Layout
    first: int

    def opens(self, n: int) -> Tensor | None:
        """The rows that begin to write in chunk n [R, 1, 1]; None where all do."""
        at = self.first + n
        return None if self.layout.all_open[at] else self.layout.opens[:, at]

    def asks(self, n: int) -> bool:
        """Whether the memory held before chunk n is needed behind it: a row goes on, or all is over."""
        at = self.first + n
        return at == len(self.layout.all_open) or not self.layout.all_open[at]

    def resets(self, n: int) -> Tensor | None:
        """The rows in which a document begins with chunk n; None without any."""
        at = self.first + n
        if self.layout.resets is None or not self.layout.any_reset[at]:
            return None
        return self.layout.resets[:, at]


class Keys(NamedTuple):
    """What the keys of a group leave for its queries and for the backward."""

    sums: Layers  # Z_l [N, R, C, out] of every layer
    inputs: Layers  # X_{l-1}
    backs: Layers  # D_l W_l, before the activation's slope, of all layers but the first
    errors: Layers  # D_l
    clamps: Layers  # [N, R, C, 1], or none without a clamp
    weights: Layers  # -step * clamp [N, R, C, 1]: U_l is this times D_l


class Loss(NamedTuple):
    """The loss's derivative by the normed sum is `constant` plus `slope` times that sum."""

    constant: Tensor  # [N, R, C, D]
    slope: Tensor | None  # [R, 1, D]

    @classmethod
    def of(cls, given: Given, rule: UpdateRule) -> "Loss":
        gain, bias = given.affine or (None, None)
        if rule.objective == "dot":
            return cls(-given.v if gain is None else -given.v * gain, None)
        constant = given.k - given.v if rule.residual else -given.v
        if gain is None or bias is None:
            return cls(2 * constant, constant.new_full((), 2))
        return cls((constant + bias).mul_(2 * gain), 2 * gain * gain)


def empty_keys(given: Given, pairs: Layers, rule: UpdateRule, left: Room, work: Room) -> Keys:
    """Where the walk will write; what the backward can easily make again is in `work`."""
    lead, width = given.k.shape[:-1], given.k.shape[-1]
    inside = [pair.shape[-1] for pair in pairs[1:]]

    def take(room: Room, name: str, widths: list[int]) -> Layers:
        return [room.take(f"{name} {i}", *lead, w) for i, w in enumerate(widths)]

    clamped = rule.max_surprise is not None
    ones = [1] * len(pairs)
    return Keys(
        sums=take(left, "sums", [*inside, width]),
        inputs=[given.k, *take(work, "inputs", inside)],
        backs=take(left, "backs", inside),
        errors=[*take(work, "errors", inside), left.take("last error", *lead, width)],
        clamps=take(left, "clamps", ones) if clamped else [],
        weights=take(work, "weights", ones)
        if clamped
        else [-given.gate(layer).step for layer in range(len(pairs))],
    )


class KeyWalk:
    """The chunks of one group, one by one."""

    def __init__(self, given: Given, keys: Keys, rule: UpdateRule, work: Room) -> None:
        self.given, self.rule, self.layers, self.work = given, rule, len(keys.sums), work
        self.sums, self.inputs, self.backs, self.errors, self.clamps, self.weights = (
            [x.unbind(0) for x in part] for part in keys
        )
        self.whole_loss = Loss.of(given, rule)
        self.loss, self.slope = self.whole_loss.constant.unbind(0), self.whole_loss.slope
        gates = [given.gate(layer) for layer in range(self.layers)]
        self.ends = [gate.ends().unbind(0) for gate in gates]
        self.decays = [[x.unbind(0) for x in gate.decay().unbind(0)] for gate in gates]
        self.clamped = rule.max_surprise is not None
        if self.clamped:
            self.lengths = torch.linalg.vector_norm(given.k, dim=-1, keepdim=True).unbind(0)
            self.steps = [gate.step.unbind(0) for gate in gates]

    def write(self, n: int, weights: Layers) -> None:
        """Keys and errors of chunk n at one memory, the upper halves of pairs."""
        x, last, activation = self.inputs[0][n], self.layers - 1, self.rule.activation
        for layer, w in enumerate(weights):
            z = self.sums[layer][n]
            torch.bmm(x, turned(layer, w).mT, out=z)
            if layer < last:
                x = activate_into(self.inputs[layer + 1][n], z, activation)
        self.outer_error(n)
        for layer in range(last, 0, -1):
            back = self.backs[layer - 1][n]
            torch.bmm(self.errors[layer][n], weights[layer], out=back)
            z, error = self.sums[layer - 1][n], self.errors[layer - 1][n]
            activate_backward_into(error, back, z, activation)
        if self.clamped:
            for layer in range(self.layers):
                self.clamp(n, layer)

    def outer_error(self, n: int) -> None:
        """D_L: through the loss and the layer norm."""
        z, error, given = self.sums[-1][n], self.errors[-1][n], self.loss[n]
        if not self.given.affine:
            if self.slope is None:
                error.copy_(given)
            else:
                torch.add(given, z, alpha=2, out=error)
            return
        normed, mean, rstd = layer_norm(z)
        if self.slope is not None:
            given = torch.addcmul(given, normed, self.slope)
        error.copy_(layer_norm_backward(given, z, mean, rstd))

    def clamp(self, n: int, layer: int) -> None:
        limit = self.rule.max_surprise
        assert limit is not None
        size = torch.linalg.vector_norm(self.errors[layer][n], dim=-1, keepdim=True)
        if layer == 0:
            size *= self.lengths[n]
        else:
            size *= torch.linalg.vector_norm(self.inputs[layer][n], dim=-1, keepdim=True)
        clamp = torch.div(limit, size.clamp_min_(limit), out=self.clamps[layer][n])
        torch.mul(self.steps[layer][n], clamp, out=self.weights[layer][n]).neg_()

    def sides(self, n: int, layer: int) -> tuple[Tensor, Tensor]:
        """The two factors of what chunk n adds to a layer's pair: [R, C, 2 A] and [R, C, B]."""
        x, error = self.inputs[layer][n], self.errors[layer][n]
        narrow, wide = (x, error) if layer == 0 else (error, x)
        return weighted(self.parts(n, layer), narrow), wide

    def parts(self, n: int, layer: int) -> Tensor:
        """What the tokens of chunk n are weighted with in the next pair [R, C, 2, 1]."""
        return self.ends[layer][n] * self.weights[layer][n][..., None]

    def advance(self, n: int, pairs: Layers, after: Layers) -> None:
        """Writes the pairs after chunk n, which may be the same tensors."""
        for layer, (pair, out) in enumerate(zip(pairs, after, strict=True)):
            (w, s), (w_out, s_out) = halves(pair), halves(out)
            retain, past, keep = self.decays[layer][n]
            torch.mul(w, retain, out=w_out).addcmul_(s, past)
            torch.mul(s, keep, out=s_out)
            narrow, wide = self.sides(n, layer)
            out.baddbmm_(narrow.mT, wide)

    def restart(self, n: int, at: Place, pairs: Layers) -> None:
        """Restores the start state where a document begins with chunk n."""
        fresh = at.resets(n)
        if fresh is not None:
            for pair, start in zip(pairs, self.given.start, strict=True):
                pair.copy_(torch.where(fresh, start, pair))

    def hold(self, n: int, at: Place, pairs: Layers, held: Layers) -> Layers:
        """The memory that chunk n's gradients are taken at, as a state holds it."""
        memory = [halves(pair)[0] for pair in pairs]
        opens = at.opens(n)
        return memory if opens is None else where(opens, memory, held)

    def matrices(self, held: Layers) -> Layers:
        """The memory MLP's weights, from what a state holds of them, until this is called again."""
        if not self.given.base:
            return held
        both = enumerate(zip(self.given.base, held, strict=True))
        room = self.work.take
        return [torch.add(b, w, out=room(f"matrix {i}", *w.shape)) for i, (b, w) in both]
