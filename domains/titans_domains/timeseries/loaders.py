"""Batches for GluonTS's training: drawn, chosen by a GluonTS sampler, or spread over a region."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gluonts.transform import InstanceSampler

from titans_domains.timeseries.checks import name_of
from titans_domains.timeseries.frequency import old_names, steps_between
from titans_domains.timeseries.series import Arrays
from titans_domains.timeseries.windows import Batch, Places, Windows

if TYPE_CHECKING:
    import pandas as pd

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
        entries: Sequence[Mapping[str, Any]],
        sampler: InstanceSampler,
        batch_size: int,
        batches: int,
    ) -> None:
        self.windows, self.batch_size, self.batches = windows, batch_size, batches
        self.stream = self._stream(entries, sampler)

    def __len__(self) -> int:
        return self.batches

    def _stream(
        self, entries: Sequence[Mapping[str, Any]], sampler: InstanceSampler
    ) -> Iterator[tuple[int, int]]:
        idle = 0
        for number, entry in cycle(enumerate(entries)):
            chosen = chosen_ends("train_sampler", sampler, entry, number, self.windows.future)
            idle = 0 if chosen else idle + 1
            if idle > IDLE * len(entries):
                raise ValueError("train_sampler chooses no window of any series: check its bounds.")
            yield from ((number, end) for end in chosen)

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


def stream_places(
    windows: Windows, horizon: int, context: int, first: Sequence[int] | None = None
) -> Places:
    """The streams that begin with a series' first value or later, and end at row `first` or later.

    A series shorter than a stream is read from its first value on, and what is missing is missing after
    its end; of one without a context before its last horizon, before its first value too.
    """
    ends = [int(length) - horizon for length in windows.lengths]
    least = [
        windows.past + min(begin, end - context)
        for begin, end in zip(windows.begins, ends, strict=True)
    ]
    first = least if first is None else [max(a, b) for a, b in zip(first, least, strict=True)]
    return Places(windows, first, [max(a, b) for a, b in zip(first, ends, strict=True)])


def trained_ends(entries: Sequence[Mapping[str, Any]]) -> dict[Hashable, pd.Period]:
    """The stamp after each series' last row, by its item_id, or its place where it has none."""
    with old_names():
        return {
            key_of(entry, number): entry["start"] + np.shape(entry["target"])[-1]
            for number, entry in enumerate(entries)
        }


def key_of(entry: Mapping[str, Any], number: int) -> Hashable:
    item = entry.get("item_id")
    return ("place", number) if item is None else ("item_id", item)


def validation_places(
    windows: Windows,
    entries: Sequence[Mapping[str, Any]],
    horizon: int,
    seen: Mapping[Hashable, pd.Period],
    *,
    context: int | None = None,
) -> Places:
    """The windows whose future begins after what was trained on; all, where a series has no more.

    `seen` is what `trained_ends` gave. With a context they are streams: see `stream_places`.
    """
    ends = [int(length) - horizon for length in windows.lengths]
    begun = [trained_rows(entry, number, seen) for number, entry in enumerate(entries)]
    first = [
        old if 0 < old <= end else min(windows.past, end)
        for old, end in zip(begun, ends, strict=True)
    ]
    if context is not None:
        return stream_places(windows, horizon, context, first)
    return Places(windows, first, ends)


def trained_rows(entry: Mapping[str, Any], number: int, seen: Mapping[Hashable, pd.Period]) -> int:
    """How many rows from the entry's start on were trained on; below 0 where it starts later."""
    stamp = seen.get(key_of(entry, number))
    if stamp is None:
        return 0
    if stamp.freq != entry["start"].freq:
        raise ValueError(
            f"{name_of(entry, number)} has the frequency {entry['start'].freqstr!r}, and was trained on "
            f"with {stamp.freqstr!r}: resample the validation data."
        )
    return steps_between(entry["start"], stamp)


def chosen_ends(
    name: str, sampler: InstanceSampler, entry: Mapping[str, Any], number: int, horizon: int
) -> list[int]:
    """The rows that a GluonTS sampler chooses; ValueError for one without a whole future after it."""
    rows = np.shape(entry["target"])[-1]
    ends = [int(end) for end in sampler(entry["target"])]
    if ends and max(ends) > rows - horizon:
        raise ValueError(
            f"{name} chooses row {max(ends)} of {name_of(entry, number)}, which has no {horizon} rows "
            f"after it: give the sampler min_future={horizon}."
        )
    return ends


def sampled_places(
    windows: Windows, entries: Sequence[Mapping[str, Any]], sampler: InstanceSampler
) -> Places:
    """The windows that a GluonTS sampler chooses in one pass."""
    places = Places(windows, [0] * len(entries), [-1] * len(entries))
    chosen = [
        (number, end)
        for number, entry in enumerate(entries)
        for end in chosen_ends("validation_sampler", sampler, entry, number, windows.future)
    ]
    if chosen:
        places.series, places.ends = torch.tensor(chosen).unbind(1)
    return places
