"""What a walk by groups of chunks is given, and where its gradients are collected.

N chunks, R rows times heads, C tokens in a chunk, D width of a head, L layers, G gates per head: one
for each layer, or one for all. Weights are kept in pairs [R, 2 A, B], memory above surprise, of which
A is the narrow side: the first layer's transposed, [R, 2 in, out], the others' [R, 2 out, in].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from titans_kernels.memory_update.call import Layout
from titans_kernels.memory_update.types import UpdateRule

Layers = list[Tensor]


class Given(NamedTuple):
    """Tensors of the whole sequence, and what all chunks share."""

    q: Tensor  # [N, R, C, D]
    k: Tensor
    v: Tensor
    step: Tensor  # [N, G, R, C, 1]
    shares: Tensor  # [N, G, R, C, C+2], see `shares_of`
    kept: Tensor  # [N, G, R, C+1]
    memory: Layers  # pairs
    held: Layers  # memory at the chunk's start, as the upper half of a pair
    start: Layers  # pairs; empty where no document begins
    base: Layers  # M_{-1} as the upper half of a pair; empty where forgetting goes toward zero
    affine: Layers  # gain and bias of the layer norm [R, 1, D], or nothing

    @classmethod
    def of(
        cls, tensors: Sequence[Tensor], layers: int, rule: UpdateRule, layout: Layout
    ) -> "Given":
        """From the tensors in this order, without gaps."""
        q, k, v, step, shares, kept, *rest = tensors
        starts = layers if layout.resets is not None else 0
        bases = layers if rule.forget_toward == "initial" else 0
        groups, at = [], 0
        for count in (layers, layers, starts, bases, len(rest)):
            groups.append(rest[at : at + count])
            at += count
        return cls(q, k, v, step, shares, kept, *groups)

    def flat(self) -> list[Tensor]:
        return [*self[:6], *(tensor for part in self[6:] for tensor in part)]

    def chunks(self, first: int, last: int) -> "Given":
        return self._replace(
            q=self.q[first:last], k=self.k[first:last], v=self.v[first:last],
            step=self.step[first:last], shares=self.shares[first:last], kept=self.kept[first:last],
        )  # fmt: skip

    def gate(self, layer: int) -> "Gate":
        index = layer % self.step.shape[1]
        return Gate(self.step[:, index], self.shares[:, index], self.kept[:, index])


class Gate(NamedTuple):
    """One layer's coefficients in every chunk, named as in the README."""

    step: Tensor  # [N, R, C, 1]
    shares: Tensor  # [N, R, C, C+2]
    kept: Tensor  # [N, R, C+1]

    @property
    def first(self) -> Tensor:
        """c and p: how much of a chunk's first pair is in every token's memory [N, R, C, 2, 1]."""
        return self.shares[..., :2, None]

    @property
    def mix(self) -> Tensor:
        """G [N, R, C, C]."""
        return self.shares[..., 2:]

    def ends(self) -> Tensor:
        """The last rows of G and P: every token's part in the next pair [N, R, C, 2, 1]."""
        return torch.stack((self.shares[..., -1, 2:], self.kept[..., 1:]), -1)[..., None]

    def decay(self) -> Tensor:
        """c, p and m of a chunk's last token, what is left of its first pair [N, 3, R, 1, 1]."""
        last = self.shares[..., -1, :2]
        return torch.stack((last[..., 0], last[..., 1], self.kept[..., 0]), 1)[..., None, None]


def pair_up(layer: int, memory: Tensor, surprise: Tensor) -> Tensor:
    """A layer's pair from matrices [R, out, in]."""
    return torch.cat((turned(layer, memory), turned(layer, surprise)), 1)


def turned(layer: int, matrix: Tensor) -> Tensor:
    """The upper half of a layer's pair from a matrix [R, out, in], and back."""
    return matrix.mT if layer == 0 else matrix


def halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    memory, surprise = pair.chunk(2, 1)
    return memory, surprise


def flat(pair: Tensor) -> Tensor:
    """The halves of a pair as two rows [R, 2, A B]."""
    return pair.view(len(pair), 2, -1)


def weighted(weights: Tensor, x: Tensor) -> Tensor:
    """x [..., C, A] twice, side by side, with weights [..., C, 2, 1]."""
    return (x[..., None, :] * weights).flatten(-2)
