"""Sequences from FASTA, FASTQ and GenBank files (plain, gzip or bgzip), streamed and cleaned."""

import gzip
import io
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np
from jaxtyping import Bool

AMBIGUOUS = "RYSWKMBDHV"
"""IUPAC codes for one of several bases; they become N."""

_KNOWN = f"ACGTUN{AMBIGUOUS}acgtun{AMBIGUOUS.lower()}".encode()
_LETTERS = bytes.maketrans(_KNOWN, (b"ACGTTN" + b"N" * len(AMBIGUOUS)) * 2)
_COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
STDIN = Path("-")
PEEK = 4096
PIECE = 65536
"""Bases of a genome that are held at a time."""
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class Record(NamedTuple):
    """A sequence as it stands in its file; `clean` makes it one that models read."""

    name: str
    sequence: str
    path: Path
    line: int  # of the record's first line, counted from 1

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}, record {self.name!r}"


class Cleaned(NamedTuple):
    sequence: str  # of A, C, G, T and N
    ambiguous: Counter[str]  # how many of each IUPAC code, upper case, became N
    soft_mask: Bool[np.ndarray, " T"] | None  # True on lower case; None where not asked for


def clean(
    sequence: str, name: str, *, soft_mask: bool = False, offset: int = 0, whole: bool = False
) -> Cleaned:
    """The sequence in A, C, G, T and N: upper case, U as T, IUPAC codes as N.

    ValueError for any other letter, which says by `name` whose it is, and where: counted from 1, after
    the `offset` bases that stand before this piece. Of a `whole` record at least half of the letters must
    be bases or N: short proteins are made of IUPAC codes too.
    """
    letters = sequence.encode("ascii", "replace")
    if odd := letters.translate(None, _KNOWN):
        at = letters.index(odd[:1])
        raise ValueError(
            f"{name}, position {offset + at + 1}: {sequence[at]!r} is no base: {_advice(sequence[at])}."
        )
    upper = letters.upper()
    ambiguous = Counter({c: n for c in AMBIGUOUS if (n := upper.count(c.encode()))})
    if whole and 2 * ambiguous.total() > len(letters):
        raise ValueError(
            f"{name}: {ambiguous.total():,} of {len(letters):,} letters are ambiguous (IUPAC codes other "
            "than N), as in a protein: give nucleotides."
        )
    soft = np.frombuffer(letters, np.uint8) >= ord("a") if soft_mask else None
    return Cleaned(letters.translate(_LETTERS).decode(), ambiguous, soft)


def ambiguous_line(count: int) -> str:
    """What is to be said of IUPAC codes."""
    what = "base (IUPAC code) was" if count == 1 else "bases (IUPAC codes) were"
    return f"{count:,} ambiguous {what} read as N"


def _advice(letter: str) -> str:
    if letter in "-.~":
        return "it is a gap, so take the gaps out or give sequences that are not aligned"
    if letter.isdigit() or letter.isspace():
        return "take numbers and blanks out of the sequence"
    if letter.isalpha() or letter == "*":
        return "give nucleotides in IUPAC codes, not a protein"
    return "give nucleotides in IUPAC codes"


def reverse_complement(sequence: str) -> str:
    """The other strand of a clean sequence."""
    return sequence.translate(_COMPLEMENT)[::-1]


def read_records(
    path: str | Path, *, progress: Callable[[int], None] = lambda position: None
) -> Iterator[Record]:
    """The records of a file, one at a time; its format is told from its content.

    `progress` is told how many bytes of the file were read, as it lies on the disk.
    ValueError for what is no such file, is cut short, or holds a record without a sequence.
    """
    path = Path(path)
    with open_lines(path) as lines:
        start = first_line(lines, path)
        parse = {">": _fasta, "@": _fastq}.get(start[0], _genbank)
        for title, sequence, line in parse(lines, path):
            record = Record(name_of(title, line), sequence, path, line)
            if not sequence:
                raise ValueError(f"{record.where} {NO_SEQUENCE}")
            if lines.raw.seekable():
                progress(lines.raw.tell())
            yield record


NO_SEQUENCE = "has no sequence: complete it or take it out."


def name_of(title: str, line: int) -> str:
    """The first word of a record's title, or one made of its line."""
    return (title.split(maxsplit=1) or [f"unnamed_{line}"])[0]


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A file's text, plain or compressed, `-` for standard input; ValueError where it is cut short."""
    with open_lines(path) as lines:
        yield lines.file


