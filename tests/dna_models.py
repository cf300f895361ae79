"""Models of DNA for tests that know what they answer."""

from collections.abc import Sequence

import numpy as np

CODES = {base: number for number, base in enumerate("NACGT")}


class ByPosition:
    """Scores a sequence by its letters and their places, each another amount.

    The letter at place i counts CODES / 10**(i - at) for the `width` places from `at` on: its decimal
    digits are the letters.
    """

    multilabel_ = False

    def __init__(self, at: int = 0, width: int = 6, classes: Sequence[str] = ("no", "yes")) -> None:
        self.at, self.width = at, width
        self.classes_ = np.array(classes)
        self.tokenizer_ = self
        self.shortest = 1
        self.calls = 0

    def predict_proba(self, sequences: Sequence[str]) -> np.ndarray:
        self.calls += 1
        read = [s[self.at : self.at + self.width] for s in sequences]
        p = np.array([sum(CODES[b] / 10 ** (i + 1) for i, b in enumerate(s)) for s in read])
        rest = (1 - p) / (len(self.classes_) - 1)
        return np.stack([rest] * (len(self.classes_) - 1) + [p], 1)

    def log_likelihood(self, sequences: Sequence[str]) -> np.ndarray:
        return np.array([-float(len(s)) - s.count("A") for s in sequences])

    def embed(self, sequences: Sequence[str]) -> np.ndarray:
        return np.array([[len(s), s.count("G")] for s in sequences], np.float64)


class ByLetter:
    """Several labels: whether more than half of the letters are A, and whether more than half are C."""

    multilabel_ = True
    classes_ = np.array(["a", "c"])

    def predict_proba(self, sequences: Sequence[str]) -> np.ndarray:
        return np.array([[s.count("A") / len(s), s.count("C") / len(s)] for s in sequences])
