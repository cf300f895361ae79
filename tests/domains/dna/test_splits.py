"""Splits keep classes even and groups whole, and what they have in common is counted."""

import numpy as np
import pytest
from dna_files import bases
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.splits import (
    Overlap,
    chromosome_split,
    duplicates,
    group_split,
    joined_groups,
    overlaps,
    sequence_groups,
    stratified_split,
)

LABELS = st.lists(st.sampled_from("abc"), min_size=4, max_size=60).map(np.array)


def test_duplicates_on_both_strands_are_counted() -> None:
    one, two, three, four = (bases(20, seed=i) for i in range(4))
    splits = {
        "train": [one, two, two, "ACGT"],
        "valid": [three],
        # ACGT is its own other strand, and counts as the same.
        "test": [two, reverse_complement(one), four, "ACGT", reverse_complement(three)],
    }
    assert overlaps(splits) == [
        Overlap("train", "test", 2, 1, 5),
        Overlap("valid", "test", 0, 1, 5),
    ]
    assert str(overlaps(splits)[0]) == (
        "3 of 5 sequences of test stand in train too (1 of them as reverse complements): its figures "
        "may be too good"
    )
    assert overlaps({"a": [one], "b": [two]}) == []
    assert duplicates([one, two, reverse_complement(one), one, four]) == 2
    assert sequence_groups([one, two, reverse_complement(one), one]).tolist() == [0, 1, 0, 0]


def test_another_seed_gives_another_split() -> None:
    labels = np.arange(60) % 3
    assert (stratified_split(labels, 0.2, 0)[1] != stratified_split(labels, 0.2, 1)[1]).any()


@given(LABELS, st.floats(0.05, 0.95), st.integers(0, 3))
def test_a_stratified_split_takes_its_share_of_every_class(
    labels: np.ndarray, share: float, seed: int
) -> None:
    if max(np.unique(labels, return_counts=True)[1]) < 2:
        return
    first, second = stratified_split(labels, share, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    for label in np.unique(labels):
        total, taken = (labels == label).sum(), (labels[second] == label).sum()
        assert abs(taken - share * total) <= 1
        assert taken < total
        assert taken > 0 or total == 1


def test_rows_of_several_labels_are_classes_by_their_sets() -> None:
    labels = np.array([[0, 1], [1, 1]] * 10)
    _, second = stratified_split(labels, 0.2, 0)
    assert labels[second].sum(0).tolist() == [2, 4]


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=60), st.floats(0.1, 0.9))
def test_groups_stay_whole(groups: list[str], share: float) -> None:
    names = np.array(groups)
    if len(set(groups)) < 2:
        with pytest.raises(ValueError, match="needs at least 2 groups"):
            group_split(names, share, 0)
        return
    first, second = group_split(names, share, 0)
    assert sorted([*first, *second]) == list(range(len(groups)))
    assert len(first)
    assert len(second)
    assert not set(names[first]) & set(names[second])


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdef")), min_size=1, max_size=12))
def test_groups_with_a_sequence_in_common_are_one(rows: list[tuple[int, str]]) -> None:
    sequences = [bases(20, seed=number) for number, _ in rows]
    sequences = [s if i % 2 else reverse_complement(s) for i, s in enumerate(sequences)]
    joined = joined_groups(np.array([group for _, group in rows]), sequences).tolist()
    # Two rows are tied where a path of rows with one group or one sequence leads from each to the other.
    tied = np.array([[a[0] == b[0] or a[1] == b[1] for b in rows] for a in rows])
    for _ in rows:
        tied = tied @ tied
    for here, name in enumerate(joined):
        assert [other == name for other in joined] == tied[here].tolist()
        assert name == min(rows[there][1] for there in np.flatnonzero(tied[here]))


def test_a_split_by_groups_is_near_its_share() -> None:
    names = np.repeat(np.arange(50), 4)
    for seed in range(5):
        assert len(group_split(names, 0.2, seed)[1]) == 40


def test_chromosomes_are_held_out_by_name() -> None:
    groups = np.array(["chr1", "chr2", "chr1", "chr8"])
    first, second = chromosome_split(groups, ["chr8", "chr2"])
    assert (first.tolist(), second.tolist()) == ([0, 2], [1, 3])
    with pytest.raises(ValueError, match="no row of 'chr9'; the first groups are chr1, chr2, chr8"):
        chromosome_split(groups, ["chr9"])
    with pytest.raises(ValueError, match="leaves no row to train on"):
        chromosome_split(groups, ["chr1", "chr2", "chr8"])
    with pytest.raises(ValueError, match="give a column `chromosome`"):
        chromosome_split(None, ["chr1"])


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="every class has one. Give more sequences"):
        stratified_split(np.arange(4), 0.5, 0)
    with pytest.raises(ValueError, match="between 0 and 1: got 1"):
        stratified_split(np.zeros(4), 1, 0)
