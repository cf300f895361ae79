"""Rows of batches and of states: whose turn they are, where a step is done in parts or by several processes.

A step has `parts` micro-batches one after the other, each shared out among `world` processes. Row by row the
order is that of the parts, and within one that of the processes, so that a row stays the same stream
whoever reads it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from titans_core import join, map_state


def row_counts(batch: Any) -> set[int]:
    """The rows of all tensors in a batch; more than one number where it is no batch of rows."""
    if isinstance(batch, Tensor):
        return {len(batch)} if batch.ndim else set()
    inner = batch.values() if isinstance(batch, dict) else batch
    if not isinstance(batch, dict | tuple | list):
        return set()
    return set().union(*map(row_counts, inner))


def take(batch: Any, rows: slice) -> Any:
    """Some rows of every tensor in tuples, lists and dictionaries; what else is in them stays."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim else batch
    if isinstance(batch, dict):
        return {name: take(part, rows) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        inner = [take(part, rows) for part in batch]
        return type(batch)(*inner) if hasattr(batch, "_fields") else type(batch)(inner)
    return batch


class Share:
    """Which rows of a step are this process's, part by part."""

    def __init__(self, parts: int, rank: int, world: int) -> None:
        self.parts, self.rank, self.world = parts, rank, world

    @property
    def whole(self) -> bool:
        """Whether they are all of them, at once."""
        return self.parts * self.world == 1

    def rows(self, part: int, count: int) -> slice:
        size = count // (self.parts * self.world)
        first = (part * self.world + self.rank) * size
        return slice(first, first + size)

    def of(self, batch: Any) -> list[Any]:
        """The batch's parts of this process; ValueError where its rows do not go up in them."""
        if self.whole:
            return [batch]
        counts, shares = row_counts(batch), self.parts * self.world
        if len(counts) != 1 or (count := counts.pop()) % shares:
            raise ValueError(
                f"A batch must have rows for train.accumulate = {self.parts} parts of {self.world} "
                f"processes, in all its tensors a multiple of {shares}: got "
                f"{' and '.join(map(str, sorted(row_counts(batch)))) or 'none'}."
            )
        return [take(batch, self.rows(part, count)) for part in range(self.parts)]

    def states_of(self, state: Any) -> list[Any]:
        """The states of this process's parts, from one of all rows."""
        if self.whole:
            return [state]
        count = min(row_counts(state), default=0)

        def own(part: int) -> Any:
            rows = self.rows(part, count)
            # A copy, so that the rows of others are let go.
            return map_state(lambda x: x[rows].clone(), state)

        return [own(part) for part in range(self.parts)]


def in_order(everyones: Sequence[Sequence[Any]]) -> Any:
    """One state of all rows, from those that each process has of its parts."""
    states = [part for parts in zip(*everyones, strict=True) for part in parts]
    return states[0] if len(states) == 1 else join(states)
