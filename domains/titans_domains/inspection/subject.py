"""What inspection needs of a domain: a trained model that reads a file along, token by token.

T tokens of a passage, S steps of a series, C its channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import nn

from titans_core import Backbone, MemoryConfig
from titans_core.listening import memories_of

Kind = Literal["text", "letters", "series"]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Tokens that the model has just read, as they are shown."""

    labels: Sequence[str]  # of each token: its text, its letters, or the stamps of its steps
    begins: str | None = (
        None  # the record's name, where the memory began afresh with the first token
    )
    skip: int = 0  # tokens that were read before them and are not of the file
    bits: Float[ndarray, " T"] | None = None  # what the model paid for each, where it predicts
    values: Float[ndarray, "S C"] | None = (
        None  # of a series, the steps that the tokens are made of
    )
    bounds: Int[ndarray, " T+1"] | None = None  # token i is made of values[bounds[i]:bounds[i + 1]]
    done: int = 0  # of `Subject.total`


class Subject(Protocol):
    """A trained run. `model` is in evaluation mode, and its memories read what `passages` yields."""

    @property
    def kind(self) -> Kind:
        """How tokens are drawn: a running text, letters in numbered lines, or a curve."""
        ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def backbone(self) -> Backbone:
        """The part whose states memory files hold."""
        ...

    @property
    def readings(self) -> tuple[str, ...]:
        """Names of the rows that are read at once (the channels of a series, both directions)."""
        ...

    @property
    def mirrored(self) -> tuple[int, ...]:
        """The readings that go from the last token to the first."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how a file is read, for those who judge the figures."""
        ...

    def total(self, path: Path) -> int:
        """The size of a file in the units of `Passage.done`."""
        ...

    def passages(self, path: Path, record: str | None = None) -> Iterator[Passage]:
        """Reads a file, or one record of it, with the memory carried, and yields what was just read.

        ValueError or OSError, in one sentence, for a file that is not of the domain, or has no such record.
        """
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A `Domain` whose runs can be inspected."""

    def subject(self, run: Path, device: torch.device, checkpoint: str) -> Subject: ...


@dataclass(frozen=True)
class Unit:
    """One matrix that learns: a layer of the MLP of one head of one memory, in one of the readings."""

    reading: str
    memory: str
    head: int
    layer: int

    @property
    def name(self) -> str:
        where = f"{self.memory}, head {self.head}, layer {self.layer}"
        return f"{self.reading}, {where}" if self.reading else where


@dataclass(frozen=True)
class Run:
    """A subject and what its reports are headed with."""

    path: Path
    domain: str
    subject: Subject
    checkpoint: str = "last"
    units: list[Unit] = field(init=False)

    def __post_init__(self) -> None:
        memories = memories_of(self.subject.model)
        if not memories:
            raise ValueError(
                f"{self.path} has no neural memory to inspect: its mixer is "
                f"{self.subject.backbone.config.mixer}. Give a run with one, such as lmm, mac, mag or mal."
            )
        units = [
            Unit(reading, name, head, layer)
            for reading in self.subject.readings
            for name, recall in memories.items()
            for head in range(recall.shape[0])
            for layer in range(recall.config.depth)
        ]
        object.__setattr__(self, "units", units)

    @property
    def memory(self) -> MemoryConfig:
        """The settings of the first memory, which all share but where a mixer has its own."""
        return next(iter(memories_of(self.subject.model).values())).config

    @property
    def clamps(self) -> list[float]:
        """Above which surprise is clamped, for each unit; inf where it is not."""
        memories = memories_of(self.subject.model)
        limits = {name: recall.config.max_surprise for name, recall in memories.items()}
        return [inf if (limit := limits[unit.memory]) is None else limit for unit in self.units]

    def about(self) -> dict[str, Any]:
        return {
            "run": str(self.path),
            "domain": self.domain,
            "checkpoint": self.checkpoint,
            "mixer": self.subject.backbone.config.mixer,
            "parameters": sum(p.numel() for p in self.subject.model.parameters()),
            "settings": asdict(self.memory),
        }
