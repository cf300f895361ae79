"""Made promoters follow their grammar, and their Bayes accuracy is what the best classifier has."""

import itertools

import numpy as np
import pytest

from titans_domains.dna.labelled import labelled_splits
from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.synthetic import (
    Grammar,
    bayes_accuracy,
    classes,
    mixture,
    posterior,
    promoters,
)

SHARP = Grammar(sharpness=1 - 1e-9)


def test_the_boxes_stand_where_the_grammar_says() -> None:
    rows = promoters(300, 1, SHARP)
    kinds = {name.rsplit("_", 1)[0] for name in rows.names}
    assert kinds == {"promoter", "no_none", "no_spacing", "no_position", "no_strand"}
    for sequence, label, name in zip(rows.sequences, rows.labels, rows.names, strict=True):
        assert len(sequence) == 120
        right = any(
            sequence[end - 6 : end] == "TATAAT" and sequence[:end][-12 - gap :][:6] == "TTGACA"
            for end, gap in itertools.product(SHARP.ends, SHARP.spacings)
        )
        assert right == bool(label)
        if name.startswith("no_strand"):
            other = reverse_complement(sequence)
            assert any(
                other[start : start + 6] == "TTGACA" and other[start + gap + 6 :][:6] == "TATAAT"
                for start, gap in itertools.product(range(90), SHARP.spacings)
            )


def test_the_posterior_is_the_rule_of_bayes_over_all_placements() -> None:
    # Backgrounds count once per mixture, so the sum of a mixture's density over sequences is one; here
    # it is compared with a sum letter by letter.
    grammar = Grammar(sharpness=0.7, gc=0.4)
    rows = promoters(6, 2, grammar)
    odds = {base: (0.2 if base in "GC" else 0.3) for base in "ACGT"}

    def density(sequence: str, which: int) -> float:
        total = 0.0
        for placement, chance in classes(grammar)[which]:
            part = np.array([odds[base] for base in sequence])
            if placement is not None:
                text = sequence if placement.forward else reverse_complement(sequence)
                end = placement.end
                if not placement.forward:
                    end = len(text) - (placement.end - placement.spacing - 12)
                part = np.array([odds[base] for base in text])
                for box, start in (("TTGACA", end - placement.spacing - 12), ("TATAAT", end - 6)):
                    for offset, base in enumerate(box):
                        right = text[start + offset] == base
                        part[start + offset] = 0.7 if right else 0.1
            total += chance * np.exp(np.log(part).sum() + 160)
        return total

    wanted = [density(s, 1) / (density(s, 0) + density(s, 1)) for s in rows.sequences]
    np.testing.assert_allclose(posterior(rows.sequences, grammar), wanted, rtol=1e-9)


def test_chances_of_a_mixture_sum_to_one() -> None:
    for mixed in (*classes(Grammar()), mixture(Grammar(), "position")):
        assert sum(chance for _, chance in mixed) == pytest.approx(1)


def test_the_bayes_accuracy_is_reached_by_the_posterior_and_known() -> None:
    accuracy, error = bayes_accuracy(samples=4000)
    assert accuracy == pytest.approx(0.972, abs=4 * error + 0.001)
    rows = promoters(3000, 7)
    hits = ((posterior(rows.sequences) > 0.5) == rows.labels).mean()
    assert hits == pytest.approx(accuracy, abs=4 * (0.03 / 3000) ** 0.5)
    # Blunt boxes leave little to know.
    assert bayes_accuracy(Grammar(sharpness=0.3), samples=500)[0] < 0.6


def test_no_simple_count_of_the_boxes_tells_the_classes_apart() -> None:
    rows = promoters(2000, 3, SHARP)
    boxes = np.array([("TTGACA" in s) + ("TATAAT" in s) == 2 for s in rows.sequences])
    assert (boxes == rows.labels).mean() < 0.76


def test_the_embedded_data_are_three_splits_that_stay_as_they_are() -> None:
    splits = labelled_splits("embedded")
    assert {name: len(rows.sequences) for name, rows in splits.items()} == {
        "train": 4000, "valid": 1000, "test": 2000,
    }  # fmt: skip
    again = promoters(4000, 0)
    assert splits["train"].sequences == again.sequences
    assert (splits["train"].labels == again.labels).all()
    assert 0.45 < splits["test"].labels.mean() < 0.55


def test_grammars_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="ends must leave 35 bases"):
        Grammar(length=100)
    with pytest.raises(ValueError, match="sharpness must be above 0.25"):
        Grammar(sharpness=0.2)
