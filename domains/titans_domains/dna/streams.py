"""Genomes of any length as streams: pieces one after the other, and windows over them.

Nothing larger than a piece and a window is held, whichever way the file is compressed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from titans_domains.dna.reading import (
    NO_SEQUENCE,
    PIECE,
    Lines,
    clean,
    first_line,
    name_of,
    open_lines,
)


class Piece(NamedTuple):
    """Bases of a contig that follow on those of the piece before."""

    contig: str
    start: int  # of the first base, from 0
    sequence: str  # clean
    last: bool  # the contig ends here
    ambiguous: int  # IUPAC codes that became N
    soft_mask: Bool[np.ndarray, " T"]  # True on lower case


def read_pieces(
    path: str | Path, size: int = PIECE, *, progress: Callable[[int], None] = lambda position: None
) -> Iterator[Piece]:
    """The contigs of a FASTA or GenBank file in pieces of `size` bases, the last of each shorter.

    `progress` is told how many bytes of the file were read, as it lies on the disk.
    """
    path = Path(path)
    with open_lines(path) as lines:
        start = first_line(lines, path)[0]
        if start == "@":
            raise ValueError(f"{path} holds reads (FASTQ): a genome is FASTA or GenBank.")
        parts = _fasta_parts if start == ">" else _genbank_parts
        for piece in _pieces(parts(lines, path), path, size):
            if lines.raw.seekable():
                progress(lines.raw.tell())
            yield piece


def _pieces(parts: Iterator[tuple[str, int, str]], path: Path, size: int) -> Iterator[Piece]:
    contig, line, start = "", 0, 0
    held: list[str] = []
    count = 0

    def cut(length: int, last: bool) -> Piece:
        nonlocal held, count, start
        text = "".join(held)
        held, count = [text[length:]], count - length
        where = f"{path}, line {line}, record {contig!r}"
        if not text and not start:
            raise ValueError(f"{where} {NO_SEQUENCE}")
        whole = last and not start
        done = clean(text[:length], where, soft_mask=True, offset=start, whole=whole)
        assert done.soft_mask is not None
        piece = Piece(contig, start, done.sequence, last, done.ambiguous.total(), done.soft_mask)
        start += length
        return piece

    for name, number, text in parts:
        if number != line:
            if line:
                yield cut(count, True)
            contig, line, start, held, count = name, number, 0, [], 0
        held.append(text)
        count += len(text)
        # One base more than a piece, so that the last piece is known to be the last.
        while count > size:
            yield cut(size, False)
    yield cut(count, True)


def _fasta_parts(lines: Lines, path: Path) -> Iterator[tuple[str, int, str]]:
    name, line, fresh = "", 0, True
    while part := lines.readline(PIECE):
        if fresh and part.startswith(">"):
            name, line, title = name_of(part[1:], lines.number), lines.number, True
            yield name, line, ""
        elif fresh or not title:
            title = False
            yield name, line, part.rstrip().replace(" ", "")
        fresh = part.endswith("\n")


def _genbank_parts(lines: Lines, path: Path) -> Iterator[tuple[str, int, str]]:
    while lines.peek():
        line, name, length, count = lines.number, "", "", 0
        for text in lines:
            words = text.split()
            if text.startswith("LOCUS "):
                if len(words) < 3:
                    raise ValueError(
                        f"{path}, line {lines.number}: LOCUS must be followed by a name and a number of "
                        f"bases: got {text.strip()[:60]!r}."
                    )
                name, length = words[1], words[2]
            elif text.startswith("VERSION ") and len(words) > 1:
                name = words[1]
            if text.startswith(("ORIGIN", "//")):
                break
        yield name, line, ""
        where = f"{path}, line {line}, record {name!r}"
        while not text.startswith("//"):
            text = lines.readline()
            if not text:
                raise ValueError(f"{where} is cut short.")
            # Behind the number of its first base, and in lower case, which masks nothing here.
            part = "".join(text.split()[1:]).upper()
            count += len(part)
            yield name, line, part
        if length != str(count):
            raise ValueError(f"{where} must have {length} bases: it has {count}.")


class Window(NamedTuple):
    contig: str
    start: int  # from 0
    sequence: str
    ambiguous: int  # IUPAC codes that became N in the bases that no window before held


def read_windows(
    path: str | Path,
    size: int,
    step: int | None = None,
    *,
    progress: Callable[[int], None] = lambda position: None,
) -> Iterator[Window]:
    """Windows of `size` bases every `step` (default: `size`) over each contig of a file.

    One more window ends at the contig's end where the others do not reach it; a contig shorter than
    `size` is one window.
    """
    step = size if step is None else step
    if size < 1 or not 1 <= step <= size:
        raise ValueError(
            f"A window must have at least 1 base, and its step between 1 and its size: got {size} "
            f"and {step}."
        )
    held, start, at, ambiguous = "", 0, 0, 0
    for piece in read_pieces(path, max(PIECE, size), progress=progress):
        if not piece.start:
            held, start, at = "", 0, 0
        held += piece.sequence
        ambiguous += piece.ambiguous
        while at + size <= len(held):
            yield Window(piece.contig, start + at, held[at : at + size], ambiguous)
            at, ambiguous = at + step, 0
        if piece.last and (not start + at or at - step + size < len(held)):
            first = max(0, len(held) - size)
            yield Window(piece.contig, start + first, held[first:], ambiguous)
            ambiguous = 0
        # What lies before the next window is kept as far as the last one may reach back.
        keep = max(0, min(at, len(held) - size))
        held, start, at = held[keep:], start + keep, at - keep
