"""One chunk of the memory update as products of matrices. The folder's README derives it.

R rows times heads, C tokens in a chunk, D width of a head, J inner steps. A layer's weights are
[R, out, in].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from titans_kernels.memory_update.coefficients import ChannelCoefficients, Coefficients
from titans_kernels.memory_update.network import (
    activate,
    activate_derivatives,
    normalize,
    normalize_backward,
)
from titans_kernels.memory_update.token_memory import Axis, TokenMemory
from titans_kernels.memory_update.types import UpdateRule

Layers = list[Tensor]

Stream = tuple[Layers, Layers]
"""Memory and surprise of one inner step."""


class Inputs(NamedTuple):
    """One chunk's inputs [R, C, D] and coefficients, and what all chunks share."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Coefficients | ChannelCoefficients
    base: Layers | None  # M_{-1} where forgetting goes toward it
    affine: tuple[Tensor, Tensor] | None  # gain and bias of the layer norm [R, 1, D]
    rule: UpdateRule

    def weights(self, memory: Layers) -> Layers:
        """The weights of the memory MLP, from what a state holds of them."""
        if self.base is None:
            return memory
        return [b + w for b, w in zip(self.base, memory, strict=True)]


class Keys(NamedTuple):
    """What the keys of a chunk leave for the queries, the next state and the backward."""

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


def write(chunk: Inputs, weights: Sequence[Tensor | TokenMemory]) -> Keys:
    """The keys' way through the memory and the gradient's way back, at one memory or each token's."""
    rule, layers = chunk.rule, len(weights)
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
    return Keys(inputs, slopes, norm, outer, errors[::-1], backs[::-1], clamps[::-1], updates[::-1])


def token_memories(
    chunk: Inputs, stream: Stream, inputs: Layers, updates: Layers
) -> list[TokenMemory]:
    """Every M_t of the chunk, layer by layer, for a stream that makes these updates."""
    times = inputs[0].shape[1] // chunk.k.shape[1]
    memories: list[TokenMemory] = []
    for layer, (w, s) in enumerate(zip(*stream, strict=True)):
        gate = chunk.gates.layer(layer).repeated(times)
        base = None if chunk.base is None else chunk.base[layer]
        channels: Axis | None = None
        if gate.mix.ndim == 4:
            channels = "right" if layer == 0 else "left"
        memories.append(TokenMemory(w, s, updates[layer], inputs[layer], gate, base, channels))
    return memories


def query(
    chunk: Inputs, memories: list[TokenMemory], slopes: bool = False
) -> tuple[Tensor, Queries]:
    """f(M_t; q_t) for every token t of the chunk [R, C, D]."""
    inputs, scores, steep = [chunk.q], [], []
    for layer, memory in enumerate(memories):
        z, score = memory.mT.product(inputs[-1])
        scores.append(score)
        if layer == len(memories) - 1:
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


def advance(memories: list[TokenMemory]) -> Stream:
    """Memory and surprise after the chunk's last token."""
    memory, surprise = zip(*(m.last() for m in memories), strict=True)
    return list(memory), list(surprise)


def write_and_read(
    chunk: Inputs, held: Layers, streams: list[Stream], read: bool = True
) -> tuple[Tensor, list[Stream]]:
    """Every inner step over one chunk: outputs, and the streams after it.

    A step's gradients are taken at the memories of the stream before, the first's at `held`; each
    stream makes all updates so far, and the last is the memory that is read.
    """
    keys = write(chunk, chunk.weights(held))
    inputs, updates, after = keys.inputs, keys.updates, []
    for stream in streams[:-1]:
        memories = token_memories(chunk, stream, inputs, updates)
        after.append(advance(memories))
        keys = write(chunk, memories)
        inputs = [torch.cat(pair, 1) for pair in zip(inputs, keys.inputs, strict=True)]
        updates = [torch.cat(pair, 1) for pair in zip(updates, keys.updates, strict=True)]
    memories = token_memories(chunk, streams[-1], inputs, updates)
    y = query(chunk, memories)[0] if read else chunk.q
    return y, [*after, advance(memories)]
