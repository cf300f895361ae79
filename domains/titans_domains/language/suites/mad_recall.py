"""MAD's recall tasks: a value for each key, fixed within a row and new in every row.

Keys a, b and values 1, 2. A test asks for the values of keys that came before, training for every next
token:

    inputs           a  1  b  2  a  1  b
    test targets     .  .  .  .  1  .  2
    train targets    1  b  2  a  1  b  2

Fuzzy keys and values are runs of tokens, [a c] and [1 2 2'], behind padding on the left:

    inputs           _  _  a  c  1  2  b  3  a  c  1
    test targets     .  .  .  .  .  .  .  .  .  1  2
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from titans_core import BackboneConfig
from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.pool import Row, check_rows, draw_rows
from titans_domains.language.suites.problem import IGNORED, Examples, Split

Motif = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InContextRecall:
    """Keys are the lower half of the vocabulary, values the upper half, noise the last tokens.

    Each pair is two noise tokens with chance `noise`. A row has `length - 1` inputs: its last token is
    only asked for. Its last pair is of a key that came before.
    """

    vocab_size: int = 16
    noise_vocab_size: int = 0  # of vocab_size
    noise: float = 0.0
    train_rows: int | None = 12_800
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.train_rows)
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise must be at least 0 and below 1: got {self.noise}.")
        if self.noise and self.noise_vocab_size < 1:
            raise ValueError("noise needs tokens to be made of: give noise_vocab_size.")
        if self.vocab_size - self.noise_vocab_size < 2:
            raise ValueError(
                f"vocab_size must leave a key and a value beside {self.noise_vocab_size} noise tokens: "
                f"got {self.vocab_size}."
            )

    @property
    def words(self) -> int:
        """Keys and values together."""
        return self.vocab_size - self.noise_vocab_size

    @property
    def chance(self) -> float:
        return 1 / (self.words - self.words // 2)

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        if length < 4 or length % 2:
            raise ValueError(f"length must be even, two pairs or more: got {length}.")
        return draw_rows(
            lambda random: self.row(length, split, random), rows, length, split, number,
            seed=self.seed, train_rows=self.train_rows,
        )  # fmt: skip

    def row(self, length: int, split: Split, random: np.random.Generator) -> Row:
        pairs, first_value = length // 2 - 1, self.words // 2
        keys = random.integers(first_value, size=pairs)
        value_of = random.integers(first_value, self.words, size=first_value)
        noisy = random.random(pairs) < self.noise
        # One pair at least is none, so that there is a key to ask for.
        noisy[random.integers(pairs)] = False
        keys = np.append(keys, random.choice(keys[~noisy]))
        noisy = np.append(noisy, False)
        tokens = np.stack([keys, value_of[keys]], 1)
        tokens[noisy] = random.integers(self.words, self.vocab_size, (noisy.sum(), 2))
        asked = np.full_like(tokens, IGNORED)
        clean = np.flatnonzero(~noisy)
        first = clean[np.unique(keys[clean], return_index=True)[1]]
        seen = np.setdiff1d(clean, first)
        asked[seen, 1] = tokens[seen, 1]
        return shifted(tokens.ravel(), asked.ravel(), split)


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall:
    """Keys and values are runs of different tokens, of one to `key_motif` and `value_motif` of them.

    A test has the longest keys only. The last token of the vocabulary pads, on the left.
    """

    vocab_size: int = 16
    key_motif: int = 3
    value_motif: int = 3
    train_rows: int | None = 12_800
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.train_rows)
        if min(self.key_motif, self.value_motif) < 1:
            raise ValueError(
                "key_motif and value_motif must be at least 1 token: got "
                f"{self.key_motif} and {self.value_motif}."
            )
        keys = (self.vocab_size - 1) // 2
        if keys < self.key_motif or self.vocab_size - 1 - keys < self.value_motif:
            raise ValueError(
                f"vocab_size must have tokens for keys of {self.key_motif} and values of "
                f"{self.value_motif}: got {self.vocab_size}."
            )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1 - (self.vocab_size - 1) // 2)

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        longest = self.key_motif + self.value_motif
        if length < 3 * longest:
            raise ValueError(
                f"length must be at least {3 * longest} tokens, three pairs of {longest}: got {length}."
            )
        return draw_rows(
            lambda random: self.row(length, split, random), rows, length, split, number,
            seed=self.seed, train_rows=self.train_rows,
        )  # fmt: skip

    def row(self, length: int, split: Split, random: np.random.Generator) -> Row:
        longest = self.key_motif + self.value_motif
        last = (self._key(split, random), self._value(random))
        until = length - len(last[0]) - len(last[1]) - longest
        # The pair that is asked for at the end stands somewhere before it: it comes in where the row
        # first reaches this place, which no pair is long enough to carry past `until`.
        due = int(random.integers(until - longest + 1))
        value_of: dict[Motif, Motif] = {last[0]: last[1]}
        seen: set[Motif] = set()
        tokens: list[int] = []
        asked: list[int] = []
        while len(tokens) < until:
            placing = len(tokens) >= due and last[0] not in seen
            key = last[0] if placing else self._key(split, random)
            value = value_of.setdefault(key, self._value(random))
            tokens += key + value
            asked += [IGNORED] * len(key)
            asked += value if key in seen else [IGNORED] * len(value)
            seen.add(key)
        tokens += last[0] + last[1]
        asked += [*[IGNORED] * len(last[0]), *last[1]]
        padding = length + 1 - len(tokens)
        tokens = [self.vocab_size - 1] * padding + tokens
        asked = [IGNORED] * padding + asked
        return shifted(np.array(tokens), np.array(asked), split)

    def _key(self, split: Split, random: np.random.Generator) -> Motif:
        size = random.integers(1, self.key_motif + 1) if split == "train" else self.key_motif
        return tuple(random.permutation((self.vocab_size - 1) // 2)[:size].tolist())

    def _value(self, random: np.random.Generator) -> Motif:
        first = (self.vocab_size - 1) // 2
        size = random.integers(1, self.value_motif + 1)
        return tuple((first + random.permutation(self.vocab_size - 1 - first)[:size]).tolist())


def shifted(tokens: npt.NDArray[np.int64], asked: npt.NDArray[np.int64], split: Split) -> Row:
    """Inputs and what comes after each: every token in training, else those that are asked for."""
    return tokens[:-1], (tokens if split == "train" else asked)[1:]
