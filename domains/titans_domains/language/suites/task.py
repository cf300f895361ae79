"""A made task under the shared trainer: trained at some lengths, asked at any."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_core import BackboneConfig, count_parameters
from titans_domains.domain import Step
from titans_domains.language.suites.problem import (
    IGNORED,
    PIECE,
    Examples,
    Problem,
    Split,
    Tally,
    answer,
)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    lengths: tuple[int, ...] = (64,)  # of the rows trained on, ascending
    batch_tokens: int = 4096
    steps: int = 300  # over which the lengths come in, one after the other
    valid_rows: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must be ascending: got {list(self.lengths)}.")
        if self.batch_tokens < self.lengths[-1]:
            raise ValueError(
                f"batch_tokens must hold a row of {self.lengths[-1]} tokens: got {self.batch_tokens}."
            )


class SuiteTask:
    """Follows `titans_domains.domain.Task`.

    The shortest length is trained on from the first step, each longer one from its share of the steps on,
    and all that have come in take turns.
    """

    data_sha256 = None

    def __init__(
        self, model: BackboneConfig, problem: Problem, config: SuiteConfig, device: torch.device
    ) -> None:
        self.problem, self.config, self.device = problem, config, device
        torch.manual_seed(config.seed)
        self.model: Any = problem.model(model).to(device)

    def describe(self) -> str:
        return f"{self.problem}, {count_parameters(self.model):,} parameters"

    def length(self, step: int) -> int:
        """Of the rows of a step, from 0 on."""
        lengths, steps = self.config.lengths, self.config.steps
        come = min(len(lengths), 1 + step * len(lengths) // max(1, steps))
        return lengths[come - 1 - step % come]

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        number = cursor["next"] if cursor else 0
        while True:
            length = self.length(number)
            # The seed of a run is the order of its data too.
            batch = self.config.seed * 10**7 + number
            number += 1
            rows = self.config.batch_tokens // length
            yield self.problem.draw(rows, length, "train", batch), {"next": number}

    def fresh_state(self) -> Any:
        return ()

    def step(self, batch: Examples, state: Any) -> Step:
        loss = self._loss(batch, "mean")
        asked = int((batch.targets != IGNORED).sum())
        return Step(loss, (), batch.inputs.numel(), {"loss": loss.item()}, asked)

    def _loss(self, batch: Examples, reduction: str) -> Tensor:
        logits, _ = self.model(batch.inputs, mask=batch.mask)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(
            logits.flatten(0, 1).to(wide), batch.targets.flatten(), ignore_index=IGNORED,
            reduction=reduction,
        )  # fmt: skip

    @torch.no_grad()
    def loss(self, length: int, rows: int, split: Split) -> float:
        """Mean nats of the tokens asked for in rows of a split."""
        batches = list(self._batches(length, rows, split, self.config.batch_tokens))
        asked = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        return sum(self._loss(batch, "sum").item() for batch in batches) / asked

    def _batches(
        self, length: int, rows: int, split: Split, batch_tokens: int
    ) -> Iterator[Examples]:
        most = max(1, batch_tokens // length)
        for number, first in enumerate(range(0, rows, most)):
            examples = self.problem.draw(min(most, rows - first), length, split, number)
            yield examples.to(self.device)

    def scores(
        self,
        length: int,
        rows: int,
        split: Split = "test",
        *,
        batch_tokens: int | None = None,
        piece: int = PIECE,
    ) -> dict[str, float]:
        """Figures on `rows` rows of a split that training never draws, read in pieces of a stream."""
        tally = Tally()
        was_training = self.model.training
        self.model.eval()
        for examples in self._batches(
            length, rows, split, batch_tokens or self.config.batch_tokens
        ):
            tally.add(examples.targets, answer(self.model, examples, piece))
        self.model.train(was_training)
        return tally.figures()

    def validate(self) -> dict[str, float]:
        figures = self.scores(self.config.lengths[-1], self.config.valid_rows, "valid")
        return {"error": 1 - figures["accuracy"]}

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        """Nothing: the task is made from its seed."""
