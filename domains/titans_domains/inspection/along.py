"""Surprise and gates along what a model reads: all of a part that is drawn, averages of the rest.

N tokens that are drawn, T tokens of a passage, U units (see `Unit`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from titans_core.listening import Heard, listening
from titans_domains.inspection.subject import Passage, Run

MEASURES = ("surprise", "before", "step_size", "momentum", "forget")
"""What is kept of each token and unit, by the names of `Heard`."""
DRAWN = 4000
MOST_BINS = 1024
MOST_SURPRISING = 12


@dataclass
class Averages:
    """Sums over all tokens that were read, for each unit."""

    count: int = 0
    sums: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, values: Float[ndarray, "T U"]) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + values.sum(0, dtype=np.float64)

    def mean(self, name: str) -> Float[ndarray, " U"]:
        return self.sums[name] / self.count


class Track:
    """Averages over at most `MOST_BINS` stretches of equal length, however many tokens come."""

    def __init__(self) -> None:
        self.size = 1
        self.sums: Float[ndarray, " bins"] = np.zeros(0)
        self.counts: Float[ndarray, " bins"] = np.zeros(0)

    def add(self, first: int, values: Float[ndarray, " T"]) -> None:
        while (first + len(values) - 1) // self.size >= MOST_BINS:
            self.size *= 2
            self.sums, self.counts = (_paired(x) for x in (self.sums, self.counts))
        bins = (first + np.arange(len(values))) // self.size
        length = int(bins[-1]) + 1
        self.sums, self.counts = (np.pad(x, (0, length - len(x))) for x in (self.sums, self.counts))
        np.add.at(self.sums, bins, values)
        np.add.at(self.counts, bins, 1)

    def means(self) -> Float[ndarray, " bins"]:
        return self.sums / self.counts


def _paired(x: Float[ndarray, " bins"]) -> Float[ndarray, " halved"]:
    return np.pad(x, (0, len(x) % 2)).reshape(-1, 2).sum(1)


@dataclass
class Record:
    """A record of the file, and the tokens of it that are drawn."""

    name: str
    first: int  # its first token, counted over the whole file
    begin: int = 0  # in what is drawn
    end: int = 0
    values: list[ndarray] = field(default_factory=list)  # of a series, [S, C]
    bounds: list[ndarray] = field(default_factory=list)  # of each token, in `values`


@dataclass
class Along:
    run: Run
    path: Path
    first: int  # the first token that may be drawn
    most: int  # tokens that are drawn at most
    tokens: int = 0
    averages: Averages = field(default_factory=Averages)
    track: Track = field(default_factory=Track)
    labels: list[str] = field(default_factory=list)
    bits: list[ndarray] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    # Mean surprise, number (negative: of equals the first), what stands before the token, and it.
    most_surprising: list[tuple[float, int, tuple[str, str]]] = field(default_factory=list)
    _parts: dict[str, list[ndarray]] = field(default_factory=lambda: {m: [] for m in MEASURES})

    @property
    def context(self) -> int:
        """Tokens that are shown before a surprising one; stamps say enough by themselves."""
        return 0 if self.run.subject.kind == "series" else 20

    def measure(self, name: str) -> Float[ndarray, "N U"]:
        parts = self._parts[name]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.run.units)), np.float32)

    def all_bits(self) -> Float[ndarray, " N"] | None:
        return np.concatenate(self.bits) if self.bits else None

    def add(self, passage: Passage, heard: dict[str, Heard]) -> None:
        found = {name: self._by_unit(heard, name, passage.skip) for name in MEASURES}
        surprise = found["surprise"]
        count = len(passage.labels)
        assert len(surprise) == count, (len(surprise), count)
        if passage.begins is not None:
            self.records.append(
                Record(passage.begins, self.tokens, len(self.labels), len(self.labels))
            )
        self._sum(found)
        means = surprise.mean(1)
        self.track.add(self.tokens, means)
        self._most(means, passage)
        self._draw(found, passage)
        self.tokens += count

    def _by_unit(self, heard: dict[str, Heard], name: str, skip: int) -> Float[ndarray, "T U"]:
        """[T, U] in the order of `Run.units`; mirrored readings are turned to the file's order."""
        rows = []
        subject = self.run.subject
        for reading in range(len(subject.readings)):
            parts = [getattr(one, name)[reading, skip:].flatten(1) for one in heard.values()]
            row = np.concatenate([part.float().cpu().numpy() for part in parts], 1)
            rows.append(row[::-1] if reading in subject.mirrored else row)
        return np.concatenate(rows, 1)

    def _sum(self, found: dict[str, Float[ndarray, "T U"]]) -> None:
        for name, values in found.items():
            self.averages.add(name, values)
        over = found["surprise"] > np.array(self.run.clamps)
        self.averages.add("clamped", over.astype(np.float32))
        with np.errstate(divide="ignore"):
            self.averages.add("decay", -np.log1p(-found["forget"].astype(np.float64)))
        self.averages.count += len(over)

    def _most(self, means: Float[ndarray, " T"], passage: Passage) -> None:
        # What is no number has broken the memory.
        for at, value in enumerate(np.nan_to_num(means, nan=np.inf, posinf=np.inf).tolist()):
            if len(self.most_surprising) == MOST_SURPRISING and value <= self.most_surprising[0][0]:
                continue
            before = passage.labels[max(0, at - self.context) : at]
            item = (value, -(self.tokens + at), ("".join(before), passage.labels[at]))
            heappush(self.most_surprising, item)
            if len(self.most_surprising) > MOST_SURPRISING:
                heappop(self.most_surprising)

    def _draw(self, found: dict[str, Float[ndarray, "T U"]], passage: Passage) -> None:
        begin = min(max(0, self.first - self.tokens), len(passage.labels))
        end = min(len(passage.labels), begin + self.most - len(self.labels))
        if begin >= end:
            return
        for name, values in found.items():
            self._parts[name].append(values[begin:end])
        self.labels += passage.labels[begin:end]
        if passage.bits is not None:
            self.bits.append(passage.bits[begin:end])
        record = self.records[-1]
        record.end = len(self.labels)
        if passage.values is not None and passage.bounds is not None:
            low, high = passage.bounds[begin], passage.bounds[end]
            held = sum(map(len, record.values))
            record.bounds.append(passage.bounds[begin : end + 1] - low + held)
            record.values.append(passage.values[low:high])


def read_along(
    run: Run,
    path: Path,
    *,
    record: str | None = None,
    first: int = 0,
    most: int = DRAWN,
    progress: Callable[[int], None] = lambda done: None,
) -> Along:
    """Reads a file; of tokens `first` and the `most` from it on everything is kept."""
    along = Along(run, path, first, most)
    with listening(run.subject.model) as listener:
        for passage in run.subject.passages(path, record):
            along.add(passage, listener.take())
            progress(passage.done)
    if first >= along.tokens:
        raise ValueError(
            f"--first must be below the {along.tokens:,} tokens of {path}: got {first:,}."
        )
    return along
