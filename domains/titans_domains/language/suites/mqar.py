"""Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927).

Inputs and targets of a row with two pairs, keys a and b, values 1 and 2; only targets that are not
-100 count:

    inputs   a  1  b  2  0  b  0  a  0
    targets  .  .  .  .  .  2  .  1  .
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from titans_core import BackboneConfig
from titans_domains.domain import Step
from titans_domains.language.model import LanguageModel

IGNORED = -100

POWER = 0.01
"""Where a pair is asked for: its chance falls with the distance, as Zoology has it."""


def mqar(rows: int, length: int, pairs: int, vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [rows, length]. Keys are the lower half of the vocabulary, without 0."""
    space = (length - 2 * pairs) // 2
    if pairs < 1 or space < pairs:
        raise ValueError(
            f"length must leave room for pairs and queries, at least {4 * pairs} tokens for {pairs} "
            f"pairs: got {length}."
        )
    half = vocab_size // 2
    if half - 1 < pairs:
        raise ValueError(f"vocab_size must be at least {2 * (pairs + 1)}: got {vocab_size}.")
    random = np.random.default_rng(seed)
    inputs = np.zeros((rows, length), np.int64)
    targets = np.full((rows, length), IGNORED, np.int64)
    chances = np.arange(1, space + 1) ** (POWER - 1)
    chances /= chances.sum()
    for row in range(rows):
        keys = random.choice(np.arange(1, half), pairs, replace=False)
        values = random.choice(np.arange(half, vocab_size), pairs, replace=False)
        places = 2 * pairs + 2 * random.choice(space, pairs, replace=False, p=chances)
        inputs[row, 0 : 2 * pairs : 2], inputs[row, 1 : 2 * pairs : 2] = keys, values
        inputs[row, places], targets[row, places] = keys, values
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    length: int = 64
    pairs: int = 4
    vocab_size: int = 512
    batch_size: int = 64
    test_rows: int = 64
    test_lengths: tuple[int, ...] = (64, 512)
    seed: int = 0


class RecallTask:
    """Trained on one length, asked at others; follows `titans_domains.domain.Task`."""

    data_sha256 = None

    def __init__(self, model: BackboneConfig, config: RecallConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.model = LanguageModel(model, config.vocab_size).to(device)

    def describe(self) -> str:
        return f"{self.config.pairs} pairs in {self.config.length} tokens"

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        number = cursor["next"] if cursor else 0
        while True:
            number += 1
            yield self._draw(self.config.batch_size, self.config.length, number), {"next": number}

    def _draw(self, rows: int, length: int, number: int) -> tuple[Tensor, Tensor]:
        # Batch 0 of each length is the test; numbers keep the others apart from it.
        seed = self.config.seed * 10**9 + length * 10**5 + number
        return mqar(rows, length, self.config.pairs, self.config.vocab_size, seed)

    def fresh_state(self) -> Any:
        return ()

    def step(self, batch: Any, state: Any) -> Step:
        inputs, targets = batch
        logits, _ = self.model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return Step(loss, (), inputs.numel(), {"loss": loss.item()})

    @torch.no_grad()
    def accuracy(self, length: int) -> float:
        """Share of the queries answered rightly, on rows that training never draws."""
        inputs, targets = (x.to(self.device) for x in self._draw(self.config.test_rows, length, 0))
        asked = targets != IGNORED
        answers = self.model(inputs)[0].argmax(-1)
        return (answers == targets)[asked].double().mean().item()

    def validate(self) -> dict[str, float]:
        lengths = self.config.test_lengths
        return {f"error_at_{length}": 1 - self.accuracy(length) for length in lengths}

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        """Nothing: the task is made from its seed."""
