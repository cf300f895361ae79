"""Made promoters, whose best possible accuracy is known: the embedded data of `titans dna`.

L length of a sequence, W width of both boxes together with what lies between them.

A promoter has two boxes like those of bacteria, TTGACA and TATAAT, each letter right with probability
`sharpness`, 16, 17 or 18 random bases apart, on the forward strand, and ends near one place of the sequence:

    background ... TTGACA <17> TATAAT ... | ... background
                                          tss

What is no promoter has the same two boxes, but at the wrong distance, or ending at the wrong place, or on
the other strand, or not at all. So which letters a sequence has says little: position, spacing and strand
decide. Both classes are mixtures over finitely many placements, so the posterior is a sum, and its
accuracy, the Bayes accuracy, is an average over samples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from titans_domains.dna.labelled import Labelled
from titans_domains.dna.tokenizers import codes

BOXES = ("TTGACA", "TATAAT")
FAULTS = ("none", "spacing", "position", "strand")
"""What a sequence lacks to be a promoter: everything, or one of the rules."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    length: int = 120
    sharpness: float = 0.85  # chance of each letter of a box to be the box's own
    spacings: tuple[int, ...] = (16, 17, 18)
    wrong_spacings: tuple[int, ...] = (11, 12, 13, 21, 22, 23)
    ends: tuple[int, ...] = (78, 79, 80, 81, 82)  # where the second box may end
    gc: float = 0.5  # share of G and C in the background

    def __post_init__(self) -> None:
        longest = max(self.spacings + self.wrong_spacings) + sum(map(len, BOXES))
        if not longest <= min(self.ends) <= max(self.ends) <= self.length - longest:
            raise ValueError(
                f"ends must leave {longest} bases, the longest promoter, on both sides of a sequence "
                f"of {self.length}: got {self.ends}."
            )
        if not 0.25 < self.sharpness < 1 or not 0 < self.gc < 1:
            raise ValueError(
                "sharpness must be above 0.25 and below 1, gc between 0 and 1: got "
                f"{self.sharpness} and {self.gc}."
            )


class Placement(NamedTuple):
    """Where the boxes stand: their end (on the forward strand), their distance, and the strand."""

    end: int
    spacing: int
    forward: bool


Mixture = list[tuple[Placement | None, float]]


def mixture(grammar: Grammar, fault: str | None) -> Mixture:
    """The placements of promoters (None), or of what has a fault, with their chances."""
    if fault == "none":
        return [(None, 1.0)]
    spacings = grammar.wrong_spacings if fault == "spacing" else grammar.spacings
    longest = max(grammar.spacings) + sum(map(len, BOXES))
    ends = grammar.ends
    if fault == "position":
        # Anywhere but near the place of promoters.
        near = range(min(ends) - 5, max(ends) + 6)
        ends = tuple(e for e in range(longest, grammar.length + 1) if e not in near)
    placements = [Placement(e, s, fault != "strand") for e in ends for s in spacings]
    return [(p, 1 / len(placements)) for p in placements]


def classes(grammar: Grammar) -> tuple[Mixture, Mixture]:
    """What is no promoter (label 0), each fault alike, and promoters (label 1)."""
    wrong = [
        (placement, chance / len(FAULTS))
        for fault in FAULTS
        for placement, chance in mixture(grammar, fault)
    ]
    return wrong, mixture(grammar, None)


def promoters(count: int, seed: int, grammar: Grammar | None = None) -> Labelled:
    """Sequences of both classes by equal chances; their names say what they lack."""
    grammar = grammar or Grammar()
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    letters = random.choice(4, (count, grammar.length), p=_background(grammar))
    parts = {fault: mixture(grammar, fault) for fault in (None, *FAULTS)}
    names = []
    for number, (label, row) in enumerate(zip(labels, letters, strict=True)):
        fault = None if label else FAULTS[random.integers(len(FAULTS))]
        placement, _ = parts[fault][random.integers(len(parts[fault]))]
        if placement is not None:
            _plant(row, grammar, placement, random)
        names.append(f"{'promoter' if label else f'no_{fault}'}_{number}")
    sequences = ["".join(row) for row in np.array(list("ACGT"))[letters]]
    return Labelled(sequences, labels.astype(np.int64), names)


