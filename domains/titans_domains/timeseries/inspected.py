"""A forecaster that is inspected while it reads series.

S steps of a series, C its channels, N patches.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from titans_core.listening import memory_states
from titans_domains.inspection.subject import Kind, Passage
from titans_domains.timeseries.config import TimeseriesConfig
from titans_domains.timeseries.frequency import old_names
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.streams import Stream
from titans_domains.timeseries.task import load_run, series_for

ROWS = 1024
"""Steps that are read at a time. It changes no number."""
DYNAMIC = ("feat_dynamic_real", "past_feat_dynamic_real")


def series_subject(run: Path, device: torch.device, checkpoint: str) -> "SeriesSubject":
    if checkpoint != "last":
        raise ValueError(
            f"{run} is a run of timeseries, which is read at its best weights: leave --checkpoint out."
        )
    return SeriesSubject(run, *load_run(run, device))


class SeriesSubject:
    """Every series of a table, each read as `CarryingPredictor` reads one that grows."""

    kind: Kind = "series"
    mirrored: tuple[int, ...] = ()

    def __init__(self, run: Path, predictor: TitansPredictor, config: TimeseriesConfig) -> None:
        self.run, self.predictor, self.config = run, predictor, config
        self.model = predictor.module.model.eval()
        self.backbone = self.model.network.backbone
        network = self.model.config
        channels = network.channels
        self.readings: tuple[str, ...] = (
            tuple(f"channel {number}" for number in range(channels)) if channels > 1 else ("",)
        )
        self.notes: tuple[str, ...] = (
            "Each series is read as a stream, from a fresh memory, which is carried to its end; its scale is "
            f"that of its first {network.context_length} steps.",
            f"The memory reads patches of {network.patch_len} steps. The last one waits for steps to follow, "
            "and is not shown.",
        )
        if not predictor.module.carry:
            self.notes += (
                f"This run was trained on windows of {network.context_length} steps, each from a fresh "
                "memory: what is read beyond that is longer than it was trained for.",
            )

    def total(self, path: Path) -> int:
        return sum(np.shape(entry["target"])[-1] for entry in self._series(path))

    def passages(self, path: Path, record: str | None = None) -> Iterator[Passage]:
        done, count = 0, 0
        for number, entry in enumerate(self._series(path)):
            name = str(entry.get("item_id", number))
            if record is None or name == record:
                for passage in self._of_series(entry, name, done):
                    count += 1
                    yield passage
            done += np.shape(entry["target"])[-1]
        if not count:
            raise ValueError(
                f"{path} has no series {record!r} to read."
                if record is not None
                else f"{path} has no series that is longer than a context and varies: nothing is read."
            )

    def _series(self, path: Path) -> Any:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: give the path of a table.")
        if not path.exists():
            raise FileNotFoundError(f"There is no table {str(path)!r}.")
        return series_for(self.run, self.config, str(path))

    def _of_series(self, entry: dict[str, Any], name: str, done: int) -> Iterator[Passage]:
        carrying = self.predictor.carry()
        table = np.atleast_2d(np.asarray(entry["target"], np.float32))
        length = table.shape[-1]
        seen = ~np.isnan(table).all(0)
        # A stream begins with its first value.
        lead = int(seen.argmax()) if seen.any() else length
        read = 0
        for first in range(lead, length, ROWS):
            carrying.update([rows_of(entry, first, first + ROWS)])
            [stream] = carrying.streams.values()
            patches = patches_read(stream)
            if patches == read:
                continue
            bounds = self._bounds(lead + stream.written, patches - read, fresh=not read)
            yield Passage(
                labels=stamps_of(entry, bounds),
                begins=None if read else name,
                values=table[:, bounds[0] : bounds[-1]].T,
                bounds=bounds - bounds[0],
                done=done + min(first + ROWS, length),
            )
            read = patches

    def _bounds(self, end: int, patches: int, *, fresh: bool) -> Int[np.ndarray, " N+1"]:
        """Where the last patches begin and end; the first of a stream is shorter where L is no multiple."""
        config = self.model.config
        bounds = end - config.patch_len * np.arange(patches, -1, -1)
        if fresh:
            bounds[0] = bounds[1] - ((config.context_length - 1) % config.patch_len + 1)
        return bounds


def patches_read(stream: Stream) -> int:
    if stream.state is None:
        return 0
    return int(memory_states(stream.state.backbone)[0].memory.position[0])


def rows_of(entry: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """Some rows of a series, as `CarryingPredictor.update` takes them."""
    cut = {name: np.asarray(entry[name])[..., first:end] for name in DYNAMIC if name in entry}
    with old_names():
        start = entry["start"] + first
    return {**entry, **cut, "start": start, "target": entry["target"][..., first:end]}


def stamps_of(entry: dict[str, Any], bounds: Int[np.ndarray, " N+1"]) -> list[str]:
    """The first and the last stamp of each patch."""
    with old_names():
        stamps = [entry["start"] + int(at) for at in bounds]
        ends = [entry["start"] + int(at) - 1 for at in bounds[1:]]
    return [f"{a} to {b}" for a, b in zip(stamps, ends, strict=False)]
