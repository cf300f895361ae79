"""The text in which needles and facts are hidden: its sentences, as words or as token ids."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from titans_domains.language.corpus import EMBEDDED, documents
from titans_domains.language.suites.problem import SPLITS, Split

ENDS = re.compile(r"""[.!?]+["')\]]*(?=\s+["'(\[]?[A-Z0-9])""")
SHARES = (0.8, 0.9)
"""Where the text of training ends, and that of validation."""


def sentences(text: str) -> list[str]:
    """The text cut after each . ! or ? that stands before a blank and a capital or a digit.

    Blanks are made single first. Abbreviations are not known: "Mr. Smith" is cut in two.
    """
    text = " ".join(text.split())
    cuts = [0, *(match.end() for match in ENDS.finditer(text)), len(text)]
    return [part for a, b in pairwise(cuts) if (part := text[a:b].strip())]


def read_sentences(source: str | None, least_words: int = 1) -> list[str]:
    """Those of at least so many words in `source`, as `corpus.documents` has it; None for the embedded."""
    name = source or EMBEDDED
    found = [
        sentence
        for document in documents(name)
        for sentence in sentences(document.decode())
        if len(sentence.split(" ")) >= least_words
    ]
    if len(found) < 10:
        raise ValueError(
            f"{name} must hold at least 10 sentences of {least_words} or more words to hide something "
            f"in: it has {len(found)}."
        )
    return found


def part_of(found: list[str], split: Split) -> list[str]:
    """The sentences of a split: of the text's first eight tenths, its ninth or its last."""
    cuts = [0, *(int(share * len(found)) for share in SHARES), len(found)]
    at = SPLITS.index(split)
    return found[cuts[at] : cuts[at + 1]]


class Haystack(NamedTuple):
    ids: np.ndarray  # of all sentences, each with the blank after it
    starts: np.ndarray  # where each begins

    @classmethod
    def of(cls, found: Sequence[str], encode: Callable[[str], np.ndarray]) -> "Haystack":
        parts = [encode(sentence + " ") for sentence in found]
        starts = np.cumsum([0, *map(len, parts[:-1])])
        return cls(np.concatenate(parts), starts)

    def take(self, random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """So many ids from a random sentence on, round the end of the text, and where sentences begin."""
        total, first = len(self.ids), int(random.integers(len(self.starts)))
        rounds = range(-(-size // total) + 1)
        start = self.starts[first]
        cuts = np.concatenate([self.starts[first:], self.starts[:first] + total]) - start
        cuts = np.concatenate([cuts + total * k for k in rounds])
        return self.ids[(start + np.arange(size)) % total], cuts[cuts <= size]


def weave(hay: np.ndarray, cuts: Sequence[int], pieces: Sequence[np.ndarray]) -> np.ndarray:
    """The hay with each piece set in at its cut; cuts ascend."""
    parts, last = [], 0
    for cut, piece in zip(cuts, pieces, strict=True):
        parts += [hay[last:cut], piece]
        last = cut
    return np.concatenate([*parts, hay[last:]])
