"""Two memories of one run: how far apart their matrices are, and what both return for the same keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from titans_core.listening import memories_of
from titans_core.memory import Recall
from titans_core.memory_facts import answers
from titans_core.memory_file import is_memory_file
from titans_domains.inspection.facts import differences
from titans_domains.inspection.recall import Watched, read_watched, recalled
from titans_domains.inspection.states import Memories, load, row_of
from titans_domains.inspection.subject import Run

KEYS = 256
"""Keys of chance that both are asked for where no file gives any."""


class Side(NamedTuple):
    path: Path
    memories: Memories
    watched: Watched | None  # of a file that was read for it


def side_of(
    run: Run,
    path: Path,
    *,
    row: int | None = None,
    record: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Side:
    """The memory of a memory file, or the one that reading any other file leaves."""
    if path.is_file() and is_memory_file(path):
        return Side(path, load(run, path, row), None)
    watched = read_watched(run, path, record, progress)
    return Side(path, watched.memories, watched)


def compare_table(run: Run, a: Side, b: Side, asked: Side | None = None) -> dict[str, Any]:
    """All numbers on two memories; keys are those of the sides that were read, and of `asked`."""
    sources = {
        str(s.path): s.watched for s in (a, b, asked) if s is not None and s.watched is not None
    }
    return {
        **run.about(),
        "a": str(a.path),
        "b": str(b.path),
        "position_a": int(next(iter(a.memories.values())).position[0]),
        "position_b": int(next(iter(b.memories.values())).position[0]),
        "matrices": differences(run, a.memories, b.memories),
        "keys": {name: _asked(run, watched, a, b) for name, watched in sources.items()},
        "chance": None if sources else _by_chance(run, a, b),
    }


def _asked(run: Run, watched: Watched, a: Side, b: Side) -> list[dict[str, Any]]:
    """For each head, what both return for the keys of one file."""
    found = [recalled(run, watched, side.memories) for side in (a, b)]
    recalls = memories_of(run.subject.model)
    rows = []
    for (reading, name), one in found[0].items():
        other, kept = found[1][reading, name], watched.kept[reading, name]
        agree = _agreement(recalls[name], (reading, name), kept.k, a, b)
        columns = {
            "recall_a": one.now,
            "recall_b": other.now,
            "before": one.before,
            "found_a": one.found,
            "found_b": other.found,
            "agree": agree,
        }
        rows += [
            {
                "reading": run.subject.readings[reading],
                "memory": name,
                "head": head,
                **{key: x[:, head].mean().item() for key, x in columns.items()},
            }
            for head in range(one.now.shape[1])
        ]
    return rows


def _by_chance(run: Run, a: Side, b: Side) -> list[dict[str, Any]]:
    """For each head, how far the answers to keys of random directions go together."""
    rows = []
    for reading, label in enumerate(run.subject.readings):
        for name, recall in memories_of(run.subject.model).items():
            random = torch.Generator().manual_seed(0)
            k = F.normalize(torch.randn(KEYS, *recall.shape, generator=random), dim=-1)
            k = k.to(recall.initial[0])
            agree = _agreement(recall, (reading, name), k, a, b).mean(0)
            rows += [
                {"reading": label, "memory": name, "head": head, "agree": value}
                for head, value in enumerate(agree.tolist())
            ]
    return rows


def _agreement(
    recall: Recall, place: tuple[int, str], k: Float[Tensor, "N H D"], a: Side, b: Side
) -> Float[Tensor, "N H"]:
    """Cosines of the two answers to each key."""
    reading, name = place
    one, other = (
        answers(recall, row_of(side.memories[name], reading), k).double() for side in (a, b)
    )
    return F.cosine_similarity(one, other, dim=-1)
