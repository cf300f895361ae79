"""What the shared trainer and the CLI need of a domain. Third parties add one through the entry-point
group `titans.domains`, and its commands through `titans.commands`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """One training step's outcome. `log` holds numbers for the progress bar and the CSV log.

    `weight` is what `loss` is the mean over: its counted targets, or their weights summed; None stands for
    `tokens`. Parts of a step are as heavy in its gradient and log.
    """

    loss: Tensor
    state: Any
    tokens: int
    log: dict[str, float]
    weight: float | None = None


class Task(Protocol):
    """A model with its data and loss: everything that one run trains."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def data_sha256(self) -> str | None:
        """SHA-256 of the training data; None where it is streamed."""
        ...

    def describe(self) -> str:
        """One line on model and data, for the start of a run."""
        ...

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Endless batches, each with the JSON-able cursor from which the next ones can be made.

        A batch has the `TrainConfig.rows` of a whole step. Where that is done in parts, or by several
        processes, each part is some rows of every tensor in its (named) tuples and dictionaries.
        """
        ...

    def fresh_state(self) -> Any:
        """The state before the first batch, as `step` gives one out.

        Of all rows, which stand first in every tensor.
        """
        ...

    def step(self, batch: Any, state: Any) -> Step:
        """The loss of a batch that is read from `state` on (None: from a fresh one).

        Where several processes train, every parameter must be in the loss of every batch, if only times
        zero, and the log must have the same names.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; the first is the one to minimise."""
        ...

    def sample(self) -> str | None:
        """A short specimen of what the model makes, for the eye; None where there is none."""
        ...

    def save_extras(self, folder: Path) -> None:
        """Writes what a run needs beside weights and configuration (a tokenizer, say)."""
        ...


class Domain(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def config_type(self) -> type: ...

    @property
    def presets(self) -> Mapping[str, Any]: ...

    def absolute(self, config: Any) -> Any:
        """The configuration with absolute paths, so that its run can be read from any folder."""
        ...

    def task(self, config: Any, device: torch.device, folder: Path | None = None) -> Task:
        """The task that a configuration describes; reads the data, so bad data raises here.

        `folder` is that of a run that goes on, where `save_extras` once wrote.
        """
        ...
