"""One series as far as it was read, and the rows that go on with it.

C channels, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from titans_domains.timeseries.frequency import old_names, steps_between
from titans_domains.timeseries.series import Arrays

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Stream:
    """One series as far as it was read. Nothing in it grows, once the first context is there."""

    item_id: Any
    following: pd.Period  # the stamp of the next row
    rows: Arrays  # the last ones
    count: int = 0  # rows so far
    written: int = 0  # of them, those that were passed over among them
    future: np.ndarray | None = None  # the data's own known features after the last row [*, F]
    loc: Tensor | None = None  # [1, 1, C]
    scale: Tensor | None = None
    state: Any = None
    info: dict[str, Any] | None = None

    @property
    def waiting(self) -> int:
        return self.count - self.written


def is_table(data: Any) -> bool:
    import pandas as pd

    return isinstance(data, str | Path | pd.DataFrame | pd.Series)


def begun(entry: Any, number: int, name: str) -> tuple[Stream, dict[str, Any]]:
    """A stream without rows, and the entry from its first value on: the scale needs one."""
    table = np.atleast_2d(np.asarray(entry["target"], np.float32))
    seen = ~np.isnan(table).all(0)
    if not seen.any():
        raise ValueError(f"{name} begins without a value: give it from its first value on.")
    first = int(seen.argmax())
    cut = dict(entry)
    for key in ("target", "feat_dynamic_real", "past_feat_dynamic_real"):
        if key in cut and np.size(cut[key]):
            cut[key] = np.asarray(cut[key])[..., first:]
    with old_names():
        cut["start"] = entry["start"] + first
    none = np.zeros((0, 0), np.float32)
    stream = Stream(
        item_id=entry.get("item_id", number),
        following=cut["start"],
        rows=Arrays(none, none, none, none, none, none),
        info=entry.get("info"),
    )
    return stream, cut


def joined_on(stream: Stream, entry: Any, name: str) -> dict[str, Any]:
    """The entry, with missing rows in front where it begins later than the stream has come."""
    with old_names():
        if entry["start"].freq != stream.following.freq:
            raise ValueError(
                f"{name} has the frequency {entry['start'].freqstr!r}, and was begun with "
                f"{stream.following.freqstr!r}."
            )
        gap = steps_between(stream.following, entry["start"])
    if gap < 0:
        raise ValueError(
            f"{name} begins at {entry['start']}, and the next row is that of {stream.following}: give "
            "update new rows only, or reset by another predictor.carry()."
        )
    if not gap:
        return dict(entry)
    for key in ("feat_dynamic_real", "past_feat_dynamic_real"):
        if key in entry and np.size(entry[key]):
            raise ValueError(
                f"{name} has no row from {stream.following} to {entry['start']}, where {key!r} is needed: "
                "give those rows, with a missing target."
            )
    target = np.asarray(entry["target"], np.float32)
    blank = np.full((*target.shape[:-1], gap), np.nan, np.float32)
    return {
        **entry,
        "start": stream.following,
        "target": np.concatenate([blank, target], -1),
    }


def alike(streams: Iterable[Stream], stage: Callable[[Stream], Any]) -> Iterator[list[Stream]]:
    """Groups of streams that can be read in one batch."""
    for _, group in groupby(sorted(streams, key=stage), stage):
        yield list(group)
