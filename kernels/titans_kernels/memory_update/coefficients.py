"""From gates to the numbers by which the tokens of a chunk weigh in its memory.

N chunks, R rows times heads, C tokens in a chunk, D width of a head, G gates per head: one for each
layer, or one for all. `retain`, `past`, `mix`, `momentum`, `last` are the README's c, p, G, m at the
chunk's end and P's last row.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class Coefficients(NamedTuple):
    """How the tokens of each chunk weigh in its memory; of every chunk, or of one without the N.

    Where forgetting is per channel, `retain` and `past` end in D, and `mix` has D as one axis more.
    """

    step: Tensor  # [N, R, G, C, 1]: step size, 0 where masked
    retain: Tensor  # [N, R, G, C, 1]: share of the chunk's first memory left in M_t
    past: Tensor  # [N, R, G, C, 1]: share of the chunk's first surprise in M_t
    mix: Tensor  # [N, R, G, C, C]: share of token s's update in M_t
    momentum: Tensor  # [N, R, G, 1, 1]: share of the first surprise left in the last
    last: Tensor  # [N, R, G, C, 1]: share of token s's update in the last surprise

    def layer(self, index: int) -> "Coefficients":
        return Coefficients(*(x[:, index % x.shape[1]] for x in self))

    def repeated(self, times: int) -> "Coefficients":
        """For one layer: of updates that hold the chunk's tokens so many times over."""
        if times == 1:
            return self
        return self._replace(
            mix=torch.cat([self.mix] * times, 2), last=torch.cat([self.last] * times, 1)
        )


class ChannelCoefficients(NamedTuple):
    """The coefficients of one chunk where forgetting is per channel."""

    outer: Coefficients  # of the first and the last layer
    hidden: Coefficients | None  # of those between, which forget by the channels' mean
    layers: int

    def layer(self, index: int) -> Coefficients:
        if self.hidden is not None and 0 < index < self.layers - 1:
            return self.hidden.layer(index)
        return self.outer.layer(index)


def coefficients_of(
    step: Tensor, momentum: Tensor, forget: Tensor, *, written: Tensor
) -> Coefficients:
    """From gates [N, R, G, C], G = L or 1 for all layers, what every chunk needs of them."""
    live = written[..., None, :]  # [N, R, 1, C]
    shares, kept = shares_of(momentum, forget, live)
    return Coefficients(
        step=torch.where(live, step, 0.0)[..., None],
        retain=shares[..., :1],
        past=shares[..., 1:2],
        mix=shares[..., 2:],
        momentum=kept[..., :1, None],
        last=kept[..., 1:, None],
    )


def channel_coefficients(
    step: Tensor, momentum: Tensor, forget: Tensor, *, written: Tensor, layers: int
) -> ChannelCoefficients:
    """From one chunk's step and momentum [R, G, C] and forget [R, D, C]."""
    outer = coefficients_of(
        step[:, :, None], momentum[:, :, None], forget[:, None], written=written[:, None]
    )
    outer = Coefficients(*(x.movedim(2, -1) for x in outer))  # [R, G, C, ..., D or 1]
    outer = Coefficients(*(x if x is outer.mix else x.squeeze(-2) for x in outer))
    # The momentum is one for all channels.
    outer = outer._replace(momentum=outer.momentum[..., :1], last=outer.last[..., :1])
    hidden = None
    if layers > 2:
        hidden = coefficients_of(step, momentum, forget.mean(1, keepdim=True), written=written)
    return ChannelCoefficients(outer, hidden, layers)


def shares_of(
    momentum: Float[Tensor, "*#M C"], forget: Float[Tensor, "*#M C"], live: Tensor
) -> tuple[Float[Tensor, "*#M C C+2"], Float[Tensor, "*#M C+1"]]:
    """What M_t and the last surprise are made of, with `live` False at tokens that write nothing.

    Row t of the first holds c_t, p_t and G's row t, the second m and P's last row.
    """
    retain = torch.where(live, 1 - forget, 1.0)
    keep = torch.where(live, momentum, 1.0)
    retain, keep, live = torch.broadcast_tensors(retain, keep, live.to(keep.dtype))
    shape = retain.shape
    shares, kept = Shares.apply(*(x.reshape(-1, shape[-1]) for x in (retain, keep, live)))
    return shares.unflatten(0, shape[:-1]), kept.unflatten(0, shape[:-1])


class Shares(torch.autograd.Function):
    """Goes through the tokens of all chunks at once.

    Only by products, so that a gate of exactly 0 is exact, its gradient too. Columns are what memory
    and surprise consist of: the first memory, the first surprise, and every token's update.
    """

    @staticmethod
    def forward(
        ctx: Any, retain: Tensor, keep: Tensor, live: Tensor
    ) -> tuple[Float[Tensor, "M C C+2"], Float[Tensor, "M C+1"]]:
        rows, size = retain.shape
        # Token first, so that every step goes through memory in order.
        shares = retain.new_zeros(size, rows, size + 2)  # of M_t
        kept = retain.new_ones(rows, size + 2)  # of S_t, in the columns that have begun
        kept[:, 0] = 0
        shares[0, :, 0] = retain[:, 0]
        for t in range(size):
            kept[:, : t + 2] *= keep[:, t, None]
            shares[t, :, 1 : t + 3].addcmul_(kept[:, 1 : t + 3], live[:, t, None])
            if t > 0:
                shares[t, :, : t + 2].addcmul_(shares[t - 1, :, : t + 2], retain[:, t, None])
        ctx.save_for_backward(retain, keep, live, shares)
        return shares.transpose(0, 1), kept[:, 1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_shares: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, None]:
        retain, keep, live, shares = ctx.saved_tensors
        size = retain.shape[1]
        by_shares = d_shares.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        d_retain = back_through(retain, shares, by_shares, 0)
        kept = torch.zeros_like(shares)
        kept[0, :, 1] = keep[:, 0]
        kept.diagonal(2, 0, 2).fill_(1)
        for t in range(1, size):
            torch.mul(kept[t - 1, :, : t + 2], keep[:, t, None], out=kept[t, :, : t + 2])
        by_kept = by_shares.mul_(live.mT[..., None])
        by_kept[-1, :, 1:] += d_last
        return d_retain, back_through(keep, kept, by_kept, 1), None


def back_through(factors: Tensor, states: Tensor, by_states: Tensor, first: int) -> Tensor:
    """Of states that are each the one before times a factor, and more: gradient by the factors.

    States and gradients by them are [C, M, C+2], the latter completed in place. Column `first` begins
    as 1. What a row says of columns that begin later is not looked at: the states are 0 there.
    """
    for t in reversed(range(1, len(states))):
        by_states[t - 1, :, : t + 2].addcmul_(by_states[t, :, : t + 2], factors[:, t, None])
    d_factors = torch.empty_like(factors)
    d_factors[:, 0] = by_states[0, :, first]
    for t in range(1, len(states)):
        torch.linalg.vecdot(
            by_states[t, :, : t + 2], states[t - 1, :, : t + 2], out=d_factors[:, t]
        )
    return d_factors
