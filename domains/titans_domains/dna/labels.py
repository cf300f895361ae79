"""What a caller of the classifier hands over: sequences as strings, labels of any kind, groups.

n sequences, C classes or labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from titans_domains.dna.reading import clean
from titans_domains.dna.splits import group_split, joined_groups, sequence_groups, stratified_split


def strings(X: Any) -> list[str]:
    """Clean sequences of a list, an array or a column of strings; errors count them from 0."""
    if isinstance(X, str | bytes):
        raise TypeError("X must be a list of sequences: got a single string; pass [sequence].")
    found = np.asarray(X, dtype=object)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise ValueError(
            f"X must be a list of sequences, one string for each: got shape {list(found.shape)}."
        )
    if not len(found):
        raise ValueError("X is empty: give at least one sequence (0 sample(s) were given).")
    for number, sequence in enumerate(found):
        if not isinstance(sequence, str):
            raise TypeError(
                f"X must hold strings of bases: sequence {number} is of type "
                f"{type(sequence).__name__}."
            )
        if not sequence:
            raise ValueError(f"sequence {number} is empty: give at least one base or leave it out.")
    return [clean(s, f"sequence {i}", whole=True).sequence for i, s in enumerate(found)]


def read_labels(
    y: Any, count: int
) -> tuple[Int[np.ndarray, "n ..."], Shaped[np.ndarray, " C"], bool]:
    """Numbers of classes (or 0 and 1 for each of several labels), the classes, and whether several."""
    labels = _checked(y, count)
    if labels.ndim == 2:
        if labels.shape[1] < 2 or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                "y of shape [n, C] must hold 0 or 1 for each of at least 2 labels: got shape "
                f"{list(labels.shape)}; give one class for each sequence as shape [n]."
            )
        return labels.astype(np.int64), np.arange(labels.shape[1]), True
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y must have at least 2 classes: every one of {count} sequences is of class "
            f"{classes.tolist()[0]!r}."
        )
    return numbers.astype(np.int64), classes, False


def known_labels(
    y: Any, classes: Shaped[np.ndarray, " C"], multilabel: bool
) -> Int[np.ndarray, "n ..."]:
    """Labels as numbers of classes that were learned before."""
    labels = _checked(y, None)
    if (labels.ndim == 2) != multilabel or (multilabel and labels.shape[1] != len(classes)):
        raise ValueError(
            f"The labels must be like those trained on, of {len(classes)} "
            f"{'labels, [n, C]' if multilabel else 'classes, [n]'}: got shape {list(labels.shape)}."
        )
    if multilabel:
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("y of shape [n, C] must hold 0 or 1 for each label: got other values.")
        return labels.astype(np.int64)
    odd = np.setdiff1d(labels, classes)
    if len(odd):
        raise ValueError(
            f"The class {odd.tolist()[0]!r} is not among those trained on: {', '.join(map(str, classes))}."
        )
    return np.searchsorted(classes, labels)


def _checked(y: Any, count: int | None) -> Shaped[np.ndarray, "n ..."]:
    if y is None:
        raise ValueError("y is needed: requires y to be passed, but the target y is None.")
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2):
        raise ValueError(f"y must have shape [n] or [n, C]: got {list(labels.shape)}.")
    if count is not None and len(labels) != count:
        raise ValueError(
            f"X and y must be of one length: got {count} sequences and {len(labels)} labels."
        )
    if labels.dtype == object:
        for number, label in enumerate(labels.flat):
            if label is None or label != label:
                raise ValueError(f"The label of sequence {number} is missing (NaN or None).")
        labels = np.array(labels.tolist())
    if labels.dtype.kind == "U":
        # So numpy writes NaN among words.
        missing = np.flatnonzero(np.isin(labels, ("", "nan")).reshape(len(labels), -1).any(1))
        if len(missing):
            raise ValueError(f"The label of sequence {missing[0]} is missing (NaN or empty).")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            at = int(np.argmax(~np.isfinite(labels).reshape(len(labels), -1).all(1)))
            raise ValueError(f"The label of sequence {at} is missing (NaN) or infinite.")
        if (labels != np.floor(labels)).any():
            raise ValueError("Unknown label type: y must hold classes, not fractions: got floats.")
    return labels


def held_out(
    sequences: Sequence[str],
    labels: Int[np.ndarray, "n ..."],
    groups: Any,
    share: float,
    seed: int,
    *,
    names: Sequence[Any] | None = None,
) -> Bool[np.ndarray, " n"]:
    """True on the rows for validation: whole groups, or by class; duplicates are on one side.

    ValueError where a class would not be trained on; `names` are those of the classes, for its sentence.
    """
    chosen = _chosen(sequences, labels, groups, share, seed)
    kept, every = (_present(rows) for rows in (labels[~chosen], labels))
    if lost := np.setdiff1d(every, kept).tolist():
        name = lost[0] if names is None else names[lost[0]]
        raise ValueError(
            f"The split leaves no sequence of {name!r} to train on, as its groups or duplicates stay on one "
            "side: give other groups, another seed, or a validation set."
        )
    return chosen


def _present(labels: Int[np.ndarray, "n ..."]) -> Int[np.ndarray, " C"]:
    """The classes that some row has; of several labels, those that are 1 somewhere."""
    return np.flatnonzero(labels.any(0)) if labels.ndim == 2 else np.unique(labels)


def _chosen(
    sequences: Sequence[str],
    labels: Int[np.ndarray, "n ..."],
    groups: Any,
    share: float,
    seed: int,
) -> Bool[np.ndarray, " n"]:
    chosen = np.zeros(len(sequences), bool)
    if groups is not None:
        given = np.asarray(groups)
        if given.shape != (len(sequences),):
            raise ValueError(
                f"groups must have one entry for each of {len(sequences)} sequences: got shape "
                f"{list(given.shape)}."
            )
        chosen[group_split(joined_groups(given, sequences), share, seed)[1]] = True
        return chosen
    same = sequence_groups(sequences)
    _, first = np.unique(same, return_index=True)
    _, rows = stratified_split(labels[first], share, seed)
    return np.isin(same, rows)
