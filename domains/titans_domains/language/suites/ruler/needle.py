"""Single needles as rows of bytes, to train small models on and to ask them by teacher forcing.

Inputs and targets of a row, in letters (the first input, <, is the tokenizer's end; only targets at
the answer count):

    inputs   < h a y   k e y   i s   4 2 . h a y ? k e y   i s   4
    targets  . . . . . . . . . . . . . . . . . . . . . . . . .   4 2

The answer is of one length, so that every asked byte being right is what greedy generation needs to
begin with the answer.
"""

from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase
from typing import Literal

import numpy as np
import torch

from titans_core import BackboneConfig
from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.haystack import Haystack, part_of, read_sentences, weave
from titans_domains.language.suites.problem import IGNORED, SPLITS, Examples, Split, random_of
from titans_domains.language.suites.ruler import niah
from titans_domains.language.suites.ruler.words import (
    ONSETS,
    VOWELS,
    distinct,
    draw_number,
    draw_uuid,
    draw_word,
    word_lists,
)
from titans_domains.language.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
KINDS = {
    "pk": ("noise", "numbers"),
    "n": ("essay", "numbers"),
    "w": ("essay", "uuids"),
    "w-words": ("essay", "words"),
}
"""Haystack and values of RULER's single needles; W in both readings."""


