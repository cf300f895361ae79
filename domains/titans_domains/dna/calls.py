"""What a classifier says of a stream of sequences: whole records, windows, or intervals of a genome."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from titans_domains.dna.genome import Genome, Interval
from titans_domains.dna.output import Rows, figure
from titans_domains.dna.reading import clean, read_records, reverse_complement
from titans_domains.dna.streams import read_windows

MOST_BASES = 2**16
"""Bases, padding included, that a model reads at once."""
MOST_ROWS = 256


class Classifier(Protocol):
    classes_: np.ndarray

    def predict_proba(self, X: Sequence[str]) -> Float[np.ndarray, "n C"]: ...


class Item(NamedTuple):
    """A clean sequence and where it stands; places are counted from 0 with the end exclusive."""

    contig: str
    start: int
    end: int
    name: str
    strand: str
    sequence: str
    where: str  # for errors
    ambiguous: int  # IUPAC codes that became N


class Call(NamedTuple):
    item: Item
    prediction: str
    chance: float  # of the prediction
    chances: list[float]  # of every class


Progress = Callable[[int], None]


class Blank:
    """Leaves out what holds no known base, such as a gap of a genome, and counts it."""

    count = 0

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.sequence.strip("N"):
                yield item
            else:
                self.count += 1


def record_items(path: Path, progress: Progress = lambda at: None) -> Iterator[Item]:
    """The records of a file as wholes. `progress` is told how many of the file's bytes were read."""
    for record in read_records(path, progress=progress):
        done = clean(record.sequence, record.where, whole=True)
        yield Item(
            record.name, 0, len(done.sequence), record.name, ".", done.sequence, record.where,
            done.ambiguous.total(),
        )  # fmt: skip


def window_items(
    path: Path, size: int, step: int | None, progress: Progress = lambda at: None
) -> Iterator[Item]:
    """Windows over the contigs of a file, as `read_windows` has them."""
    for window in read_windows(path, size, step, progress=progress):
        end = window.start + len(window.sequence)
        name = f"{window.contig}:{window.start}-{end}"
        yield Item(
            window.contig, window.start, end, name, ".", window.sequence, f"{path}, {name}",
            window.ambiguous,
        )  # fmt: skip


def bed_items(genome: Genome, path: Path, places: Iterable[Interval]) -> Iterator[Item]:
    """The intervals of a BED file, on their own strands."""
    for place in places:
        done = genome.read(place.contig, place.start, place.end)
        sequence = done.sequence
        if place.strand == "-":
            sequence = reverse_complement(sequence)
        yield Item(
            place.contig, place.start, place.end, place.name, place.strand, sequence,
            f"{path}, line {place.line}", done.ambiguous.total(),
        )  # fmt: skip


ItemT = TypeVar("ItemT")


def batches(
    items: Iterable[ItemT], length: Callable[[ItemT], int], rows: int | None = None
) -> Iterator[list[ItemT]]:
    """Items in the order in which they come, as many together as a model should read at once.

    At most `rows` of them, or else MOST_ROWS.
    """
    rows = rows or MOST_ROWS
    held: list[ItemT] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if held and (len(held) == rows or longest * (len(held) + 1) > MOST_BASES):
            yield held
            held, longest = [], length(item)
        held.append(item)
    if held:
        yield held


LONGEST = 2**20
"""Bases of a sequence that is read as a whole; a chromosome would take all memory there is."""


def checked(items: Iterable[Item], shortest: int) -> Iterator[Item]:
    """The items; ValueError for one that is too short for the model's tokens, or too long for a model."""
    for item in items:
        if len(item.sequence) > LONGEST:
            raise ValueError(
                f"{item.where} has {len(item.sequence):,} bases, and at most {LONGEST:,} are read as a "
                "whole: cut it into windows."
            )
        if len(item.sequence) < shortest:
            raise ValueError(
                f"{item.where} has {len(item.sequence)} bases, and the model's tokens need at least "
                f"{shortest}: leave it out."
            )
        yield item


def call(model: Classifier, items: Sequence[Item]) -> list[Call]:
    """The model's word on each item. With several labels a sequence has all that are likelier than not."""
    names = class_names(model)
    found = []
    for item, row in zip(items, model.predict_proba([i.sequence for i in items]), strict=True):
        if is_multilabel(model):
            prediction = ",".join(n for n, p in zip(names, row, strict=True) if p >= 0.5) or "none"
        else:
            prediction = names[int(row.argmax())]
        found.append(Call(item, prediction, float(row.max()), [float(p) for p in row]))
    return found


def class_names(model: Classifier) -> list[str]:
    return [str(name) for name in model.classes_]


def is_multilabel(model: Classifier) -> bool:
    """Whether a sequence may have several of the labels at once."""
    return bool(getattr(model, "multilabel_", False))


FORMATS = ("tsv", "bed", "gff3")


def header_of(kind: str, names: Sequence[str], *, whole: bool) -> str:
    """The first line of a format; BED has none."""
    lines = {"tsv": "\t".join(columns(names, whole=whole)), "gff3": "##gff-version 3"}
    return lines.get(kind, "")


def columns(names: Sequence[str], *, whole: bool) -> list[str]:
    place = ["name", "length"] if whole else ["contig", "start", "end", "name", "strand"]
    return [*place, "prediction", *(f"p_{name}" for name in names)]


def write_call(
    out: Rows, kind: str, found: Call, names: Sequence[str], *, whole: bool, named: bool = False
) -> None:
    """One line: of a table with all chances (`whole`: of records, not of windows), of BED or of GFF3.

    `named` places, those of a BED file, keep their names in a seventh column of BED.
    """
    if kind == "bed":
        out.line(bed_line(found) + f"\t{found.item.name}" * named)
    elif kind == "gff3":
        out.line(gff3_line(found, names))
    else:
        item = found.item
        place: tuple[str | int, ...] = (item.name, item.end)
        if not whole:
            place = (item.contig, item.start, item.end, item.name, item.strand)
        cells = (*place, found.prediction, *found.chances)
        out.row(dict(zip(columns(names, whole=whole), cells, strict=True)))


def bed_line(found: Call) -> str:
    """BED6: the prediction is the name, and its chance times 1,000 the score."""
    item = found.item
    score = round(1000 * found.chance)
    cells = (item.contig, item.start, item.end, found.prediction, score, item.strand)
    return "\t".join(map(str, cells))


def gff3_line(found: Call, names: Sequence[str]) -> str:
    """Counted from 1 and with the end inclusive, as GFF3 has it."""
    item = found.item
    chances = [f"p_{_escape(n)}={figure(p)}" for n, p in zip(names, found.chances, strict=True)]
    called = [f"Name={_escape(item.name)}", f"class={_escape(found.prediction)}"]
    attributes = ";".join([*called, *chances])
    contig = quote(item.contig, safe=".:^*$@!+?|-_")
    cells = (
        contig, "titans", "region", item.start + 1, item.end, figure(found.chance), item.strand, ".",
        attributes,
    )  # fmt: skip
    return "\t".join(map(str, cells))


def _escape(text: str) -> str:
    return quote(text, safe=" .:^*$@!+?|-_/()")
