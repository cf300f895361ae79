"""MAD's selective copying, compression and memorization.

Copying: data tokens 1 2 3 among blanks _, then the sign to copy them, > ; a key a of a fixed map is
followed by a question mark in memorization; compression gives all of a row back from one state:

    copying          inputs   _  1  2  _  3  >  _  _  _
                     targets  .  .  .  .  .  .  1  2  3
    memorization     inputs   a  ?  b  ?
                     targets  .  1  .  2
    compression      inputs   1  2  1  |
                     targets  1  2  1  |
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from titans_core import BackboneConfig
from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.auto_encoder import AutoEncoder
from titans_domains.language.suites.pool import Row, check_rows, draw_rows
from titans_domains.language.suites.problem import IGNORED, Examples, Split


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying:
    """`copied` data tokens in their order; the last two tokens of the vocabulary are blank and sign."""

    vocab_size: int = 16
    copied: int = 16
    train_rows: int | None = 12_800
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.train_rows)
        if self.vocab_size < 3 or self.copied < 1:
            raise ValueError(
                "vocab_size must be at least 3 and copied at least 1: got "
                f"{self.vocab_size} and {self.copied}."
            )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        if length < 2 * self.copied + 2:
            raise ValueError(
                f"length must hold {self.copied} tokens twice, a blank and the sign, at least "
                f"{2 * self.copied + 2} tokens: got {length}."
            )
        return draw_rows(
            lambda random: self.row(length, random), rows, length, split, number,
            seed=self.seed, train_rows=self.train_rows,
        )  # fmt: skip

    def row(self, length: int, random: np.random.Generator) -> Row:
        data = random.integers(self.vocab_size - 2, size=self.copied)
        blanks = length - 2 * self.copied - 1
        # Each blank goes in front of one of the data tokens, so the last of them stands at the sign.
        before = np.bincount(random.integers(self.copied, size=blanks), minlength=self.copied)
        inputs = np.full(length, self.vocab_size - 2, np.int64)
        inputs[before.cumsum() + np.arange(self.copied)] = data
        inputs[-self.copied - 1] = self.vocab_size - 1
        targets = np.full(length, IGNORED, np.int64)
        targets[-self.copied :] = data
        return inputs, targets


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Random tokens and a last one that says the row is over; the answer is the row itself."""

    vocab_size: int = 16
    train_rows: int | None = 12_800
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.train_rows)
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2: got {self.vocab_size}.")

    @property
    def chance(self) -> float:
        """Without the last token, which is always the same."""
        return 1 / (self.vocab_size - 1)

    def model(self, config: BackboneConfig) -> AutoEncoder:
        return AutoEncoder(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens: got {length}.")
        return draw_rows(
            lambda random: self.row(length, random), rows, length, split, number,
            seed=self.seed, train_rows=self.train_rows,
        )  # fmt: skip

    def row(self, length: int, random: np.random.Generator) -> Row:
        tokens = np.append(
            random.integers(self.vocab_size - 1, size=length - 1), self.vocab_size - 1
        )
        return tokens, tokens


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """One map from keys to values for all rows of all splits, made from `seed`: weights must hold it.

    A value is asked for at the question mark, the last token of the vocabulary, and never shown. MAD
    trains on 256 rows of 16 keys: all keys of a vocabulary of 256, but no more than about 63 of 100 of
    one of 8,192, whatever the model. None for `train_rows` shows them all.
    """

    vocab_size: int = 256
    train_rows: int | None = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.train_rows)
        if self.vocab_size < 3:
            raise ValueError(f"vocab_size must be at least 3: got {self.vocab_size}.")

    @property
    def chance(self) -> float:
        return 1 / len(self.value_of)

    @cached_property
    def value_of(self) -> npt.NDArray[np.int64]:
        """The value of each key."""
        keys = (self.vocab_size - 1) // 2
        values = np.arange(keys, self.vocab_size - 1)
        return np.random.default_rng([self.seed, self.vocab_size]).permutation(values)[:keys]

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        if length < 2 or length % 2:
            raise ValueError(f"length must be even, a key and its question each: got {length}.")
        return draw_rows(
            lambda random: self.row(length, random), rows, length, split, number,
            seed=self.seed, train_rows=self.train_rows,
        )  # fmt: skip

    def row(self, length: int, random: np.random.Generator) -> Row:
        keys = random.integers(len(self.value_of), size=length // 2)
        inputs = np.full((length // 2, 2), self.vocab_size - 1, np.int64)
        targets = np.full_like(inputs, IGNORED)
        inputs[:, 0], targets[:, 1] = keys, self.value_of[keys]
        return inputs.ravel(), targets.ravel()
