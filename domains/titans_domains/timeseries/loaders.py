"""Batches for GluonTS's training: drawn, chosen by a GluonTS sampler, or spread over a region."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from gluonts.transform import InstanceSampler

from titans_domains.timeseries.series import Arrays
from titans_domains.timeseries.windows import Batch, Places, Windows

IDLE = 1000
"""Times that a sampler may pass over all series without choosing a window."""


class Drawn:
    """Epochs of windows that are drawn evenly; each epoch goes on where the one before ended."""

    def __init__(self, places: Places, batch_size: int, batches: int, seed: int) -> None:
        if not len(places):
            raise ValueError("There is no window to train on: every series ends too soon.")
        self.places, self.batch_size, self.batches = places, batch_size, batches
        self.random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.batches):
            yield self.places.drawn(self.batch_size, self.random)


class Sampled:
    """Epochs of the windows that a GluonTS sampler chooses, series after series."""

    def __init__(
        self,
        windows: Windows,
        targets: Sequence[np.ndarray],
        sampler: InstanceSampler,
        batch_size: int,
        batches: int,
    ) -> None:
        self.windows, self.batch_size, self.batches = windows, batch_size, batches
        self.stream = self._stream(targets, sampler)

    def __len__(self) -> int:
        return self.batches

    def _stream(
        self, targets: Sequence[np.ndarray], sampler: InstanceSampler
    ) -> Iterator[tuple[int, int]]:
        idle = 0
        for number, target in cycle(enumerate(targets)):
            chosen = sampler(target)
            idle = 0 if len(chosen) else idle + 1
            if idle > IDLE * len(targets):
                raise ValueError("train_sampler chooses no window of any series: check its bounds.")
            yield from ((number, int(end)) for end in chosen)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.batches):
            places = [next(self.stream) for _ in range(self.batch_size)]
            series, ends = torch.tensor(places).unbind(1)
            yield self.windows.take(series, ends)


class Spread:
    """Always the same windows of a set, at most so many, evenly spread."""

    def __init__(self, places: Places, most: int, batch_size: int) -> None:
        if not len(places):
            raise ValueError("There is no window to validate on: every series ends too soon.")
        self.places, self.most, self.batch_size = places, most, batch_size

    def __len__(self) -> int:
        return -(-min(self.most, len(self.places)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.places.spread(self.most, self.batch_size)


def stream_steps(
    series: Sequence[Arrays], asked: int | None, context: int, patch: int, horizon: int
) -> int:
    """Steps of a training stream: a context, and whole patches after it as far as series reach."""
    wanted = 4 * context if asked is None else asked
    longest = max(len(s.target) for s in series) - horizon - context
    return context + max(0, min(wanted, longest)) // patch * patch


def train_places(windows: Windows, horizon: int, *, least: int) -> Places:
    """The windows from `least` steps after a series' start on, or its last where it is shorter."""
    ends = [int(length) - horizon for length in windows.lengths]
    return Places(windows, [min(least, end) for end in ends], ends)


def validation_places(
    windows: Windows, entries: Sequence[Mapping[str, Any]], horizon: int, seen: Mapping[Any, int]
) -> Places:
    """The windows whose future begins after what was trained on; all, where a series has no more."""
    ends = [int(length) - horizon for length in windows.lengths]
    begun = [seen.get(entry.get("item_id"), 0) for entry in entries]
    first = [
        old if 0 < old <= end else min(windows.past, end)
        for old, end in zip(begun, ends, strict=True)
    ]
    return Places(windows, first, ends)


def sampled_places(
    windows: Windows, targets: Sequence[np.ndarray], sampler: InstanceSampler
) -> Places:
    """The windows that a GluonTS sampler chooses in one pass."""
    places = Places(windows, [0] * len(targets), [-1] * len(targets))
    chosen = [(number, int(end)) for number, x in enumerate(targets) for end in sampler(x)]
    if chosen:
        places.series, places.ends = torch.tensor(chosen).unbind(1)
    return places
