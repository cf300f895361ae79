"""Figures of a classifier on labelled sequences: accuracy, MCC, macro-F1, AUROC, with intervals.

n sequences, C classes or labels. With several labels a sequence (`Int[n, C]`, 0 or 1) each label is a
task of its own: accuracy is the share of right cells, the other figures are means over the labels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Figure(NamedTuple):
    value: float
    low: float  # of the 95 % bootstrap interval
    high: float


def confusion(
    truth: Int[np.ndarray, " n"], guess: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "C C"]:
    """How often the class of the row was taken for that of the column."""
    cells = truth.astype(np.int64) * classes + guess
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def accuracy(table: Int[np.ndarray, "C C"]) -> float:
    return float(table.trace() / table.sum())


def matthews(table: Int[np.ndarray, "C C"]) -> float:
    """Matthews' correlation, for any number of classes; 0 where one side has a single class."""
    counts = table.astype(np.float64)
    total, right = counts.sum(), counts.trace()
    truth, guess = counts.sum(1), counts.sum(0)
    spread = np.sqrt((total**2 - truth @ truth) * (total**2 - guess @ guess))
    return float((right * total - truth @ guess) / spread) if spread else 0.0


def macro_f1(table: Int[np.ndarray, "C C"]) -> float:
    """Mean F1 of the classes that are in the truth or among the guesses."""
    both = table.sum(0) + table.sum(1)
    return float((2 * table.diagonal()[both > 0] / both[both > 0]).mean())


def auroc(positive: Shaped[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """The chance that a positive has a higher score than a negative, ties half; NaN without both."""
    positive = positive.astype(bool)
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return float("nan")
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def scores(truth: Int[np.ndarray, "n ..."], proba: Float[np.ndarray, "n C"]) -> dict[str, float]:
    """The four figures. `truth` holds numbers of classes, or 0 and 1 for each label."""
    if truth.ndim == 2:
        rows = [scores(t, np.stack([1 - p, p], 1)) for t, p in zip(truth.T, proba.T, strict=True)]
        return {name: _mean([row[name] for row in rows]) for name in rows[0]}
    classes = proba.shape[1]
    table = confusion(truth, proba.argmax(1), classes)
    if classes == 2:
        area = auroc(truth == 1, proba[:, 1])
    else:
        areas = [auroc(truth == c, proba[:, c]) for c in np.unique(truth)]
        area = float(np.mean(areas))
    return {
        "accuracy": accuracy(table),
        "mcc": matthews(table),
        "macro_f1": macro_f1(table),
        "auroc": area,
    }


def _mean(values: list[float]) -> float:
    """The mean of those that are there, NaN where none is."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")


def intervals(
    truth: Int[np.ndarray, "n ..."],
    proba: Float[np.ndarray, "n C"],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """The figures with 95 % intervals, by drawing as many sequences with replacement."""
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        rows = random.integers(len(truth), size=len(truth))
        drawn.append(scores(truth[rows], proba[rows]))
    found = {}
    for name, value in scores(truth, proba).items():
        there = [row[name] for row in drawn if not np.isnan(row[name])] or [float("nan")]
        low, high = np.quantile(there, [0.025, 0.975])
        found[name] = Figure(value, float(low), float(high))
    return found
