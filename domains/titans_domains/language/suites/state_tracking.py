"""State tracking: parity and modular arithmetic (Grazzi et al., arXiv 2411.12537), words of a group.

An answer stands at the last place of a row, for words at every place; rows are padded on the right:

    parity           inputs   1  0  1  1           targets  .  .  .  1
    arithmetic       inputs   2  -  3  *  2  =     targets  .  .  .  .  .  1    modulo 5
    words of Z60     inputs   7  50 3              targets  7  57 0
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from titans_core import BackboneConfig
from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.groups import product_table
from titans_domains.language.suites.problem import IGNORED, Examples, Split, random_of

Ints = npt.NDArray[np.int64]

SHORTEST = {"train": 3, "valid": 3, "test": 40}
"""Tokens of the shortest rows of a split; the longest are asked for, 40 in training and 256 in tests."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Whether the number of ones is odd."""

    seed: int = 0

    vocab_size = 2
    chance = 0.5

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        random = random_of(self.seed, split, length, number)
        sizes = row_sizes(rows, length, split, random)
        inputs = random.integers(2, size=(rows, length))
        inputs[np.arange(length) >= sizes[:, None]] = 0
        return asked_last(inputs, sizes, inputs.sum(1) % 2)


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic:
    """The value of an expression without brackets, products before sums, asked for at its `=`.

    Tokens are the numbers below `modulus`, then + - * and =. A row has an even number of tokens.
    """

    modulus: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.modulus < 2:
            raise ValueError(f"modulus must be at least 2: got {self.modulus}.")

    @property
    def vocab_size(self) -> int:
        return self.modulus + 4

    @property
    def chance(self) -> float:
        """Of any number; that of 0 is a little more, for it is what products are most often."""
        return 1 / self.modulus

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        if length < 4:
            raise ValueError(f"length must be at least 4, two numbers and signs: got {length}.")
        random = random_of(self.seed, split, length, number)
        # A number and the sign behind it are a pair.
        pairs = (row_sizes(rows, length - length % 2, split, random) + 1) // 2
        most = int(pairs.max())
        numbers = random.integers(self.modulus, size=(rows, most))
        signs = random.integers(3, size=(rows, most))
        place = np.arange(most)
        signs[place == pairs[:, None] - 1] = 3
        inputs = np.stack([numbers, self.modulus + signs], 2)
        inputs[place >= pairs[:, None]] = 0
        answers = values_of(numbers, signs, pairs, self.modulus)
        return asked_last(inputs.reshape(rows, -1), 2 * pairs, answers)


@dataclass(frozen=True, kw_only=True)
class GroupWords:
    """The product of all elements so far, at every place, from the identity on (Merrill et al.,
    arXiv 2404.08819): in S5 and A5 hard for models of constant depth, in Z60 not.

    `group` is one of `titans_domains.language.suites.groups.GROUPS`.
    """

    group: str = "S5"
    seed: int = 0

    def __post_init__(self) -> None:
        product_table(self.group)

    @property
    def vocab_size(self) -> int:
        return len(product_table(self.group))

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        if length < 1:
            raise ValueError(f"length must be at least 1 element: got {length}.")
        table = product_table(self.group)
        random = random_of(self.seed, split, length, number)
        inputs = random.integers(len(table), size=(rows, length))
        targets = np.empty_like(inputs)
        product = np.zeros(rows, np.int64)  # the identity
        for t in range(length):
            product = table[product, inputs[:, t]]
            targets[:, t] = product
        return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def row_sizes(rows: int, length: int, split: Split, random: np.random.Generator) -> Ints:
    """Tokens of each row, anything from the split's shortest up to `length`."""
    if length < SHORTEST["train"]:
        raise ValueError(f"length must be at least {SHORTEST['train']} tokens: got {length}.")
    return random.integers(min(SHORTEST[split], length), length + 1, size=rows)


def asked_last(inputs: Ints, sizes: Ints, answers: Ints) -> Examples:
    targets = np.full_like(inputs, IGNORED)
    targets[np.arange(len(inputs)), sizes - 1] = answers
    mask = np.arange(inputs.shape[1]) < sizes[:, None]
    return Examples(*map(torch.from_numpy, (inputs, targets, mask)))


def values_of(numbers: Ints, signs: Ints, pairs: Ints, modulus: int) -> Ints:
    """Values of the first `pairs` numbers of each row; the sign behind a number is 0 +, 1 - or 2 *."""
    done = np.zeros(len(numbers), np.int64)
    term = numbers[:, 0]
    for t in range(1, numbers.shape[1]):
        sign, number = signs[:, t - 1], numbers[:, t]
        times = sign == 2
        after = np.where(times, term * number, np.where(sign == 1, -number, number)) % modulus
        inside = t < pairs
        done = np.where(inside & ~times, done + term, done) % modulus
        term = np.where(inside, after, term)
    return (done + term) % modulus
