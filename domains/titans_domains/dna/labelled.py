"""Labelled sequences: CSV and TSV, UCI, folders of classes (GenomicBenchmarks), Hugging Face data sets."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from titans_domains.dna.genome import Genome
from titans_domains.dna.reading import (
    NO_SEQUENCE,
    clean,
    open_text,
    read_records,
    reverse_complement,
)
from titans_domains.hub import HUB, hub_rows, hub_splits

EMBEDDED = "embedded"
SEQUENCE = ("sequence", "seq", "dna")
LABEL = ("label", "labels", "class", "target")
NAME = ("name", "id")
GROUP = ("group", "chromosome", "chrom", "chr", "region")
MISSING = ("", "nan", "na", "n/a", "<na>", "null")
"""What programs write, in upper or lower case, where there is no label."""
SPLITS = {"train": "train", "dev": "valid", "valid": "valid", "validation": "valid", "val": "valid",
          "test": "test"}  # fmt: skip
TABLES = (".csv", ".tsv", ".tab", ".data", ".csv.gz", ".tsv.gz")
CLASS = "a folder of .txt files, a FASTA file or a table of places"
FASTA = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz")


class Labelled(NamedTuple):
    """Clean sequences with their labels: numbers where all are whole numbers of 64 bits, else words.

    With several columns `label_...` (multi-label) labels are 0 or 1, [n, columns], and `columns` has
    their names.
    """

    sequences: list[str]
    labels: np.ndarray
    names: list[str]
    groups: np.ndarray | None = None  # what a split must not tear apart, such as chromosomes
    columns: list[str] | None = None
    ambiguous: int = 0  # IUPAC codes that became N

    def take(self, chosen: np.ndarray) -> "Labelled":
        """The rows of these numbers."""
        groups = None if self.groups is None else self.groups[chosen]
        return self._replace(
            sequences=[self.sequences[i] for i in chosen],
            labels=self.labels[chosen],
            names=[self.names[i] for i in chosen],
            groups=groups,
        )

    def by_columns(self, names: list[str]) -> "Labelled":
        """The same with its columns in the order of those that a model has learned."""
        columns = self.columns or []
        if odd := sorted(set(columns) ^ set(names)):
            raise ValueError(
                f"The columns of labels must be those trained on, {', '.join(names)}: got "
                f"{', '.join(columns) or 'none'}; {odd[0]} is in one of them alone."
            )
        order = [columns.index(name) for name in names]
        return self._replace(labels=self.labels[:, order], columns=names)


class Row(NamedTuple):
    where: str
    name: str
    sequence: str  # as it stands in the file
    label: str | dict[str, str]  # a table of columns for several labels
    group: str | None = None


def labelled(
    source: str | Path, split: str | None = None, *, genome: Genome | None = None
) -> Labelled:
    """The rows of one split, or of a source that has but one. See `labelled_splits`."""
    splits = labelled_splits(source, genome=genome)
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        raise ValueError(f"{source} has the splits {', '.join(splits)}: got {split!r}.")
    return splits[split]


def labelled_splits(source: str | Path, *, genome: Genome | None = None) -> dict[str, Labelled]:
    """The splits of a source by name: train, valid and test where it has them, else all.

    A file: CSV or TSV with the columns `sequence` and `label` (and `name`, `group`), or UCI's .data. A
    folder: train, dev and test as such files (GUE), or as folders of classes (GenomicBenchmarks), each
    class a folder of .txt files, a FASTA file, or a table of places in `genome`. hf:NAME: a Hugging
    Face data set with these columns. `embedded`: made promoters.
    """
    if str(source) == EMBEDDED:
        from titans_domains.dna.synthetic import embedded_splits

        return embedded_splits()
    if str(source).startswith(HUB):
        return _named(
            {
                s: _collect(_hub_rows(str(source), s), f"{source}, {s}")
                for s in hub_splits(str(source))
            }
        )
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}.")
    if path.is_file():
        return {"all": _collect(_table_rows(path), str(path))}
    found = {p: _stem(p) for p in sorted(path.iterdir()) if _stem(p) in SPLITS}
    if found:
        return _named(
            {
                stem: _collect(_table_rows(p) if p.is_file() else _class_rows(p, genome), str(p))
                for p, stem in found.items()
            }
        )
    return {"all": _collect(_class_rows(path, genome), str(path))}


def _named(splits: dict[str, Labelled]) -> dict[str, Labelled]:
    order = ["train", "valid", "test"]
    named = {SPLITS.get(name, name): rows for name, rows in splits.items()}
    return {k: named[k] for k in sorted(named, key=lambda k: order.index(k) if k in order else 9)}


def _stem(path: Path) -> str:
    """A name without its ending, `train` of train.csv.gz say."""
    return path.name.split(".")[0] if path.is_dir() or path.name.endswith(TABLES + FASTA) else ""


def _collect(rows: Iterable[Row], source: str) -> Labelled:
    sequences, names, labels, groups = [], [], [], []
    ambiguous = 0
    for row in rows:
        if not row.sequence.strip():
            raise ValueError(f"{row.where} {NO_SEQUENCE}")
        done = clean(row.sequence.strip(), row.where, whole=True)
        sequences.append(done.sequence)
        ambiguous += done.ambiguous.total()
        names.append(row.name)
        labels.append(_label(row))
        groups.append(row.group)
    if not sequences:
        raise ValueError(f"{source} is empty: it has no sequence.")
    columns = list(row.label) if isinstance(row.label, dict) else None
    kept = None if None in groups else np.array(groups)
    return Labelled(sequences, _labels(labels), names, kept, columns, ambiguous)


def _label(row: Row) -> str | list[str]:
    if isinstance(row.label, str):
        if row.label.strip().lower() in MISSING:
            raise ValueError(
                f"{row.where} has no label: got {row.label!r}, so complete it or take it out."
            )
        return row.label.strip()
    for column, value in row.label.items():
        if value.strip() not in ("0", "1"):
            raise ValueError(f"{row.where}: {column} must be 0 or 1: got {value!r}.")
    return [value.strip() for value in row.label.values()]


def _labels(labels: list[Any]) -> np.ndarray:
    found = np.array(labels)
    whole = all(
        label.removeprefix("-").isdecimal() and abs(int(label)) < 2**63 for label in found.flat
    )
    return found.astype(np.int64) if whole else found


def _table_rows(path: Path) -> Iterator[Row]:
    if path.name.endswith(FASTA):
        raise ValueError(
            f"{path} has no labels: give a table with the columns sequence and label, or a folder with "
            "a FASTA file for each class."
        )
    for where, line, row in _table(path, uci=path.suffix == ".data"):
        sequence, label = _find(row, SEQUENCE), _find(row, LABEL)
        several = {k: v for k, v in row.items() if k.startswith("label_")}
        if sequence is None or (label is None and not several):
            raise ValueError(
                f"{path} must have the columns sequence and label in its first line: it has "
                f"{', '.join(map(repr, row))}."
                + (
                    " Places in a genome stand in a folder, a table for each class."
                    if {"start", "end"} <= row.keys()
                    else ""
                )
            )
        name = _find(row, NAME) or f"{path.name}:{line}"
        yield Row(where, name, sequence, label if label is not None else several, _find(row, GROUP))


def _table(path: Path, uci: bool = False) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Place, line and cells by column of each row; UCI's files have three columns and no header."""
    most = csv.field_size_limit(2**31 - 1)
    try:
        with open_text(path) as file:
            header = ["class", "name", "sequence"] if uci else _header(file.readline(), path)
            between = "," if uci else header.pop()
            rows = csv.reader(file, delimiter=between)
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                line = rows.line_num + (not uci)
                where = f"{path}, line {line}"
                if len(row) != len(header):
                    raise ValueError(f"{where} must have {len(header)} columns: it has {len(row)}.")
                yield where, line, {k: v.strip() for k, v in zip(header, row, strict=True)}
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}.") from None
    finally:
        csv.field_size_limit(most)


