"""Memories of a run: of a memory file, or as reading has left them.

R readings (see `Subject`), H memory heads, L layers.
"""

from pathlib import Path

import torch

from titans_core import join, load_memory, map_state, split
from titans_core.listening import memories_of, memory_states
from titans_domains.inspection.subject import Run
from titans_kernels import MemoryState

Memories = dict[str, MemoryState]
"""By the names of `memories_of`, one row for each reading."""


def fresh(run: Run) -> Memories:
    """Before the first token: as training left them, and what persistent tokens have written."""
    with torch.no_grad():
        state = run.subject.backbone.fresh_state(len(run.subject.readings))
    return _named(run, state)


def load(run: Run, path: Path, row: int | None) -> Memories:
    """Of a memory file of this very run; `row` chooses among those of several readers."""
    state = load_memory(path, run.subject.backbone)
    rows, size = split(state), len(run.subject.readings)
    count = len(rows) // size
    if len(rows) % size:
        raise ValueError(
            f"{path} has {len(rows)} rows, and {run.path} reads {size} at once: it is no memory of one "
            "of its readers."
        )
    if row is None and count > 1:
        raise ValueError(f"{path} holds {count} memories: choose one with --row, from 0 on.")
    if row is not None and not 0 <= row < count:
        raise ValueError(f"--row must be below the {count} memories of {path}: got {row}.")
    first = size * (row or 0)
    return _named(run, join(rows[first : first + size]))


def _named(run: Run, state: object) -> Memories:
    names = memories_of(run.subject.model)
    return {name: found.memory for name, found in zip(names, memory_states(state), strict=True)}


def row_of(memory: MemoryState, row: int) -> MemoryState:
    return map_state(lambda x: x[row : row + 1], memory)
