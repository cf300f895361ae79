"""What can be said of a memory: how large it is, what it answers, how far a token still stands in it.

N tokens, T tokens of a piece, H memory heads, D width of a head, L layers of the memory MLP, C channels
that forget by themselves.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from titans_core.memory import Recall
from titans_kernels import MemoryState, memory_read
from titans_kernels.memory_update.types import Weights


def weights_of(recall: Recall, memory: Weights) -> Weights:
    """The matrices that are read, of a state that keeps what was added to M_{-1}."""
    if recall.rule.forget_toward == "zero":
        return memory
    return tuple(base + m for base, m in zip(recall.initial, memory, strict=True))


def effective_rank(weight: Float[Tensor, "*N _out _in"]) -> Float[Tensor, "*N"]:
    """exp of the entropy of the singular values divided by their sum; NaN for a matrix of zeros.

    Between 1 and the rank. Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(weight.double())
    shares = values / values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def subspace_cosines(
    one: Float[Tensor, "*N _out _in"], other: Float[Tensor, "*N _out _in"], size: int
) -> Float[Tensor, "*N _size"]:
    """Cosines of the principal angles between the leading `size` input directions of two matrices.

    1 for a direction that both have, 0 for one that the other has none of. Bjorck and Golub, 1973.
    """
    bases = [
        torch.linalg.svd(x.double(), full_matrices=False).Vh[..., :size, :] for x in (one, other)
    ]
    return torch.linalg.svdvals(bases[0] @ bases[1].mT).clamp(max=1)


@torch.no_grad()
def answers(
    recall: Recall, state: MemoryState, k: Float[Tensor, "N H D"]
) -> Float[Tensor, "N H D"]:
    """What the memory of a state of one row returns for keys of length 1; nothing is written."""
    return memory_read(
        k[None], state, tuple(recall.initial),
        rule=recall.rule, norm=(recall.norm_gain, recall.norm_bias),
    )[0]  # fmt: skip


class Standing(NamedTuple):
    """How far tokens that were written stand in a memory at a later time, from the gates alone.

    The recurrence is linear in what is written, whatever the gradients: eq. 13 and 14 make of a token's
    step u_s = -step_size g_s a summand `written` u_s of the memory. Channels that forget by themselves are
    to be averaged here and not in the gates: a mean of products is no product of means.
    """

    retained: Float[Tensor, "N H L *C"]  # product of 1 - forget over the tokens after it
    carried: Float[Tensor, "N H L *C"]  # product of momentum over them: its share in the surprise
    written: Float[Tensor, "N H L *C"]  # above 1 where momentum has gone on writing it


def standing(momentum: Float[Tensor, "T H L *C"], forget: Float[Tensor, "T H L *C"]) -> Standing:
    """That of each token of a piece after the piece's last one, in float64."""
    momentum, retain = momentum.double(), 1 - forget.double()
    retained, carried = (_products_after(x) for x in (retain, momentum))
    written = torch.empty_like(retained)
    last = torch.zeros_like(retained[:1])
    for t in reversed(range(len(retained))):
        share = momentum[t + 1 : t + 2] * last if t + 1 < len(retained) else last
        last = written[t : t + 1] = retained[t : t + 1] + share
    return Standing(retained, carried, written)


def aged(
    before: Standing, momentum: Float[Tensor, "T H L *C"], forget: Float[Tensor, "T H L *C"]
) -> Standing:
    """The same tokens after another piece was read."""
    momentum, retain = momentum.double(), 1 - forget.double()
    # What each token of the piece still writes of an earlier one, and what forgetting leaves of that.
    more = (momentum.cumprod(0) * _products_after(retain)).sum(0)
    return Standing(
        before.retained * retain.prod(0),
        before.carried * momentum.prod(0),
        before.written * retain.prod(0) + before.carried * more,
    )


def _products_after(x: Float[Tensor, "T ..."]) -> Float[Tensor, "T ..."]:
    """Of all later entries. Products and no quotients: momentum may be 0, and forget 1."""
    after = x.flip(0).cumprod(0).flip(0)
    return torch.cat([after[1:], torch.ones_like(x[:1])])


def half_life(ages: Sequence[float], values: Sequence[float], floor: float = 0.0) -> float | None:
    """The age at which what stands above `floor` at the first age has fallen to half.

    Ages ascend. Between two of them the fall is taken as even; inf where it is not reached, None where
    there is nothing above the floor to lose.
    """
    if not values or not values[0] > floor:
        return None
    half = floor + (values[0] - floor) / 2
    for at in range(1, len(values)):
        if values[at] <= half:
            share = (values[at - 1] - half) / (values[at - 1] - values[at])
            return ages[at - 1] + share * (ages[at] - ages[at - 1])
    return math.inf
