"""What stored keys return now: recalled against written values by age, beside what chance would give.

N tokens that are watched, T tokens of a passage, H memory heads, D width of a head, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from titans_core.listening import Heard, listening, memories_of
from titans_core.memory_facts import Standing, aged, answers, half_life, standing
from titans_domains.inspection.facts import number
from titans_domains.inspection.states import Memories, fresh, row_of
from titans_domains.inspection.subject import Run

EDGE = 128
"""First and last tokens that are all watched."""
BETWEEN = 512
"""Of those between them so many at most, at equal distances."""
NEWEST = 8
"""Tokens that are young together: the recall of one alone says little."""


class Kept(NamedTuple):
    """Watched tokens of one memory in one reading."""

    k: Float[Tensor, "N H D"]
    v: Float[Tensor, "N H D"]
    standing: Standing

    def only(self, kept: Tensor) -> "Kept":
        return Kept(self.k[kept], self.v[kept], Standing(*(x[kept] for x in self.standing)))


@dataclass
class Watched:
    """Tokens spread over all that was read; their number does not grow with it."""

    run: Run
    record: str = ""
    tokens: int = 0
    numbers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    kept: dict[tuple[int, str], Kept] = field(default_factory=dict)
    memories: Memories = field(default_factory=dict)

    def add(self, heard: dict[str, Heard]) -> None:
        count = next(iter(heard.values())).k.shape[1]
        numbers = torch.cat([self.numbers, torch.arange(self.tokens, self.tokens + count)])
        self.tokens += count
        chosen = _chosen(numbers, self.tokens)
        self.numbers = numbers[chosen]
        for reading in range(len(self.run.subject.readings)):
            for name, one in heard.items():
                channels = one.channels[reading]
                gates = one.momentum[reading][..., None].expand_as(channels), channels
                new = Kept(one.k[reading], one.v[reading], standing(*gates))
                if (old := self.kept.get((reading, name))) is not None:
                    old = old._replace(standing=aged(old.standing, *gates))
                    both = zip(old.standing, new.standing, strict=True)
                    new = Kept(
                        torch.cat([old.k, new.k]),
                        torch.cat([old.v, new.v]),
                        Standing(*(torch.cat(pair) for pair in both)),
                    )
                self.kept[reading, name] = new.only(chosen.to(new.k.device))

    @property
    def ages(self) -> np.ndarray:
        """Tokens read after each."""
        return self.tokens - 1 - self.numbers.numpy()


def _chosen(numbers: Tensor, total: int) -> Tensor:
    """Multiples of one distance, so that those of a longer text are among those of its beginning."""
    stride = 1
    while total // stride > BETWEEN:
        stride *= 2
    keep = (numbers < EDGE) | (numbers >= total - EDGE) | (numbers % stride == 0)
    return keep.nonzero()[:, 0]


def read_watched(
    run: Run,
    path: Path,
    record: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Watched:
    """Reads the record that is named, or the first of a file, and watches its tokens."""
    watched = Watched(run)
    with listening(run.subject.model) as listener:
        for passage in run.subject.passages(path, record):
            heard = listener.take()
            if passage.begins is not None:
                if watched.tokens:
                    break
                watched.record = passage.begins
            watched.add(heard)
            watched.memories = dict(listener.after)
            progress(passage.done)
    return watched


class Recalled(NamedTuple):
    """For each watched token and head, cosines of answers to its key with its value."""

    now: Float[Tensor, "N H"]
    before: Float[Tensor, "N H"]  # answered by the memory before its first token
    others: Float[Tensor, "N H"]  # now, with the values of the other tokens: their mean
    found: Float[Tensor, "N H"]  # share of the others whose value is less like the answer
    error: Float[Tensor, "N H"]  # |answer - value|^2 / |value|^2
    error_before: Float[Tensor, "N H"]


def recalled(run: Run, watched: Watched, memories: Memories) -> dict[tuple[int, str], Recalled]:
    """What the memories return for the watched keys."""
    start = fresh(run)
    recalls = memories_of(run.subject.model)
    found = {}
    for (reading, name), kept in watched.kept.items():
        now, before = (
            answers(recalls[name], row_of(all_of[name], reading), kept.k).double()
            for all_of in (memories, start)
        )
        found[reading, name] = _compared(now, before, kept.v.double())
    return found


def _compared(now: Tensor, before: Tensor, v: Tensor) -> Recalled:
    units = [F.normalize(x, dim=-1).movedim(1, 0) for x in (now, v)]
    table = units[0] @ units[1].mT  # [H, N, N], answers by values
    own = table.diagonal(dim1=1, dim2=2)
    count = max(1, table.shape[-1] - 1)
    # Tokens of equal values are no rivals: what is equally near counts half, and itself not at all.
    nearer = (table < own[..., None] - 1e-12).double() + 0.5 * (table - own[..., None]).abs().le(
        1e-12
    )
    return Recalled(
        own.mT,
        F.cosine_similarity(before, v, dim=-1),
        ((table.sum(-1) - own) / count).mT,
        ((nearer.sum(-1) - 0.5) / count).mT,
        *((x - v).square().sum(-1) / v.square().sum(-1).clamp_min(1e-30) for x in (now, before)),
    )


def age_bins(ages: np.ndarray) -> list[np.ndarray]:
    """Places of tokens of age 0-7, 8-15, 16-31 and so on; none is empty."""
    which = np.where(ages < NEWEST, 0, 1 + np.log2(np.maximum(ages / NEWEST, 1)).astype(int))
    return [np.flatnonzero(which == one) for one in np.unique(which)]


def heads(
    run: Run, watched: Watched, found: dict[tuple[int, str], Recalled], *, same: bool
) -> list[dict[str, Any]]:
    """A row for each head: what its memory returns, and how long it does.

    `same` is whether the memory is the one that reading has left: to another the gates say nothing.
    """
    bins = age_bins(watched.ages)
    centres = [float(watched.ages[part].mean()) for part in bins]
    rows = []
    for (reading, name), one in found.items():
        kept = watched.kept[reading, name].standing
        for head in range(one.now.shape[1]):
            curve = [one.now[part, head].mean().item() for part in bins]
            floor = one.before[:, head].mean().item()
            rows.append(
                {
                    "reading": run.subject.readings[reading],
                    "memory": name,
                    "head": head,
                    "recall": one.now[:, head].mean().item(),
                    "before": floor,
                    "others": one.others[:, head].mean().item(),
                    "found": one.found[:, head].mean().item(),
                    "error": one.error[:, head].mean().item(),
                    "error_before": one.error_before[:, head].mean().item(),
                    "half_life": half_life(centres, curve, floor) if same else None,
                    "ages": centres,
                    "tokens": [len(part) for part in bins],
                    "recall_by_age": curve,
                    "before_by_age": [one.before[part, head].mean().item() for part in bins],
                    **(_gates(watched.ages, kept, bins, head) if same else {}),
                }
            )
    return rows


def _gates(ages: np.ndarray, kept: Standing, bins: list[np.ndarray], head: int) -> dict[str, Any]:
    """How far tokens stand in each layer by the gates alone."""
    order = np.argsort(ages)
    retained, written = (x.mean(-1).cpu() for x in (kept.retained, kept.written))
    layers = range(retained.shape[-1])
    return {
        "gate_half_life": [
            half_life(ages[order].tolist(), retained[order, head, layer].tolist())
            for layer in layers
        ],
        "retained_by_age": [[number(retained[p, head, n].mean()) for p in bins] for n in layers],
        "written_by_age": [[number(written[p, head, n].mean()) for p in bins] for n in layers],
    }
