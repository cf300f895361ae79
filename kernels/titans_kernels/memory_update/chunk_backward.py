"""Gradients of one chunk, by hand, for one inner step and forgetting per head or layer.

The folder's README derives them. Names as in `chunk.py`.
"""

import torch
from torch import Tensor

from titans_kernels.memory_update.chunk import Inputs, Keys, Layers, Queries
from titans_kernels.memory_update.coefficients import Coefficients
from titans_kernels.memory_update.network import normalize_backward


def chunk_backward(
    chunk: Inputs,
    memory: Layers,
    surprise: Layers,
    keys: Keys,
    queries: Queries,
    weights: Layers,
    dy: Tensor,
    d_memory: Layers,
    d_surprise: Layers,
    d_gates: Coefficients,
    d_base: Layers | None,
    d_affine: Layers,
) -> tuple[Tensor, Tensor, Tensor, Layers]:
    """Gradients by q, k, v [R, C, D] and by `weights`, the memory that the gradients were taken at.

    `d_memory` and `d_surprise` come as gradients by the state after the chunk and leave as those by
    the state before it; `d_gates`, `d_base` and `d_affine` are added to. All in place.
    """
    d_inputs, d_updates = advance_backward(
        chunk, memory, surprise, keys, d_memory, d_surprise, d_gates
    )
    dq = query_backward(
        chunk, memory, surprise, keys, queries,
        dy, d_inputs, d_updates, d_memory, d_surprise, d_gates, d_base, d_affine,
    )  # fmt: skip
    dk, dv, d_held = write_backward(chunk, keys, weights, d_inputs, d_updates, d_gates, d_affine)
    for total, d in zip(d_base or [], d_held, strict=False):
        total += d
    return dq, dk, dv, d_held


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b over both axes of each matrix: [R, 1, 1]."""
    return (a.flatten(1)[:, None] @ b.flatten(1)[..., None]).reshape(-1, 1, 1)


def along(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b over the last axis: [R, C, 1]."""
    return (a * b).sum(-1, keepdim=True)


def advance_backward(
    chunk: Inputs,
    memory: Layers,
    surprise: Layers,
    keys: Keys,
    d_memory: Layers,
    d_surprise: Layers,
    d_gates: Coefficients,
) -> tuple[Layers, Layers]:
    """Gradients by the layers' inputs X_{l-1} and updates U_l, from those by the next state."""
    d_inputs, d_updates = [], []
    for layer, (w, s) in enumerate(zip(memory, surprise, strict=True)):
        dw, ds, x, update = (
            d_memory[layer],
            d_surprise[layer],
            keys.inputs[layer],
            keys.updates[layer],
        )
        gate, d_gate = chunk.gates.layer(layer), d_gates.layer(layer)
        mix = gate.mix[:, -1, :, None]
        by_memory, by_surprise = x @ dw.mT, x @ ds.mT  # [R, C, out]
        d_updates.append((mix * by_memory).addcmul_(gate.last, by_surprise))
        d_gate.mix[:, -1, :, None].add_(along(update, by_memory))
        d_gate.last.add_(along(update, by_surprise))
        d_inputs.append(((mix * update) @ dw).baddbmm_(gate.last * update, ds))
        d_gate.retain[:, -1:].add_(dot(dw, w))
        d_gate.past[:, -1:].add_(dot(dw, s))
        d_gate.momentum.add_(dot(ds, s))
        ds.mul_(gate.momentum).addcmul_(dw, gate.past[:, -1:])
        dw.mul_(gate.retain[:, -1:])
    return d_inputs, d_updates


def query_backward(
    chunk: Inputs,
    memory: Layers,
    surprise: Layers,
    keys: Keys,
    queries: Queries,
    dy: Tensor,
    d_inputs: Layers,
    d_updates: Layers,
    d_memory: Layers,
    d_surprise: Layers,
    d_gates: Coefficients,
    d_base: Layers | None,
    d_affine: Layers,
) -> Tensor:
    """Gradient by q; adds to all others what the reading owes them."""
    dz = dy
    if chunk.affine is not None and queries.norm is not None:
        d_affine[0] += (dy * queries.norm[0]).sum(1, keepdim=True)
        d_affine[1] += dy.sum(1, keepdim=True)
        dz = normalize_backward(dy * chunk.affine[0], *queries.norm)
    for layer in reversed(range(len(memory))):
        x, scores = queries.inputs[layer], queries.scores[layer]
        gate, d_gate = chunk.gates.layer(layer), d_gates.layer(layer)
        by_memory, by_surprise = dz @ memory[layer], dz @ surprise[layer]  # [R, C, in]
        dx = (gate.retain * by_memory).addcmul_(gate.past, by_surprise)
        d_gate.retain.add_(along(x, by_memory))
        d_gate.past.add_(along(x, by_surprise))
        d_memory[layer].baddbmm_((gate.retain * dz).mT, x)
        d_surprise[layer].baddbmm_((gate.past * dz).mT, x)
        if chunk.base is not None and d_base is not None:
            dx.baddbmm_(dz, chunk.base[layer])
            d_base[layer].baddbmm_(dz.mT, x)
        d_mixed = dz @ keys.updates[layer].mT  # [R, C, C]
        d_updates[layer].baddbmm_((gate.mix * scores).mT, dz)
        d_gate.mix.addcmul_(d_mixed, scores)
        d_scores = d_mixed * gate.mix
        dx.baddbmm_(d_scores, keys.inputs[layer])
        d_inputs[layer].baddbmm_(d_scores.mT, x)
        dz = dx * queries.slopes[layer - 1] if layer > 0 else dx
    return dz + dy if chunk.rule.residual else dz


