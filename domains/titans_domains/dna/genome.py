"""A genome on disk of which any place is read without the rest, and intervals over it."""

import gzip
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from titans_domains.dna.reading import (
    NO_SEQUENCE,
    PIECE,
    Cleaned,
    clean,
    compression,
    name_of,
    open_text,
    unpacking,
)


class Contig(NamedTuple):
    """Where a record's sequence stands in its (uncompressed) FASTA file, as in samtools' .fai."""

    length: int
    offset: int  # byte of the first base
    line_bases: int
    line_width: int  # bytes of a line, its end included

    def byte(self, base: int) -> int:
        return self.offset + base // self.line_bases * self.line_width + base % self.line_bases


class Genome:
    """Indexed access to a FASTA file, plain or bgzip. An index of samtools beside it (.fai) saves time.

    Places are counted from 0 and their end is exclusive, as in BED.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        kind = compression(self.path)
        if kind == "gzip":
            raise ValueError(
                f"{self.path} is compressed by gzip, which has no way to its middle: pack it anew, "
                f"`gunzip -c {self.path} | bgzip > {self.path.with_suffix('.bgz')}`, or unpack it."
            )
        with open_text(self.path) as text:
            first = text.read(1)
        if first != ">":
            raise ValueError(
                f"{self.path} must be a FASTA file, which begins with '>': got {first!r}."
                if first
                else f"{self.path} is empty: give a FASTA file."
            )
        self.index = read_fai(self.path) or scan(self.path, compressed=kind is not None)
        self.blocks = Blocks(self.path) if kind else None

    @property
    def lengths(self) -> dict[str, int]:
        return {name: contig.length for name, contig in self.index.items()}

    def check(self, contig: str, start: int, end: int, where: str) -> None:
        """ValueError, which begins with `where`, for a place that is not in the genome."""
        if contig not in self.index:
            raise ValueError(
                f"{where}: {self.path} has no contig {contig!r}: {self._near(contig)}."
            )
        length = self.index[contig].length
        if not 0 <= start < end:
            raise ValueError(f"{where}: {start}-{end} of {contig} holds no base.")
        if end > length:
            raise ValueError(
                f"{where}: {start}-{end} reaches beyond {contig}, which has {length} bases in "
                f"{self.path}; is it of another assembly?"
            )

    def _near(self, contig: str) -> str:
        for other in (f"chr{contig}", contig.removeprefix("chr")):
            if other in self.index:
                return f"it calls it {other!r}, so rename one of them"
        names = list(self.index)
        return f"it has {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"

    def read(self, contig: str, start: int, end: int, *, soft_mask: bool = False) -> Cleaned:
        """The bases from `start` to before `end`, cleaned."""
        self.check(contig, start, end, f"{contig}:{start}-{end}")
        place = self.index[contig]
        first = place.byte(start)
        found = self._bytes(first, place.byte(end - 1) + 1 - first)
        text = found.replace(b"\n", b"").replace(b"\r", b"").decode("ascii", "replace")
        if len(text) != end - start:
            raise ValueError(
                f"{self.path} does not fit its index at {contig}:{start}-{end}: was it changed?"
            )
        return clean(text, f"{self.path}, record {contig!r}", soft_mask=soft_mask, offset=start)

    def _bytes(self, first: int, size: int) -> bytes:
        if self.blocks is not None:
            return self.blocks.read(first, size)
        with self.path.open("rb") as file:
            file.seek(first)
            return file.read(size)

    def fetch(self, contig: str, start: int, end: int) -> str:
        """The clean bases from `start` to before `end`."""
        return self.read(contig, start, end).sequence


DAMAGED = (ValueError, RuntimeError, struct.error)
"""What Biopython raises, besides, at a block that is none."""


class Blocks:
    """The uncompressed bytes of a bgzip file, from any place on."""

    def __init__(self, path: Path) -> None:
        from Bio import bgzf

        self.path = path
        with unpacking(path, *DAMAGED), path.open("rb") as file:
            blocks = [(raw, data) for raw, _, data, size in bgzf.BgzfBlocks(file) if size]
        self.raw, self.data = [b[0] for b in blocks], [b[1] for b in blocks]

    def read(self, first: int, size: int) -> bytes:
        from Bio import bgzf

        block = bisect_right(self.data, first) - 1
        with unpacking(self.path, *DAMAGED), self.path.open("rb") as file:
            reader = bgzf.BgzfReader(mode="rb", fileobj=file)
            reader.seek(bgzf.make_virtual_offset(self.raw[block], first - self.data[block]))
            return reader.read(size)


def read_fai(path: Path) -> dict[str, Contig] | None:
    """The index that samtools left beside a FASTA file; None where there is none, or an older one."""
    beside = path.with_name(path.name + ".fai")
    if not beside.is_file() or beside.stat().st_mtime < path.stat().st_mtime:
        return None
    index = {}
    for number, line in enumerate(beside.read_bytes().decode(errors="replace").splitlines(), 1):
        contig = _contig(line)
        if contig is None:
            raise ValueError(
                f"{beside}, line {number} is no line of an index: delete it, or make it anew with "
                "samtools faidx."
            )
        index[line.split("\t")[0]] = contig
    return index


def _contig(line: str) -> Contig | None:
    _, *numbers = line.split("\t")
    if len(numbers) != 4 or not all(re.fullmatch("[0-9]{1,15}", part) for part in numbers):
        return None
    contig = Contig(*map(int, numbers))
    return contig if 0 < contig.line_bases <= contig.line_width else None


def scan(path: Path, *, compressed: bool) -> dict[str, Contig]:
    """The index of a FASTA file, from one pass through it."""
    index: dict[str, Contig] = {}
    with unpacking(path), gzip.open(path) if compressed else path.open("rb") as file:
        for name, contig, number in _records(file, path):
            if name in index:
                raise ValueError(f"{path}, line {number}: there is a second record {name!r}.")
            if not contig.length:
                raise ValueError(f"{path}, line {number}, record {name!r} {NO_SEQUENCE}")
            index[name] = contig
    return index


def _records(file: Any, path: Path) -> Iterator[tuple[str, Contig, int]]:
    """Name, place and first line of each record."""
    name, title, offset = "", 0, 0
    at = length = bases = width = 0
    number = 1
    short = False  # a line was shorter than the first, so it must be the last
    for line in _lines(file):
        if line.title is not None:
            if title:
                yield name, Contig(length, offset, bases, width), title
            name, title, offset = name_of(line.title, number), number, at + line.width
            length, bases, width, short = 0, 0, 0, False
        elif not width:
            length, bases, width = line.bases * line.times, line.bases, line.width
        elif line.bases:
            other = line.width != width
            if short or line.bases > bases or (other and line.times > 1):
                raise ValueError(
                    f"{path}, line {number + (other and not short and line.bases < bases)}, record "
                    f"{name!r}: all lines of a record but the last must be of one length: wrap the "
                    "file anew, with `seqkit seq -w 60` say."
                )
            length += line.bases * line.times
            short = other
        else:
            short = True
        at += line.width * line.times
        number += line.times
    yield name, Contig(length, offset, bases, width), title


class Line(NamedTuple):
    bases: int
    width: int  # bytes, the end included
    title: str | None  # without its mark; None for lines of bases
    times: int  # such lines follow on each other


def _lines(file: Any) -> Iterator[Line]:
    """The lines, like ones together; of a long one the bytes are not held."""
    begun, start, held = 0, b"", b""
    while chunk := file.read(16 * PIECE):
        held += chunk
        if cut := held.rfind(b"\n") + 1:
            yield from _runs(held[:cut], begun, start)
            begun, start, held = 0, b"", held[cut:]
        if len(held) > PIECE:
            start = start or held[:PIECE]
            # The last byte may belong to the line's end.
            begun, held = begun + len(held) - 1, held[-1:]
    if held:
        yield from _runs(held + b"\n", begun, start)


def _runs(text: bytes, begun: int, start: bytes) -> Iterator[Line]:
    """Whole lines, of which the first began with `start`, `begun` bytes before the text."""
    letters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(letters == ord("\n")) + 1
    starts = np.concatenate([[0], ends[:-1]])
    widths, titles = ends - starts, letters[starts] == ord(">")
    if begun:
        widths[0] += begun
        titles[0] = start.startswith(b">")
    other = (widths[1:] != widths[:-1]) | titles[1:] | titles[:-1]
    firsts = np.concatenate([[0], np.flatnonzero(other) + 1, [len(ends)]])
    for first, last in pairwise(firsts.tolist()):
        line = text[starts[first] : ends[first]]
        width = int(widths[first])
        title = None
        if titles[first]:
            whole = start + line if begun and not first else line
            title = whole[1:].decode(errors="replace")
        yield Line(width - len(line) + len(line.rstrip()), width, title, last - first)


class Interval(NamedTuple):
    contig: str
    start: int  # from 0
    end: int  # exclusive
    name: str
    strand: str  # "+", "-" or "."
    line: int


def read_bed(path: str | Path, genome: Genome) -> Iterator[Interval]:
    """The intervals of a BED file, each of which is checked to lie in the genome."""
    path, count = Path(path), 0
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith(("#", "track", "browser")):
                continue
            where = f"{path}, line {number}"
            parts = line.rstrip("\n").split("\t" if "\t" in line else None)
            if len(parts) < 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
                raise ValueError(
                    f"{where}: BED has contig, start and end in its first three columns: got "
                    f"{line.strip()[:60]!r}."
                )
            contig, start, end = parts[0], int(parts[1]), int(parts[2])
            genome.check(contig, start, end, where)
            name = parts[3] if len(parts) > 3 else f"{contig}:{start}-{end}"
            strand = parts[5] if len(parts) > 5 else "."
            if strand not in ("+", "-", "."):
                raise ValueError(f"{where}: the strand must be +, - or .: got {strand!r}.")
            count += 1
            yield Interval(contig, start, end, name, strand, number)
    if not count:
        raise ValueError(f"{path} is empty: it holds no interval.")
