"""Reads a group of chunks, every token at its own memory, and goes back through that.

Forward each chunk is read while its pairs are at hand, back all of a group's in the same products.
N chunks of a group, R rows times heads, C tokens in a chunk, A and B sides of a pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from titans_kernels.memory_update.given import Gate, Given, Layers, turned, weighted
from titans_kernels.memory_update.keys import Keys
from titans_kernels.memory_update.network import (
    activate_backward_into,
    activate_into,
    layer_norm,
    layer_norm_backward,
)
from titans_kernels.memory_update.room import Room
from titans_kernels.memory_update.types import UpdateRule


class Queries(NamedTuple):
    """What the queries of a group leave for the backward."""

    sums: Layers  # Z_l of every layer [N, R, C, out]
    products: Layers  # of all layers but the first with both halves of the pair [N, R, C, 2 out]
    scores: Layers  # R_{l-1} X_{l-1}^T [N, R, C, C]


def product(x: Tensor, y: Tensor, room: Room, name: str) -> Tensor:
    """x @ y over the first two axes."""
    out = room.take(name, *x.shape[:-1], y.shape[-1])
    torch.bmm(x.flatten(0, 1), y.flatten(0, 1), out=out.flatten(0, 1))
    return out


def add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """total += x @ y over the first two axes, or with y shared by the first."""
    if y.ndim == 4:
        total.flatten(0, 1).baddbmm_(x.flatten(0, 1), y.flatten(0, 1))
        return
    for part, one in zip(total.unbind(0), x.unbind(0), strict=True):
        part.baddbmm_(one, y)


class QueryWalk:
    """Reads the chunks of one group, each after its keys and before the next pair."""

    def __init__(self, given: Given, keys: Keys, rule: UpdateRule, left: Room, work: Room) -> None:
        self.given, self.rule, self.work = given, rule, work
        layers, lead, chunk = len(keys.sums), given.q.shape[:-1], given.q.shape[-2]

        def take(name: str, widths: list[int]) -> Layers:
            return [left.take(f"{name} {i}", *lead, width) for i, width in enumerate(widths)]

        widths = [z.shape[-1] for z in keys.sums]
        self.found = Queries(
            take("read", widths),
            take("both", [2 * w for w in widths[1:]]),
            take("scores", [chunk] * layers),
        )
        self.sums, self.products, self.scores = ([x.unbind(0) for x in part] for part in self.found)
        self.inputs, self.errors, self.weights = (
            [x.unbind(0) for x in part] for part in (keys.inputs, keys.errors, keys.weights)
        )
        gates = [given.gate(layer) for layer in range(layers)]
        self.first, self.mix = (
            [x.unbind(0) for x in part]
            for part in ([g.first for g in gates], [g.mix for g in gates])
        )
        self.q, self.narrow = given.q.unbind(0), weighted(gates[0].first, given.q).unbind(0)

    def read(self, n: int, pairs: Layers) -> None:
        """The last layer's sums of chunk n, from the pairs that it begins with."""
        x = self.q[n]
        for layer, pair in enumerate(pairs):
            z = self.sums[layer][n]
            if layer == 0:
                torch.bmm(self.narrow[n], pair, out=z)
            else:
                both = self.products[layer - 1][n]
                torch.bmm(x, pair.mT, out=both)
                torch.sum(both.unflatten(-1, (2, -1)) * self.first[layer][n], -2, out=z)
            if self.given.base:
                z.baddbmm_(x, turned(layer, self.given.base[layer]).mT)
            score = self.scores[layer][n]
            torch.bmm(x, self.inputs[layer][n].mT, out=score)
            mix = self.mix[layer][n] * self.weights[layer][n].mT
            z.baddbmm_(mix.mul_(score), self.errors[layer][n])
            if layer < len(pairs) - 1:
                x = activate_into(self.work.take("active", *z.shape), z, self.rule.activation)


def outputs(given: Given, z: Tensor, rule: UpdateRule) -> Tensor:
    """f(M_t; q_t) from the last layer's sums, for every token of the group [N, R, C, D]."""
    if given.affine:
        gain, bias = given.affine
        z = torch.addcmul(bias, layer_norm(z)[0], gain)
    return given.q + z if rule.residual else z


