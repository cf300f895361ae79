"""Rows of a made task: a training set of so many rows, gone through in another order every epoch."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from titans_domains.language.suites.problem import SPLITS, Examples, Split, random_of

Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Inputs and targets of one row, [T] each."""


def draw_rows(
    make: Callable[[np.random.Generator], Row],
    rows: int,
    length: int,
    split: Split,
    number: int,
    *,
    seed: int,
    train_rows: int | None,
) -> Examples:
    """Batch `number` of a split, of rows that `make` draws.

    Training has `train_rows` rows in all, each made from its own number, or fresh ones without end
    where that is None; the other splits are fresh always.
    """
    if split == "train" and train_rows is not None:
        randoms = [
            np.random.default_rng([seed, SPLITS.index(split), length, 0, row])
            for row in places(rows, number, seed, train_rows)
        ]
    else:
        randoms = [random_of(seed, split, length, number)] * rows
    inputs, targets = zip(*map(make, randoms), strict=True)
    return Examples(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)))


def places(rows: int, number: int, seed: int, train_rows: int) -> list[int]:
    """Which rows of the training set batch `number` holds."""
    found: list[int] = []
    at = number * rows
    while len(found) < rows:
        epoch, first = divmod(at + len(found), train_rows)
        order = np.random.default_rng([seed, epoch]).permutation(train_rows)
        found += order[first : first + rows - len(found)].tolist()
    return found


def check_rows(train_rows: int | None) -> None:
    if train_rows is not None and train_rows < 1:
        raise ValueError(
            f"train_rows must be at least 1, or None for fresh rows: got {train_rows}."
        )
