"""Norms, ranks and distances of every matrix of a memory, and of two memories of one run.

H memory heads, L layers of the memory MLP.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titans_core.listening import memories_of
from titans_core.memory_facts import effective_rank, subspace_cosines, weights_of
from titans_domains.inspection.states import Memories, fresh
from titans_domains.inspection.subject import Run

ANGLES = 4
"""Leading directions of which two memories are asked whether they share them."""


class Matrix(NamedTuple):
    """One unit's numbers in float64."""

    weight: Tensor  # that is read
    learned: Tensor  # what reading has added to the start
    surprise: Tensor


def matrices(run: Run, memories: Memories) -> Iterator[Matrix]:
    """In the order of `Run.units`."""
    start = fresh(run)
    recalls = memories_of(run.subject.model)
    for reading in range(len(run.subject.readings)):
        for name, recall in recalls.items():
            now, then = memories[name], start[name]
            weights = weights_of(recall, now.memory)
            for head in range(recall.shape[0]):
                for layer in range(recall.config.depth):
                    at = (reading, head)
                    weight, ours, theirs, surprise = (
                        x[layer][at].detach().double().cpu()
                        for x in (weights, now.memory, then.memory, now.surprise)
                    )
                    yield Matrix(weight, ours - theirs, surprise)


def facts(run: Run, memories: Memories) -> list[dict[str, Any]]:
    """A row for each unit; None where a number does not exist."""
    return [
        {
            "unit": unit.name,
            "shape": list(one.weight.shape),
            "norm": size(one.weight),
            "largest": number(torch.linalg.matrix_norm(one.weight, 2)),
            "rank": number(effective_rank(one.weight)),
            "distance": size(one.learned),
            "share": quotient(size(one.learned), size(one.weight - one.learned)),
            "learned_rank": number(effective_rank(one.learned)),
            "surprise": size(one.surprise),
        }
        for unit, one in zip(run.units, matrices(run, memories), strict=True)
    ]


def differences(run: Run, a: Memories, b: Memories) -> list[dict[str, Any]]:
    """How far two memories are apart, a row for each unit."""
    rows = []
    for unit, one, other in zip(run.units, matrices(run, a), matrices(run, b), strict=True):
        apart = size(other.weight - one.weight)
        learned = size(one.learned), size(other.learned)
        angles = min(ANGLES, *one.weight.shape)
        both = min(learned) > 0
        rows.append(
            {
                "unit": unit.name,
                "learned_a": learned[0],
                "learned_b": learned[1],
                "difference": apart,
                # Of all weights most are M_{-1}'s, which both have: beside them any change looks small.
                "change": quotient(apart, max(learned)),
                "share": quotient(apart, size(one.weight)),
                "cosine": cosine(one.learned, other.learned) if both else None,
                "rank": number(effective_rank(other.weight - one.weight)),
                "directions": (
                    subspace_cosines(one.learned, other.learned, angles).mean().item()
                    if both
                    else None
                ),
                "by_chance": (angles / one.weight.shape[1]) ** 0.5,
                "surprise_a": size(one.surprise),
                "surprise_b": size(other.surprise),
            }
        )
    return rows


def size(x: Tensor) -> float:
    return torch.linalg.vector_norm(x).item()


def cosine(a: Tensor, b: Tensor) -> float:
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def quotient(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def number(x: Tensor) -> float | None:
    return x.item() if x.isfinite() else None
