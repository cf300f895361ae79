"""Instance normalisation in which what is missing stays missing.

B batch, L steps, C channels, T rows, N stretches of them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Scaling = Literal["std", "mean", "none"]

FLOOR = 1e-6
"""Least scale, as a share of a window's largest value: beyond it, float32 shows rounding alone."""


def window_scale(
    past: Float[Tensor, "B L C"], observed: Bool[Tensor, "B L C"], scaling: Scaling
) -> tuple[Float[Tensor, "B 1 C"], Float[Tensor, "B 1 C"]]:
    """Location and scale of what is observed: 0 and 1 where nothing is.

    std: mean and standard deviation; mean: 0 and the mean size; none: 0 and 1. The scale of a constant
    window is small and positive, so that what a network adds to it is small too.
    """
    # In float64, since the deviation of large values of small spread is lost in float32.
    values = past.double().masked_fill(~observed, 0)
    count = observed.sum(1, keepdim=True)
    if scaling == "none":
        none = torch.zeros_like(values[:, :1]).to(past.dtype)
        return none, torch.ones_like(none)
    share = 1 / count.clamp(min=1).double()
    if scaling == "mean":
        loc = torch.zeros_like(values[:, :1])
        scale = values.abs().sum(1, keepdim=True) * share
    else:
        loc = values.sum(1, keepdim=True) * share
        spread = (values - loc).masked_fill(~observed, 0)
        scale = (spread.square().sum(1, keepdim=True) * share).sqrt()
    largest = values.abs().amax(1, keepdim=True)
    floor = FLOOR * largest.where(largest > 0, 1.0)
    scale = scale.maximum(floor).where(count > 0, 1.0)
    return loc.to(past.dtype), scale.to(past.dtype)


def has_scale(rows: Float[Tensor, "T C"], size: int, scaling: Scaling) -> Bool[Tensor, " N"]:
    """Of each stretch of `size` rows, whether it gives every channel a scale above the least one."""
    count = max(0, len(rows) - size + 1)
    if scaling == "none" or not count:
        return torch.ones(count, dtype=torch.bool)
    missing = rows.isnan()
    high, low = (
        F.max_pool1d(x.masked_fill(missing, -torch.inf).mT, size, 1) for x in (rows, -rows)
    )
    largest = high.maximum(low)
    spread = largest if scaling == "mean" else high + low
    return (spread > FLOOR * largest.where(largest > 0, 1.0)).all(0)


def normalise(
    past: Float[Tensor, "B L C"],
    observed: Bool[Tensor, "B L C"],
    loc: Float[Tensor, "B 1 C"],
    scale: Float[Tensor, "B 1 C"],
) -> Float[Tensor, "B L C"]:
    """Values in units of the scale, and the location (0) where a value is missing."""
    # Filled before the arithmetic: a missing value may be NaN.
    return (past.where(observed, loc) - loc) / scale


def fill_gaps(values: Float[Tensor, "R L"], observed: Bool[Tensor, "R L"]) -> Float[Tensor, "R L"]:
    """The last value observed before each gap; 0 before the first one."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    last = (steps * observed).cummax(1).values
    return values.gather(1, (last - 1).clamp(min=0)).where(last > 0, 0)
