"""From gates to the numbers by which the tokens of a chunk weigh in its memory.

N chunks, R rows times heads, C tokens in a chunk, D width of a head, G gates per head: one for each
layer, or one for all. `retain`, `past`, `mix`, `momentum`, `last` are the README's c, p, G, m at the
chunk's end and P's last row.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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
    retain = cumulative_products(
        torch.where(live, 1 - forget, 1.0)
    )  # A with the start: [.., C, C+1]
    kept = cumulative_products(torch.where(live, momentum, 1.0))  # P with the start
    mixed = (retain[..., 1:] * live[..., None, :]) @ kept  # p and G of the README, side by side
    return Coefficients(
        step=torch.where(live, step, 0.0)[..., None],
        retain=retain[..., :1],
        past=mixed[..., :1],
        mix=mixed[..., 1:],
        momentum=kept[..., -1:, :1],
        last=kept[..., -1, 1:, None],
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
    hidden = None
    if layers > 2:
        hidden = coefficients_of(step, momentum, forget.mean(1, keepdim=True), written=written)
    return ChannelCoefficients(outer, hidden, layers)


def cumulative_products(factors: Float[Tensor, "... C"]) -> Float[Tensor, "... C C+1"]:
    """Entry [t, j] is the product of factors j to t; 1 at j = t + 1, and 0 beyond.

    By doubling, so that only products occur: a factor of exactly 0 is exact, its gradient too.
    """
    size = factors.shape[-1]
    rows = torch.arange(size, device=factors.device)[:, None]
    columns = torch.arange(size + 1, device=factors.device)
    products = torch.where(rows >= columns, factors[..., None], 1.0)
    reach = 1
    while reach < size:
        products = products * F.pad(products[..., :-reach, :], (0, 0, reach, 0), value=1.0)
        reach *= 2
    return products.tril(1)
