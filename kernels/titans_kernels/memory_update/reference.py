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
    start: MemoryState,
) -> tuple[Float[Tensor, "B T H D"], MemoryState]:
    """Writes every token into the memory and reads it after (eq. 12-18)."""

    def per_layer(gate: Tensor, t: int) -> list[Tensor]:
        return list(gate[:, t].expand(*gate.shape[::2], len(initial))[..., None, None].unbind(2))

    def weights(memory: Weights) -> Weights:
        if rule.forget_toward == "zero":
            return memory
        return tuple(base + m for base, m in zip(initial, memory, strict=True))

    memory, chunk_memory, surprise, position = state
    outputs = []
    for t in range(k.shape[1]):
        if reset is not None:
            memory = rows_where(reset[:, t], start.memory, memory)
            surprise = rows_where(reset[:, t], start.surprise, surprise)
            position = torch.where(reset[:, t], 0, position)
        written = mask[:, t]
        opens = written & (position % rule.chunk_size == 0)
        chunk_memory = rows_where(opens, memory, chunk_memory)
        grads = surprise_gradient(weights(chunk_memory), k[:, t], v[:, t], norm, rule)  # eq. 12
        steps, keeps, forgets = (per_layer(gate, t) for gate in (step_size, momentum, forget))
        new_surprise = tuple(
            keep * s - step * grad
            for keep, s, step, grad in zip(keeps, surprise, steps, grads, strict=True)
        )  # eq. 14
        # `memory` is what was added to M_{-1}, so this is eq. 13 with forgetting toward M_{-1}.
        new_memory = tuple(
            (1 - lost) * m + s for lost, m, s in zip(forgets, memory, new_surprise, strict=True)
        )
        memory = rows_where(written, new_memory, memory)
        surprise = rows_where(written, new_surprise, surprise)
        outputs.append(read(weights(memory), q[:, t], norm, rule))  # eq. 15
        position = position + written
    closed = position % rule.chunk_size == 0
    chunk_memory = rows_where(closed, memory, chunk_memory)
    y = torch.stack(outputs, 1) if outputs else q
    return y, MemoryState(memory, chunk_memory, surprise, position)
