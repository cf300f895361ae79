"""Splits that keep classes even or groups whole, and what two splits have in common."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from titans_domains.dna.reading import reverse_complement


class Overlap(NamedTuple):
    """Sequences of split `second` that stand in split `first` too, as they are or as the other strand."""

    first: str
    second: str
    same: int
    reverse: int  # those that are there as the other strand only
    total: int  # of `second`

    def __str__(self) -> str:
        found = self.same + self.reverse
        return (
            f"{found:,} of {self.total:,} sequences of {self.second} stand in {self.first} too "
            f"({self.reverse:,} of them as reverse complements): its figures may be too good"
        )


def overlaps(splits: Mapping[str, Iterable[str]]) -> list[Overlap]:
    """The overlap of each pair of splits that have one."""
    listed = {name: list(sequences) for name, sequences in splits.items()}
    found = []
    for (first, a), (second, b) in combinations(listed.items(), 2):
        known = set(a)
        same = sum(sequence in known for sequence in b)
        reverse = sum(s not in known and reverse_complement(s) in known for s in b)
        if same or reverse:
            found.append(Overlap(first, second, same, reverse, len(b)))
    return found


def duplicates(sequences: Iterable[str]) -> int:
    """How many sequences came before already, on either strand."""
    listed = list(sequences)
    return len(listed) - len({canonical(sequence) for sequence in listed})


def canonical(sequence: str) -> str:
    """One name for both strands."""
    return min(sequence, reverse_complement(sequence))


def sequence_groups(sequences: Iterable[str]) -> Int[np.ndarray, " n"]:
    """A number for each sequence, which it shares with its duplicates on both strands."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(canonical(s), len(numbers)) for s in sequences])


def joined_groups(
    groups: Shaped[np.ndarray, " n"], sequences: Iterable[str]
) -> Shaped[np.ndarray, " n"]:
    """The groups, of which those with a sequence in common, on either strand, have one name."""
    names, codes = np.unique(groups, return_inverse=True)
    joined = list(range(len(names)))  # each group points at an earlier one that it is joined to

    def root(group: int) -> int:
        while joined[group] != group:
            joined[group] = group = joined[joined[group]]
        return group

    owner: dict[int, int] = {}
    for group, sequence in zip(codes.tolist(), sequence_groups(sequences).tolist(), strict=True):
        ends = root(group), root(owner.setdefault(sequence, group))
        joined[max(ends)] = min(ends)
    found: np.ndarray = names[[root(group) for group in codes.tolist()]]
    return found


def stratified_split(
    labels: Shaped[np.ndarray, "n ..."], share: float, seed: int
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Row numbers of two parts, the second of `share` of all and of every class with two rows or more."""
    _check_share(share)
    classes = _codes(labels)
    order = np.random.default_rng(seed).permutation(len(classes))
    second: list[int] = []
    for value in np.unique(classes):
        rows = order[classes[order] == value]
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            second += rows[:count].tolist()
    if not second:
        raise ValueError(
            "Validation needs a class with two different sequences or more (duplicates, on either strand, "
            "count once): every class has one. Give more sequences, or none to validation."
        )
    chosen = np.sort(np.array(second))
    return np.setdiff1d(np.arange(len(classes)), chosen), chosen


def group_split(
    groups: Shaped[np.ndarray, " n"], share: float, seed: int
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Row numbers of two parts with no group in common, the second of about `share` of the rows."""
    _check_share(share)
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(
            f"A split by groups needs at least 2 groups with no sequence in common: all rows are in "
            f"{names[0]!r}, or in groups tied to it."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.cumsum(sizes[order]) - sizes[order]
    # A group is taken where at least half of it fits, the first in any case, and never all.
    fits = before + sizes[order] / 2 <= share * len(codes)
    taken = order[
        : min(max(1, int(fits.argmin()) if not fits.all() else len(names)), len(names) - 1)
    ]
    chosen = np.isin(codes, taken)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def chromosome_split(
    groups: Shaped[np.ndarray, " n"] | None, held_out: Iterable[str]
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Row numbers outside and inside the chromosomes (or other groups) that are held out by name."""
    names = list(held_out)
    if groups is None:
        raise ValueError(
            "A split by chromosomes needs to know them: give a column `chromosome` or `group`."
        )
    for name in names:
        if name not in groups:
            known = ", ".join(map(str, np.unique(groups)[:5]))
            raise ValueError(f"There is no row of {name!r}; the first groups are {known}.")
    chosen = np.isin(groups, names)
    if chosen.all():
        raise ValueError(f"Holding out {', '.join(names)} leaves no row to train on.")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _codes(labels: np.ndarray) -> np.ndarray:
    """Classes as numbers; rows with the same set of labels are one class."""
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"The share of a split must be between 0 and 1: got {share}.")
