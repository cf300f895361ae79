"""The memory update as it is defined: one token at a time, no tricks. Every other form must equal it.

B batch, T time, H memory heads, D width of a head, L layers of the memory MLP. Equation numbers are
those of arXiv 2501.00663.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update.network import (
    activate,
    activate_derivatives,
    normalize,
    normalize_backward,
)
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    Weights,
    begin_chunk,
    begin_document,
    rows_where,
)


def read(weights: Weights, u: Tensor, norm: Norm | None, rule: UpdateRule) -> Tensor:
    """f(W; u) = u + LN(W_L phi(... phi(W_1 u))) for u [B, H, D]."""
    x = u
    for layer, w in enumerate(weights):
        z = torch.einsum("bhoi,bhi->bho", w, x)
        x = activate(z, rule.activation) if layer < len(weights) - 1 else z
    if norm is not None:
        gain, bias = norm
        x = normalize(x)[0] * gain + bias
    return u + x if rule.residual else x


def surprise_gradient(
    weights: Weights, k: Tensor, v: Tensor, norm: Norm | None, rule: UpdateRule
) -> Weights:
    """Gradient of the loss of one token (eq. 12) with respect to every layer, by hand."""
    inputs, sums = [k], []
    for w in weights:
        sums.append(torch.einsum("bhoi,bhi->bho", w, inputs[-1]))
        inputs.append(activate(sums[-1], rule.activation))
    out = sums[-1]
    if norm is not None:
        gain, bias = norm
        normed, rstd = normalize(out)
        out = normed * gain + bias
    prediction = k + out if rule.residual else out
    error = 2 * (prediction - v) if rule.objective == "l2" else -v  # [B, H, D]
    if norm is not None:
        error = normalize_backward(error * gain, normed, rstd)

    grads = []
    for layer in reversed(range(len(weights))):
        grad = torch.einsum("bho,bhi->bhoi", error, inputs[layer])
        if rule.max_surprise is not None:
            size = torch.linalg.matrix_norm(grad, keepdim=True)
            # A zero gradient needs no clamp, and the floor keeps its quotient finite.
            grad = grad * (rule.max_surprise / size.clamp_min(rule.max_surprise))
        grads.append(grad)
        if layer > 0:
            error = torch.einsum("bhoi,bho->bhi", weights[layer], error)
            error = error * activate_derivatives(sums[layer - 1], rule.activation)[1]
    return tuple(reversed(grads))


def memory_update(
    q: Float[Tensor, "B T H D"],
    k: Float[Tensor, "B T H D"],
    v: Float[Tensor, "B T H D"],
    step_size: Float[Tensor, "B T H _"],
    momentum: Float[Tensor, "B T H _"],
    forget: Float[Tensor, "B T H _"],
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None,
    mask: Bool[Tensor, "B T"],
    reset: Bool[Tensor, "B T"] | None,
    state: MemoryState,
    start: MemoryState | None,
) -> tuple[Float[Tensor, "B T H D"], MemoryState]:
    """Writes every token into the memory and reads it after (eq. 12-18)."""

    def per_layer(gate: Tensor, t: int) -> list[Tensor]:
        return list(gate[:, t].expand(*gate.shape[::2], len(initial))[..., None, None].unbind(2))

    def forgotten(t: int) -> list[Tensor]:
        if not rule.channel_forget:
            return per_layer(forget, t)
        # What enters the MLP and what leaves it has D channels; the hidden layers take their mean.
        entry, end = forget[:, t, :, None, :], forget[:, t, :, :, None]
        inside = entry.mean(-1, keepdim=True)
        return [entry, *[inside] * (len(initial) - 2), end][: len(initial)]

    def weights(memory: Weights) -> Weights:
        if rule.forget_toward == "zero":
            return memory
        return tuple(base + m for base, m in zip(initial, memory, strict=True))

    def write(stream: tuple[Weights, Weights], grads: Weights, t: int) -> tuple[Weights, Weights]:
        steps, keeps, forgets = per_layer(step_size, t), per_layer(momentum, t), forgotten(t)
        surprise = tuple(
            keep * s - step * grad
            for keep, s, step, grad in zip(keeps, stream[1], steps, grads, strict=True)
        )  # eq. 14
        # `memory` is what was added to M_{-1}, so this is eq. 13 with forgetting toward M_{-1}.
        memory = tuple(
            (1 - lost) * m + s for lost, m, s in zip(forgets, stream[0], surprise, strict=True)
        )
        written = mask[:, t]
        return rows_where(written, memory, stream[0]), rows_where(written, surprise, stream[1])

    outputs = []
    for t in range(k.shape[1]):
        if reset is not None and start is not None:
            state = begin_document(reset[:, t], start, state)
        opens = mask[:, t] & (state.position % rule.chunk_size == 0)
        state = begin_chunk(opens, state)
        at, grads, streams = state.chunk_memory, None, []
        for stream in (*state.passes, (state.memory, state.surprise)):
            grad = surprise_gradient(weights(at), k[:, t], v[:, t], norm, rule)  # eq. 12
            # Every pass writes the sum of the gradients so far; the next takes its own at the result.
            grads = grad if grads is None else tuple(map(torch.add, grads, grad))
            at, surprise = write(stream, grads, t)
            streams.append((at, surprise))
        outputs.append(read(weights(at), q[:, t], norm, rule))  # eq. 15
        position = state.position + mask[:, t]
        state = MemoryState(at, state.chunk_memory, surprise, position, tuple(streams[:-1]))
    y = torch.stack(outputs, 1) if outputs else q
    return y, begin_chunk(state.position % rule.chunk_size == 0, state)
