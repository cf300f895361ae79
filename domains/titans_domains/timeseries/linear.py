"""One linear map from a window to what follows it, shared by all series, in closed form.

n windows, L steps of the past, H of the future. Both less the window's last value (NLinear's form), so
the map has no bias and follows a shift of level.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Of the ridge, in shares of the mean square of a window's values."""


class Moments(NamedTuple):
    """Sums over windows: all that a fit, and its error on other windows, need."""

    past: Float[Tensor, "L L"]
    cross: Float[Tensor, "L H"]
    future: Float[Tensor, ""]  # sum of squares
    number: int  # of windows

    def mse(self, weight: Float[Tensor, "H L"]) -> float:
        """Mean squared error of a map on these windows."""
        explained = 2 * (weight.mT * self.cross).sum() - ((weight @ self.past) * weight).sum()
        return ((self.future - explained) / (self.number * len(weight))).item()


class Ridge(NamedTuple):
    weight: Float[Tensor, "H L"]
    penalty: float
    valid_mse: float


def moments(
    batches: Iterable[tuple[Float[Tensor, "n L"], Float[Tensor, "n H"]]],
) -> Moments:
    """Of windows without missing values and what follows them, in float64."""
    parts = (_moments(past.double(), future.double()) for past, future in batches if len(past))
    first = next(parts, None)
    if first is None:
        raise ValueError("A linear map needs at least one window: got none.")
    return reduce(_added, parts, first)


def _moments(past: Tensor, future: Tensor) -> Moments:
    end = past[:, -1:]
    x, y = past - end, future - end
    return Moments(x.mT @ x, x.mT @ y, y.square().sum(), len(x))


def _added(a: Moments, b: Moments) -> Moments:
    return Moments(a.past + b.past, a.cross + b.cross, a.future + b.future, a.number + b.number)


def solve(train: Moments, penalty: float) -> Float[Tensor, "H L"]:
    """The map of least squared error, with a ridge `penalty` as a share of the mean square."""
    # A window's last value less itself is 0: a little penalty keeps the matrix regular.
    size = train.past.diagonal().mean()
    size = size.where(size > 0, 1.0)
    eye = torch.eye(len(train.past), dtype=torch.float64, device=train.past.device)
    return torch.linalg.solve(train.past + penalty * size * eye, train.cross, left=True).mT


def fit_ridge(train: Moments, valid: Moments, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """The map of the penalty with the least error on the validation windows."""
    fits = ((solve(train, penalty), penalty) for penalty in penalties)
    return min(
        (Ridge(weight, penalty, valid.mse(weight)) for weight, penalty in fits),
        key=lambda fit: fit.valid_mse,
    )


def predict(weight: Float[Tensor, "H L"], past: Float[Tensor, "n L"]) -> Float[Tensor, "n H"]:
    """What a map foresees, in the units of the past."""
    end = past[..., -1:]
    return (past - end) @ weight.mT.to(past.dtype) + end