def write_backward(
    chunk: Inputs,
    keys: Keys,
    weights: Layers,
    d_inputs: Layers,
    d_updates: Layers,
    d_gates: Coefficients,
    d_affine: Layers,
) -> tuple[Tensor, Tensor, Layers]:
    """Gradients by k, v and the weights, from those by the layers' inputs and updates."""
    layers = len(weights)
    d_weights: Layers = []
    d_sums: Layers = []
    d_error = torch.zeros_like(keys.errors[0])
    for layer in range(layers):
        if layer > 0:
            # D_l = (D_{l+1} W_{l+1}) * slope, walked the other way.
            slope, curve = keys.slopes[layer - 1]
            d_back = d_error * slope
            d_sums.append(d_error.mul_(keys.backs[layer - 1]).mul_(curve))
            d_weights.append(keys.errors[layer].mT @ d_back)
            d_error = d_back @ weights[layer].mT
        d_error = update_backward(
            chunk, keys, layer, d_updates[layer], d_error, d_inputs, d_gates.layer(layer)
        )
    dk, dv, d_out = outer_backward(chunk, keys, d_error, d_affine)
    for layer in reversed(range(layers)):
        if layer > 0:
            d_weights[layer - 1].baddbmm_(d_out.mT, keys.inputs[layer])
        else:
            # The first layer's weights carry no error further back, so this is all they get.
            d_weights.insert(0, d_out.mT @ keys.inputs[0])
        d_inputs[layer].baddbmm_(d_out, weights[layer])
        if layer > 0:
            d_out = d_sums[layer - 1].addcmul_(d_inputs[layer], keys.slopes[layer - 1][0])
    return d_inputs[0] if dk is None else dk.add_(d_inputs[0]), dv, d_weights


def update_backward(
    chunk: Inputs,
    keys: Keys,
    layer: int,
    d_update: Tensor,
    d_error: Tensor,
    d_inputs: Layers,
    d_gate: Coefficients,
) -> Tensor:
    """U_l = -step * clamp * D_l: gradient by D_l, added to what came from the layers below."""
    error, clamp = keys.errors[layer], keys.clamps[layer]
    step = chunk.gates.layer(layer).step
    share = along(d_update, error)
    if clamp is None:
        d_gate.step.sub_(share)
        return d_error.addcmul_(d_update, step, value=-1)
    d_gate.step.sub_(share * clamp)
    d_error.addcmul_(d_update, step * clamp, value=-1)
    # Where the clamp bites, it is max_surprise / (|D| |X|).
    pull = torch.where(clamp < 1, step * share * clamp, 0)
    x = keys.inputs[layer]
    tiny = torch.finfo(x.dtype).tiny
    d_error.addcmul_(error, pull / along(error, error).clamp_min(tiny))
    d_inputs[layer].addcmul_(x, pull / along(x, x).clamp_min(tiny))
    return d_error


def outer_backward(
    chunk: Inputs, keys: Keys, d_error: Tensor, d_affine: Layers
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Through the loss and the layer norm: gradients by k (None: none), v and the last layer's sum."""
    rule = chunk.rule
    d_normed = torch.zeros_like(d_error)
    d_outer = d_error
    if chunk.affine is not None and keys.norm is not None:
        gain, (normed, rstd) = chunk.affine[0], keys.norm
        # D_L = rstd (F - mean F - N mean(F N)) with F = outer * gain: linear in F, and self-adjoint.
        given = keys.outer * gain
        d_given = normalize_backward(d_error, normed, rstd)
        d_outer = d_given * gain
        d_affine[0] += (d_given * keys.outer).sum(1, keepdim=True)
        mean_given = (given * normed).mean(-1, keepdim=True)
        mean_error = (d_error * normed).mean(-1, keepdim=True)
        d_normed = -rstd * (d_error * mean_given + given * mean_error)
    if rule.objective == "dot":
        return None, -d_outer, spread(chunk, keys, d_normed, d_error, None, d_affine)
    d_prediction = 2 * d_outer
    d_out = spread(chunk, keys, d_normed, d_error, d_prediction, d_affine)
    return d_prediction if rule.residual else None, -2 * d_outer, d_out


def spread(
    chunk: Inputs,
    keys: Keys,
    d_normed: Tensor,
    d_error: Tensor,
    d_prediction: Tensor | None,
    d_affine: Layers,
) -> Tensor:
    """Gradient by the last layer's sum, from those by the normed sum, by D_L and by the prediction."""
    if chunk.affine is None or keys.norm is None:
        return torch.zeros_like(d_normed) if d_prediction is None else d_prediction.clone()
    normed, rstd = keys.norm
    if d_prediction is not None:
        d_affine[0] += (d_prediction * normed).sum(1, keepdim=True)
        d_affine[1] += d_prediction.sum(1, keepdim=True)
        d_normed = torch.addcmul(d_normed, d_prediction, chunk.affine[0])
    # rstd depends on the sum too: its derivative is -rstd^2 N / D, and D_L is proportional to it.
    by_rstd = (d_error * keys.errors[-1]).mean(-1, keepdim=True) * rstd
    return normalize_backward(d_normed, normed, rstd).addcmul_(normed, by_rstd, value=-1)