def _header(line: str, path: Path) -> list[str]:
    """The names of the columns, lower case, and behind them what stands between cells."""
    if not line.strip():
        raise ValueError(f"{path} is empty: give a table with the columns sequence and label.")
    between = next((c for c in "\t,;" if c in line), ",")
    return [
        *(name.strip().lower() for name in next(csv.reader([line], delimiter=between))),
        between,
    ]


def _find(row: dict[str, str], names: Iterable[str]) -> str | None:
    return next((row[name] for name in names if name in row), None)


def _class_rows(folder: Path, genome: Genome | None) -> Iterator[Row]:
    """The sequences of a folder's classes, each named by its folder or file."""
    parts = [p for p in sorted(folder.iterdir()) if _stem(p)]
    if not parts:
        raise ValueError(
            f"{folder} holds neither train and test nor classes: give a folder with {CLASS} for each class."
        )
    for part in parts:
        empty = True
        for row in _part_rows(part, _stem(part), genome):
            yield row
            empty = False
        if empty:
            raise ValueError(
                f"The class {part} is empty: it has no sequence; fill it ({CLASS}) or take it out."
            )


def _part_rows(part: Path, label: str, genome: Genome | None) -> Iterator[Row]:
    if part.is_dir():
        for file in sorted(part.glob("*.txt")):
            yield Row(str(file), file.stem, file.read_text(), label)
    elif part.name.endswith(FASTA):
        for record in read_records(part):
            yield Row(record.where, record.name, record.sequence, label)
    else:
        yield from _place_rows(part, label, genome)


def _place_rows(path: Path, label: str, genome: Genome | None) -> Iterator[Row]:
    """GenomicBenchmarks' tables: id, region, start (from 0), end, strand."""
    if genome is None:
        raise ValueError(
            f"{path} holds places in a genome, not sequences: give its genome (--genome) too."
        )
    for where, _, row in _table(path):
        try:
            contig, start, end = row["region"], int(row["start"]), int(row["end"])
        except (KeyError, ValueError):
            raise ValueError(
                f"{where} must have a region, a start and an end: got {', '.join(row.values())}."
            ) from None
        # Its human and mouse chromosomes are Ensembl's, with `chr` put before them.
        there = contig if contig in genome.index else contig.removeprefix("chr")
        genome.check(there, start, end, where)
        sequence = genome.fetch(there, start, end)
        if row.get("strand") == "-":
            sequence = reverse_complement(sequence)
        yield Row(where, row.get("id", f"{contig}:{start}-{end}"), sequence, label, contig)


def _hub_rows(source: str, split: str) -> Iterator[Row]:
    for number, row in enumerate(hub_rows(source, split)):
        cells = {k.lower(): "" if v is None else str(v) for k, v in row.items()}
        where = f"{source}, {split}, row {number}"
        sequence, label = _find(cells, SEQUENCE), _find(cells, LABEL)
        if sequence is None or label is None:
            raise ValueError(
                f"{where} must have the columns sequence and label: it has {', '.join(cells)}."
            )
        yield Row(where, _find(cells, NAME) or str(number), sequence, label, _find(cells, GROUP))