class QueryGradients(NamedTuple):
    """What the walk back over the keys needs of the queries, for every layer."""

    inputs: Layers  # by X_{l-1} [N, R, C, in]
    errors: Layers  # by D_l [N, R, C, out]
    weights: Layers  # by -step * clamp [N, R, C, 1]
    narrow: Layers  # the two factors of the gradient by the pair [N, R, C, 2 A]
    wide: Layers  # and [N, R, C, B]


def read_backward(
    given: Given,
    keys: Keys,
    queries: Queries,
    slots: Layers,
    dy: Tensor,
    rule: UpdateRule,
    total: Given,
    work: Room,
) -> QueryGradients:
    """Adds to `total` what is known before the walk back, and returns the rest."""
    found = QueryGradients([], [], [], [], [])
    dz = outer_backward(given, queries.sums[-1], dy, total)
    for layer in reversed(range(len(slots))):
        x = given.q
        if layer > 0:
            z = queries.sums[layer - 1]
            x = activate_into(work.take(f"active {layer}", *z.shape), z, rule.activation)
        gate, by_gate = given.gate(layer), total.gate(layer)
        dx = mixed_backward(keys, queries.scores[layer], layer, x, dz, gate, by_gate, found, work)
        narrow, wide = (x, dz) if layer == 0 else (dz, x)
        found.narrow.insert(0, weighted(gate.first, narrow))
        found.wide.insert(0, wide)
        if layer == 0:
            both = product(dz, slots[0].mT, work, "both").unflatten(-1, (2, -1))
            dx += (both * gate.first).sum(-2)
        else:
            both = queries.products[layer - 1].unflatten(-1, (2, -1))
            add_product(dx, found.narrow[0], slots[layer])
        by_gate.first.add_((both * narrow[..., None, :]).sum(-1, keepdim=True))
        if given.base:
            add_product(dx, dz, turned(layer, given.base[layer]))
            for a, b in zip(narrow.unbind(0), wide.unbind(0), strict=True):
                total.base[layer].baddbmm_(a.mT, b)
        dz = dx
        if layer > 0:
            dz = work.take(f"by sum {layer}", *dx.shape)
            activate_backward_into(dz, dx, queries.sums[layer - 1], rule.activation)
    torch.add(dz, dy if rule.residual else 0, out=total.q)
    return found


def outer_backward(given: Given, z: Tensor, dy: Tensor, total: Given) -> Tensor:
    """Gradient by the last layer's sum."""
    if not given.affine:
        return dy
    normed, mean, rstd = layer_norm(z)
    total.affine[0] += (dy * normed).sum((0, 2))[:, None]
    total.affine[1] += dy.sum((0, 2))[:, None]
    return layer_norm_backward(dy * given.affine[0], z, mean, rstd)


def mixed_backward(
    keys: Keys,
    scores: Tensor,
    layer: int,
    x: Tensor,
    dz: Tensor,
    gate: Gate,
    by_gate: Gate,
    found: QueryGradients,
    work: Room,
) -> Tensor:
    """Through what the chunk's own updates add to a layer's sum: gradient by the layer's input."""
    weight = keys.weights[layer].mT
    d_mixed = product(dz, keys.errors[layer].mT, work, "by mixed")
    mix = torch.mul(gate.mix, weight, out=work.take("mix", *scores.shape))
    d_scores = torch.mul(d_mixed, mix, out=work.take("by scores", *scores.shape))
    found.errors.insert(0, product(mix.mul_(scores).mT, dz, work, f"by errors {layer}"))
    d_mix = d_mixed.mul_(scores)
    by_gate.mix.addcmul_(d_mix, weight)
    found.weights.insert(0, d_mix.mul_(gate.mix).sum(-2)[..., None])
    found.inputs.insert(0, product(d_scores.mT, x, work, f"by inputs {layer}"))
    return product(d_scores, keys.inputs[layer], work, f"by x {layer}")
