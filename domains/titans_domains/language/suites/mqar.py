"""Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927).

Inputs and targets of a row with two pairs, keys a and b, values 1 and 2; only targets that are not
-100 count:

    inputs   a  1  b  2  0  b  0  a  0
    targets  .  .  .  .  .  2  .  1  .
"""

from dataclasses import dataclass

import numpy as np
import torch

from titans_core import BackboneConfig
from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.problem import IGNORED, Examples, Split, random_of

POWER = 0.01
"""Where a pair is asked for: its chance falls with the distance, as Zoology has it."""


@dataclass(frozen=True, kw_only=True)
class Mqar:
    """Keys are the lower half of the vocabulary, without 0, values the upper half."""

    pairs: int = 4
    vocab_size: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size // 2 - 1 < self.pairs:
            raise ValueError(
                f"vocab_size must be at least {2 * (self.pairs + 1)}: got {self.vocab_size}."
            )

    @property
    def chance(self) -> float:
        return 2 / self.vocab_size

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        pairs, half = self.pairs, self.vocab_size // 2
        space = (length - 2 * pairs) // 2
        if pairs < 1 or space < pairs:
            raise ValueError(
                f"length must leave room for pairs and queries, at least {4 * pairs} tokens for {pairs} "
                f"pairs: got {length}."
            )
        random = random_of(self.seed, split, length, number)
        inputs = np.zeros((rows, length), np.int64)
        targets = np.full((rows, length), IGNORED, np.int64)
        chances = np.arange(1, space + 1) ** (POWER - 1)
        chances /= chances.sum()
        for row in range(rows):
            keys = random.choice(np.arange(1, half), pairs, replace=False)
            values = random.choice(np.arange(half, self.vocab_size), pairs, replace=False)
            places = 2 * pairs + 2 * random.choice(space, pairs, replace=False, p=chances)
            inputs[row, 0 : 2 * pairs : 2], inputs[row, 1 : 2 * pairs : 2] = keys, values
            inputs[row, places], targets[row, places] = keys, values
        return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))
