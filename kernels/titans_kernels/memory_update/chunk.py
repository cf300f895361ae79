"""One chunk of the memory update as products of matrices. The folder's README derives it.

R rows times heads, C tokens in a chunk, D width of a head, J inner steps. A layer's weights are
[R, out, in].
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from titans_kernels.memory_update.coefficients import ChannelCoefficients, Coefficients
from titans_kernels.memory_update.network import (
    activate,
    activate_backward,
    normalize,
    normalize_backward,
)
from titans_kernels.memory_update.token_memory import Axis, TokenMemory
from titans_kernels.memory_update.types import UpdateRule

Layers = list[Tensor]

Stream = tuple[Layers, Layers]
"""Memory and surprise of one inner step."""


@runtime_checkable
class Multiplied(Protocol):
    """What stands for a layer's matrix where rows are multiplied by it."""

    @property
    def mT(self) -> "Multiplied": ...  # noqa: N802, the name it has for a matrix

    def __rmatmul__(self, x: Tensor) -> Tensor: ...


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


class Written(NamedTuple):
    """What the keys of a chunk leave for the queries and the next state, of each layer."""

    inputs: Layers  # X_{l-1} [R, C, in]
    errors: Layers  # D_l [R, C, out]
    updates: Layers  # U_l


def write(chunk: Inputs, weights: Sequence[Tensor | Multiplied]) -> Written:
    """The keys' way through the memory and the gradient's way back, at one memory or each token's."""
    rule, layers = chunk.rule, len(weights)
    inputs, sums = [chunk.k], []
    for w in weights[:-1]:
        sums.append(inputs[-1] @ w.mT)
        inputs.append(activate(sums[-1], rule.activation))
    out = inputs[-1] @ weights[-1].mT
    if chunk.affine is not None:
        gain, bias = chunk.affine
        norm = normalize(out)
        out = torch.addcmul(bias, norm[0], gain)
    if rule.objective == "dot":
        error = -chunk.v
    else:
        error = (out - chunk.v + chunk.k if rule.residual else out - chunk.v) * 2
    if chunk.affine is not None:
        error = normalize_backward(error * gain, *norm)

    errors, updates = [error], []
    for layer in reversed(range(layers)):
        step = chunk.gates.layer(layer).step
        if rule.max_surprise is not None:
            size = errors[-1].norm(dim=-1, keepdim=True) * inputs[layer].norm(dim=-1, keepdim=True)
            step = step * (rule.max_surprise / size.clamp_min(rule.max_surprise))
        updates.append(-step * errors[-1])
        if layer > 0:
            back = errors[-1] @ weights[layer]
            errors.append(activate_backward(back, sums[layer - 1], rule.activation))
    return Written(inputs, errors[::-1], updates[::-1])


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


def query(chunk: Inputs, memories: Sequence[Multiplied]) -> Tensor:
    """f(M_t; q_t) for every token t of the chunk [R, C, D]."""
    z = chunk.q @ memories[0].mT
    for memory in memories[1:]:
        z = activate(z, chunk.rule.activation) @ memory.mT
    if chunk.affine is not None:
        gain, bias = chunk.affine
        z = torch.addcmul(bias, normalize(z)[0], gain)
    return chunk.q + z if chunk.rule.residual else z


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
    y = query(chunk, memories) if read else chunk.q
    return y, [*after, advance(memories)]
