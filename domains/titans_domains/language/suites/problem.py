"""What a made task is: examples drawn from a seed, and how answers to them are scored.

B rows, T tokens. An answer is a run of tokens that are asked for one after the other.
"""

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from titans_core import BackboneConfig

PIECE = 2048
"""Tokens of a stream that are read at once."""
IGNORED = -100
"""Target of a place where nothing is asked."""

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class Examples(NamedTuple):
    inputs: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]  # the token asked for at each place, or IGNORED
    mask: Bool[Tensor, "B T"] | None = None  # False on padding, on the right

    def to(self, device: torch.device) -> "Examples":
        mask = None if self.mask is None else self.mask.to(device)
        return Examples(self.inputs.to(device), self.targets.to(device), mask)


class Problem(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def chance(self) -> float:
        """Share of the asked tokens that a guess with no knowledge of the row answers rightly."""
        ...

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        """Batch `number` of a split, rows of at most `length` tokens; the same whenever it is asked for."""
        ...

    def model(self, config: BackboneConfig) -> nn.Module:
        """From inputs [B, T] and a state, with `mask=`, to logits [B, T, V] and a state."""
        ...


def random_of(seed: int, split: Split, length: int, number: int) -> np.random.Generator:
    """A generator for one batch, apart from those of every other batch, length, split and seed."""
    return np.random.default_rng([seed, SPLITS.index(split), length, number])


class Tally:
    """Counts right answers over batches."""

    def __init__(self) -> None:
        self.right: dict[int, int] = {}  # by the class asked for
        self.asked: dict[int, int] = {}
        self.exact, self.answers = 0, 0

    def add(self, targets: Int[Tensor, "B T"], given: Int[Tensor, "B T"]) -> None:
        asked = targets != IGNORED
        right = (given == targets) & asked
        for counts, which in ((self.asked, asked), (self.right, right)):
            for kind, count in zip(*targets[which].unique(return_counts=True), strict=True):
                counts[int(kind)] = counts.get(int(kind), 0) + int(count)
        starts = asked.clone()
        starts[:, 1:] &= ~asked[:, :-1]
        number = starts.flatten().cumsum(0)[asked.flatten()] - 1
        whole = torch.ones(int(starts.sum()), dtype=torch.bool)
        whole[number[~right.flatten()[asked.flatten()]].cpu()] = False
        self.exact += int(whole.sum())
        self.answers += len(whole)

    def figures(self) -> dict[str, float]:
        """accuracy: share of the tokens; macro: its mean over the classes; exact: share of the answers."""
        if not self.answers:
            raise ValueError("There is nothing to score: no token was asked for.")
        each = [self.right.get(kind, 0) / count for kind, count in self.asked.items()]
        return {
            "accuracy": sum(self.right.values()) / sum(self.asked.values()),
            "macro": sum(each) / len(each),
            "exact": self.exact / self.answers,
        }


@torch.no_grad()
def answer(model: Any, examples: Examples, piece: int = PIECE) -> Int[Tensor, "B T"]:
    """The likeliest token at each place, read in pieces of a stream."""
    state, given = None, []
    masks = None if examples.mask is None else examples.mask.split(piece, 1)
    for n, inputs in enumerate(examples.inputs.split(piece, 1)):
        logits, state = model(inputs, state, mask=None if masks is None else masks[n])
        given.append(logits.argmax(-1))
    return torch.cat(given, 1)