@contextmanager
def open_lines(path: Path) -> Iterator["Lines"]:
    stdin: Any = sys.stdin.buffer
    with stdin if path == STDIN else _existing(path).open("rb") as raw:
        kind = _kind(raw.peek(16))
        if kind == "bgzip" and raw.seekable():
            _check_end(raw, path)
        inner: Any = gzip.GzipFile(fileobj=raw) if kind else raw
        with unpacking(path), io.TextIOWrapper(inner, "utf-8-sig", errors="replace") as text:
            yield Lines(text, raw)


@contextmanager
def unpacking(path: Path, *others: type[Exception]) -> Iterator[None]:
    """ValueError where a compressed file is cut short or damaged, as the `others` say too."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, *others) as error:
        raise ValueError(f"{path} is cut short or damaged: {str(error).rstrip('.')}.") from None


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return path


def compression(path: Path) -> str | None:
    """`gzip`, `bgzip` (its blocks can be read singly) or None, told from the first bytes."""
    with _existing(path).open("rb") as file:
        return _kind(file.peek(16))


def _kind(start: bytes) -> str | None:
    if start[:2] != b"\x1f\x8b":
        return None
    return "bgzip" if len(start) >= 16 and start[3] & 4 and start[12:14] == b"BC" else "gzip"


def _check_end(raw: BinaryIO, path: Path) -> None:
    # A file cut between two blocks ends like a complete one but for this mark.
    raw.seek(-min(len(BGZF_END), raw.seek(0, 2)), 2)
    if raw.read() != BGZF_END:
        raise ValueError(f"{path} is cut short: it lacks the block that ends a bgzip file.")
    raw.seek(0)


class Lines:
    """A text file for Biopython's parsers, with the number of the line that was given or peeked at last."""

    def __init__(self, file: TextIO, raw: BinaryIO) -> None:
        self.file, self.raw, self.number = file, raw, 0
        self.kept = ""
        self.fresh = True  # what follows begins a line

    def peek(self) -> str:
        """The start of the next line that is not blank, and stays the next; empty at the end."""
        if not self.kept:
            line = self.readline(PEEK)
            while line.isspace():
                line = self.readline(PEEK)
            self.kept = line
        return self.kept

    def readline(self, most: int = -1) -> str:
        """The next line, or `most` letters of it."""
        line, self.kept = self.kept, ""
        if line and (line.endswith("\n") or most > 0):
            return line
        self.number += self.fresh
        line += self.file.readline(most)
        self.number -= self.fresh and not line
        self.fresh = line.endswith("\n")
        return line

    def __iter__(self) -> Iterator[str]:
        while line := self.readline():
            yield line

    def read(self, size: int) -> str:
        """Nothing: Biopython reads no letter, to see whether a file holds text or bytes."""
        assert size == 0
        return ""


def first_line(lines: Lines, path: Path) -> str:
    """The first line that is not blank, unread; ValueError where it begins none of the formats."""
    first = lines.peek()
    if not first:
        raise ValueError(f"{path} is empty: give a FASTA, FASTQ or GenBank file.")
    if not first.startswith((">", "@", "LOCUS ")):
        raise ValueError(
            f"{path}, line {lines.number}: a FASTA, FASTQ or GenBank file begins with '>', '@' or "
            f"'LOCUS': got {first.strip()[:30]!r}."
        )
    return first


def _fasta(lines: Lines, path: Path) -> Iterator[tuple[str, str, int]]:
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    line = lines.number
    for title, sequence in SimpleFastaParser(lines):
        yield title, sequence, line
        # The parser has read the next record's title.
        line = lines.number


def _fastq(lines: Lines, path: Path) -> Iterator[tuple[str, str, int]]:
    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    line = lines.number
    try:
        for title, sequence, _ in FastqGeneralIterator(lines):  # type: ignore[arg-type]
            yield title, sequence, line
            line = lines.number
    except ValueError as error:
        raise ValueError(f"{path}, line {lines.number}: {str(error).rstrip('.')}.") from None


def _genbank(lines: Lines, path: Path) -> Iterator[tuple[str, str, int]]:
    from Bio import BiopythonParserWarning
    from Bio.GenBank.Scanner import GenBankScanner
    from Bio.Seq import UndefinedSequenceError

    records = GenBankScanner().parse_records(lines, do_features=False)
    while lines.peek():
        line = lines.number
        try:
            with warnings.catch_warnings():
                # Headers that are oddly formatted do no harm; a sequence of another length does.
                warnings.simplefilter("ignore", BiopythonParserWarning)
                warnings.filterwarnings("error", "Expected sequence length")
                record = next(records, None)
            if record is None:
                return
            name, sequence = record.id or "", str(record.seq)
        except UndefinedSequenceError:
            name, sequence = getattr(record, "id", ""), ""
        except (ValueError, Warning) as error:
            raise ValueError(f"{path}, line {lines.number}: {str(error).rstrip('.')}.") from None
        yield name, sequence, line
