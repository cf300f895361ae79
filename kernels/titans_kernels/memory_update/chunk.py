"""One chunk of the memory update as products of matrices. The folder's README derives it.

R rows times heads, C tokens in a chunk, D width of a head, L layers, G gates per head; N chunks. A
layer's weights are [R, out, in]. `retain`, `past`, `mix`, `momentum`, `last` are the README's c, p, G,
m at the chunk's end and P's last row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from titans_kernels.memory_update.network import (
    activate,
    activate_derivatives,
    normalize,
    normalize_backward,
)
from titans_kernels.memory_update.types import UpdateRule

Layers = list[Tensor]


class Coefficients(NamedTuple):
    """How the tokens of each chunk weigh in its memory; of every chunk, or of one without the N."""

    step: Tensor  # [N, R, G, C, 1]: step size, 0 where masked
    retain: Tensor  # [N, R, G, C, 1]: share of the chunk's first memory left in M_t
    past: Tensor  # [N, R, G, C, 1]: share of the chunk's first surprise in M_t
    mix: Tensor  # [N, R, G, C, C]: share of token s's update in M_t
    momentum: Tensor  # [N, R, G, 1, 1]: share of the first surprise left in the last
    last: Tensor  # [N, R, G, C, 1]: share of token s's update in the last surprise

    def layer(self, index: int) -> "Coefficients":
        return Coefficients(*(x[:, index % x.shape[1]] for x in self))


class Inputs(NamedTuple):
    """One chunk's inputs [R, C, D] and coefficients, and what all chunks share."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Coefficients
    base: Layers | None  # M_{-1} where forgetting goes toward it
    affine: tuple[Tensor, Tensor] | None  # gain and bias of the layer norm [R, 1, D]
    rule: UpdateRule


class Keys(NamedTuple):
    """What the keys of a chunk leave for the queries, the next state and the backward."""

    weights: Layers  # the memory at which the gradients are taken
    inputs: Layers  # X_{l-1} of each layer [R, C, in]
    slopes: list[tuple[Tensor, Tensor]]  # first and second derivative at Z_l, l < L
    norm: tuple[Tensor, Tensor] | None  # normed sum and reciprocal deviation
    outer: Tensor  # the loss's derivative by the MLP's output
    errors: Layers  # D_l
    backs: Layers  # D_{l+1} W_{l+1}, before the activation's slope
    clamps: list[Tensor | None]
    updates: Layers  # U_l


class Queries(NamedTuple):
    """What the queries of a chunk leave for the backward."""

    inputs: Layers  # R_{l-1} of each layer [R, C, in]
    scores: Layers  # R_{l-1} X_{l-1}^T [R, C, C]
    slopes: Layers  # first derivative at each layer's sum, l < L
    norm: tuple[Tensor, Tensor] | None


def write(chunk: Inputs, held: Layers) -> Keys:
    """The keys' way through the memory and the gradient's way back, at the chunk's first memory."""
    rule, layers = chunk.rule, len(held)
    weights = held if chunk.base is None else [b + w for b, w in zip(chunk.base, held, strict=True)]
    inputs, slopes = [chunk.k], []
    for w in weights[:-1]:
        x, slope, curve = activate_derivatives(inputs[-1] @ w.mT, rule.activation)
        inputs.append(x)
        slopes.append((slope, curve))
    out = inputs[-1] @ weights[-1].mT
    norm = None
    if chunk.affine is not None:
        gain, bias = chunk.affine
        norm = normalize(out)
        out = torch.addcmul(bias, norm[0], gain)
    if rule.objective == "dot":
        outer = -chunk.v
    else:
        outer = (out - chunk.v + chunk.k if rule.residual else out - chunk.v) * 2
    error = outer
    if norm is not None:
        error = normalize_backward(outer * gain, *norm)

    errors, backs, clamps, updates = [error], [], [], []
    for layer in reversed(range(layers)):
        clamp = None
        step = chunk.gates.layer(layer).step
        if rule.max_surprise is not None:
            size = errors[-1].norm(dim=-1, keepdim=True) * inputs[layer].norm(dim=-1, keepdim=True)
            clamp = rule.max_surprise / size.clamp_min(rule.max_surprise)
            step = step * clamp
        clamps.append(clamp)
        updates.append(-step * errors[-1])
        if layer > 0:
            backs.append(errors[-1] @ weights[layer])
            errors.append(backs[-1] * slopes[layer - 1][0])
    return Keys(
        weights, inputs, slopes, norm, outer,
        errors[::-1], backs[::-1], clamps[::-1], updates[::-1],
    )  # fmt: skip


def query(
    chunk: Inputs, memory: Layers, surprise: Layers, keys: Keys, slopes: bool = False
) -> tuple[Tensor, Queries]:
    """f(M_t; q_t) for every token t of the chunk [R, C, D], without making any M_t."""
    inputs, scores, steep = [chunk.q], [], []
    for layer, (w, s) in enumerate(zip(memory, surprise, strict=True)):
        x, gate = inputs[-1], chunk.gates.layer(layer)
        scores.append(x @ keys.inputs[layer].mT)
        z = (gate.mix * scores[-1]) @ keys.updates[layer]
        z.baddbmm_(gate.retain * x, w.mT).baddbmm_(gate.past * x, s.mT)
        if chunk.base is not None:
            z.baddbmm_(x, chunk.base[layer].mT)
        if layer == len(memory) - 1:
            break
        if slopes:
            x, slope, _ = activate_derivatives(z, chunk.rule.activation)
            steep.append(slope)
        else:
            x = activate(z, chunk.rule.activation)
        inputs.append(x)
    norm = None
    if chunk.affine is not None:
        gain, bias = chunk.affine
        norm = normalize(z)
        z = torch.addcmul(bias, norm[0], gain)
    y = chunk.q + z if chunk.rule.residual else z
    return y, Queries(inputs, scores, steep, norm)


def advance(chunk: Inputs, memory: Layers, surprise: Layers, keys: Keys) -> tuple[Layers, Layers]:
    """Memory and surprise after the chunk's last token."""
    new_memory, new_surprise = [], []
    for layer, (w, s) in enumerate(zip(memory, surprise, strict=True)):
        gate, x, update = chunk.gates.layer(layer), keys.inputs[layer], keys.updates[layer]
        carried = (w * gate.retain[:, -1:]).addcmul_(s, gate.past[:, -1:])
        new_memory.append(carried.baddbmm_((gate.mix[:, -1, :, None] * update).mT, x))
        new_surprise.append((s * gate.momentum).baddbmm_((gate.last * update).mT, x))
    return new_memory, new_surprise
