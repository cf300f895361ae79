"""One token alone: write it, then read. Nothing is stacked, and M_{-1} is added to no other matrix.

R rows times heads, D width of a head, L layers, G gates per head: one for each layer, or one for all.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update.chunk import Inputs, Layers, query, write
from titans_kernels.memory_update.coefficients import Coefficients
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    Weights,
    rows_where,
)


class Added(NamedTuple):
    """A matrix per row and head, and one per head that all rows share, as their sum multiplies."""

    memory: Tensor  # [B H, out, in]
    base: Tensor | None  # [H, out, in]

    @property
    def mT(self) -> "Added":  # noqa: N802, the name it has for a matrix
        return Added(self.memory.mT, None if self.base is None else self.base.mT)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        z = torch.bmm(x, self.memory)
        if self.base is None:
            return z
        x = x.unflatten(0, (-1, len(self.base)))[..., 0, :]  # [B, H, out]
        return z + torch.bmm(x.transpose(0, 1), self.base).transpose(0, 1).reshape(z.shape)


def one_token(
    q: Float[Tensor, "B 1 H D"],
    k: Float[Tensor, "B 1 H D"],
    v: Float[Tensor, "B 1 H D"],
    step_size: Float[Tensor, "B 1 H G"],
    momentum: Float[Tensor, "B 1 H G"],
    forget: Float[Tensor, "B 1 H G"],
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None,
    written: Bool[Tensor, " B"],
    state: MemoryState,
) -> tuple[Float[Tensor, "B 1 H D"], MemoryState]:
    """The outputs, and the state but for its position; for one inner step and forgetting per head."""
    batch, heads = q.shape[0], q.shape[2]
    base = list(initial) if rule.forget_toward == "initial" else [None] * len(initial)

    def weights(parts: Weights) -> list[Added]:
        rows = (w.flatten(0, 1) for w in parts)
        return [Added(w, b) for w, b in zip(rows, base, strict=True)]

    def rows(x: Tensor) -> Tensor:
        return x.movedim(2, 1).flatten(0, 1)  # [R, 1, ...]

    steps, keeps, forgets = (rows(x).mT[..., None] for x in (step_size, momentum, forget))
    gates = Coefficients(steps, *[steps] * 5)  # [R, G, 1, 1]; of the others nothing is asked
    affine = None
    if norm is not None:
        gain, bias = (part.expand(batch, heads, -1).flatten(0, 1)[:, None] for part in norm)
        affine = (gain, bias)
    chunk = Inputs(rows(q), rows(k), rows(v), gates, None, affine, rule)
    keys = write(chunk, weights(state.chunk_memory))
    memory: Layers = []
    surprise: Layers = []
    for layer, (w, s) in enumerate(zip(state.memory, state.surprise, strict=True)):
        gate = layer % keeps.shape[1]
        keep, retain = keeps[:, gate], 1 - forgets[:, gate]
        s = (s.flatten(0, 1) * keep).baddbmm_(keys.updates[layer].mT, keys.inputs[layer])
        surprise.append(s.unflatten(0, (batch, heads)))  # eq. 14
        memory.append(torch.addcmul(surprise[-1], w, retain.unflatten(0, (batch, heads))))  # eq. 13
    after = state._replace(memory=tuple(memory), surprise=tuple(surprise))
    if not written.all():
        after = state._replace(
            memory=rows_where(written, after.memory, state.memory),
            surprise=rows_where(written, after.surprise, state.surprise),
        )
    y = query(chunk, weights(after.memory)).unflatten(0, (batch, heads)).movedim(1, 2)
    return y, after