def _plant(
    letters: Int[np.ndarray, " L"],
    grammar: Grammar,
    placement: Placement,
    random: np.random.Generator,
) -> None:
    """Writes the boxes over a sequence."""
    for box, start in _starts(placement):
        rows = _chances(grammar, box, placement.forward)
        drawn = (rows.cumsum(1)[:, :3] <= random.random((len(rows), 1))).sum(1)
        letters[start : start + len(rows)] = drawn


def _background(grammar: Grammar) -> Float[np.ndarray, "4"]:
    at, gc = (1 - grammar.gc) / 2, grammar.gc / 2
    return np.array([at, gc, gc, at])


def _chances(grammar: Grammar, box: str, forward: bool) -> Float[np.ndarray, "w 4"]:
    """The chances of A, C, G and T at each letter of a box, in the direction of the sequence."""
    rows = np.full((len(box), 4), (1 - grammar.sharpness) / 3)
    rows[np.arange(len(box)), codes(box)] = grammar.sharpness
    return rows if forward else rows[::-1, ::-1]


def _starts(placement: Placement) -> list[tuple[str, int]]:
    """The boxes and where they start; on the other strand both they and their order are turned."""
    first, second = BOXES if placement.forward else BOXES[::-1]
    start = placement.end - len(second)
    return [(first, start - placement.spacing - len(first)), (second, start)]


def posterior(sequences: list[str], grammar: Grammar | None = None) -> Float[np.ndarray, " n"]:
    """The chance that each sequence is a promoter: no classifier can know more."""
    grammar = grammar or Grammar()
    letters = np.stack([codes(sequence) for sequence in sequences]).astype(np.int64)
    gains = {
        (box, forward): _gains(letters, grammar, box, forward)
        for box in BOXES
        for forward in (True, False)
    }
    wrong, right = (_evidence(gains, len(letters), mixed) for mixed in classes(grammar))
    return 1 / (1 + np.exp(np.clip(wrong - right, -700, 700)))


Gains = dict[tuple[str, bool], np.ndarray]


def _gains(
    letters: Int[np.ndarray, "n L"], grammar: Grammar, box: str, forward: bool
) -> Float[np.ndarray, "n S"]:
    """How much likelier a box is than background, as a logarithm, at each of its possible starts."""
    rows = np.log(_chances(grammar, box, forward)) - np.log(_background(grammar))
    count = letters.shape[1] - len(rows) + 1
    return sum(rows[o][letters[:, o : o + count]] for o in range(len(rows)))


def _evidence(gains: Gains, count: int, mixed: Mixture) -> Float[np.ndarray, " n"]:
    """Logarithm of a mixture's likelihood, as a multiple of that of the background."""
    terms = []
    for placement, chance in mixed:
        term = np.full(count, np.log(chance))
        if placement is not None:
            for box, start in _starts(placement):
                term += gains[box, placement.forward][:, start]
        terms.append(term)
    return np.logaddexp.reduce(terms, axis=0)


def bayes_accuracy(
    grammar: Grammar | None = None, *, samples: int = 10_000, seed: int = 2**31
) -> tuple[float, float]:
    """The accuracy that no classifier exceeds, and the standard error of this estimate of it."""
    sure = posterior(promoters(samples, seed, grammar).sequences, grammar)
    sure = np.maximum(sure, 1 - sure)
    return float(sure.mean()), float(sure.std() / samples**0.5)


def embedded_splits(seed: int = 0) -> dict[str, Labelled]:
    """The embedded data: 4,000 sequences to train on, 1,000 for validation, 2,000 to test once."""
    sizes = {"train": 4000, "valid": 1000, "test": 2000}
    return {
        name: promoters(size, 3 * seed + number)
        for number, (name, size) in enumerate(sizes.items())
    }