@dataclass(frozen=True, kw_only=True)
class Needle:
    """Rows of exactly the length asked for; outside training there is one needle, and one question.

    A short needle is "key is value." and its question "key is" on a line of its own, without a head;
    otherwise all is worded as in RULER. An essay begins at a random sentence of its split's part of
    the text, where RULER's always begins at its first, and the last sentence before the question is
    cut to make the length.
    """

    kind: Literal["pk", "n", "w", "w-words"] = "pk"
    template: Literal["ruler", "short"] = "ruler"
    queries: int = 1  # needles in a row to train on
    asked: int = 1  # times that each of them is asked for at its end
    haystack: Literal["noise", "essay"] | None = None  # None for the kind's own
    key_letters: int | None = None  # random letters as keys; None for RULER's pairs of words
    digits: int = 7  # of a number
    text: str | None = None  # of essays: a file or folder; None for the embedded corpus
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}: got {self.kind!r}.")
        if self.template not in ("ruler", "short"):
            raise ValueError(f"template must be ruler or short: got {self.template!r}.")
        if self.haystack not in ("noise", "essay", None):
            raise ValueError(f"haystack must be noise, essay or None: got {self.haystack!r}.")
        for name, least, most in (
            ("queries", 1, 100),
            ("asked", 1, 100),
            ("digits", 1, 18),
            ("key_letters", 2, 26),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}: got {value}.")
        if self.values == "numbers" and self.queries > 9 * 10 ** (self.digits - 1):
            raise ValueError(
                f"digits must give each of {self.queries} queries a number of its own: got {self.digits}."
            )

    @property
    def vocab_size(self) -> int:
        return BYTES.vocab_size

    @property
    def values(self) -> str:
        return KINDS[self.kind][1]

    @property
    def chance(self) -> float:
        """With the answer's form known: its blank and dashes are certain, its letters are guessed."""
        if self.values == "numbers":
            return (1 + 1 / 9 + (self.digits - 1) / 10) / (self.digits + 1)
        if self.values == "uuids":
            # Besides 30 free digits, the version is known and the variant one of four.
            return (1 + 4 + 1 + 1 / 4 + 30 / 16) / 37
        letters = [
            max(map(letters.count, VOWELS + ONSETS)) / len(letters)
            for words in word_lists()
            for letters in zip(*words, strict=True)
        ]
        return (1 + 1 + sum(letters)) / 14

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    @cached_property
    def hays(self) -> dict[Split, Haystack]:
        """Of each split, encoded once."""
        if (self.haystack or KINDS[self.kind][0]) == "noise":
            line = _ids(niah.NOISE + "\n")
            return dict.fromkeys(SPLITS, Haystack(line, np.zeros(1, np.int64)))
        found = read_sentences(self.text)
        return {split: Haystack.of(part_of(found, split), _ids) for split in SPLITS}

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        random = random_of(self.seed, split, length, number)
        queries, asked = (self.queries, self.asked) if split == "train" else (1, 1)
        ids = np.full((rows, length + 1), BYTES.end, np.int64)
        targets = np.full((rows, length), IGNORED, np.int64)
        for row in range(rows):
            ids[row, 1:], places = self._row(random, length, queries, asked, self.hays[split])
            # What is asked for stands one place after the input that asks for it.
            targets[row, places] = ids[row, 1:][places]
        return Examples(torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(targets))

    def _row(
        self, random: np.random.Generator, length: int, queries: int, asked: int, hay: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of a row, and which of them are answers."""
        keys = distinct(random, self._key, queries)
        values = distinct(random, self._value, queries)
        head, needles, questions = self._worded(keys, values)
        answers = [" " + value for value in values]
        turns = np.concatenate([random.permutation(queries) for _ in range(asked)])
        questions, answers = [questions[i] for i in turns], [answers[i] for i in turns]
        tail = _ids("".join(q + a for q, a in zip(questions, answers, strict=True)))
        # Behind a needle stands what stands behind a sentence of the hay.
        pieces = [_ids(needle) for needle in needles]
        pieces = [np.append(piece, hay.ids[hay.starts[-1] - 1]) for piece in pieces]
        taken = len(head) + sum(map(len, pieces)) + len(tail)
        filling, cuts = _filling(random, hay, length - taken, queries)
        if len(cuts) < queries:
            raise ValueError(
                f"length must leave room for sentences between {queries} needles, which take {taken} "
                f"bytes with all that is asked: got {length}."
            )
        places = np.sort(random.choice(cuts, queries, replace=False))
        order = random.permutation(queries)
        text = weave(filling, places.tolist(), [pieces[i] for i in order])
        ends = np.cumsum([len(q) + len(a) for q, a in zip(questions, answers, strict=True)])
        spans = [np.arange(end - len(a), end) for end, a in zip(ends, answers, strict=True)]
        return np.concatenate([_ids(head), text, tail]), length - len(tail) + np.concatenate(spans)

    def _key(self, random: np.random.Generator) -> str:
        if self.key_letters is None:
            return draw_word(random)
        return "".join(ascii_lowercase[i] for i in random.integers(26, size=self.key_letters))

    def _value(self, random: np.random.Generator) -> str:
        if self.values == "numbers":
            return draw_number(random, self.digits)
        return draw_uuid(random) if self.values == "uuids" else draw_word(random)

    def _worded(self, keys: list[str], values: list[str]) -> tuple[str, list[str], list[str]]:
        """Head, needles and questions; the order of the keys is that of the questions."""
        pairs = list(zip(keys, values, strict=True))
        if self.template == "short":
            return "", [f"{k} is {v}." for k, v in pairs], [f"\n{k} is" for k in keys]
        kind, asked = self.values, niah.QUESTION + niah.PREFIX
        head = niah.worded(niah.HEAD, kind, one=len(keys) == 1)
        needles = [niah.NEEDLE.format(kind=kind, key=k, value=v) for k, v in pairs]
        return head, needles, [niah.worded(asked, kind, k, one=True) for k in keys]


def _filling(
    random: np.random.Generator, hay: Haystack, size: int, needles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hay in which as many sentences begin as there are needles, if that can be found."""
    filling = cuts = np.zeros(0, np.int64)
    # A sentence of an essay may be longer than a row.
    for _ in range(100 if size > 0 else 0):
        filling, cuts = hay.take(random, size)
        if len(cuts) >= needles:
            break
    return filling, cuts


def _ids(text: str) -> np.ndarray:
    return BYTES.encode(text.encode())
