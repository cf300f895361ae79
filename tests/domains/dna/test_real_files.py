"""Files as biologists have them: their counts are those that were published with them."""

import os
from pathlib import Path

import numpy as np
import pytest

from titans_domains.dna.genome import Genome
from titans_domains.dna.labelled import labelled, labelled_splits
from titans_domains.dna.reading import clean, read_records
from titans_domains.dna.splits import duplicates, overlaps
from titans_domains.dna.streams import read_pieces


def data(name: str) -> Path:
    path = Path(os.environ.get("TITANS_DATA", "no folder"), "dna", name)
    if not path.exists():
        pytest.skip(f"TITANS_DATA names no folder with dna/{name}")
    return path


def test_e_coli_in_pieces_is_the_record_of_biopython() -> None:
    path = data("genomes/NC_000913.gbk.gz")
    (record,) = read_records(path)
    assert (record.name, record.line, len(record.sequence)) == ("NC_000913.3", 1, 4_641_652)
    whole = clean(record.sequence, record.where).sequence
    pieces = list(read_pieces(path))
    assert max(len(piece.sequence) for piece in pieces) == 65_536
    assert "".join(piece.sequence for piece in pieces) == whole


def test_phage_lambda_by_index() -> None:
    genome = Genome(data("genomes/lambda_virus.fa"))
    ((name, length),) = genome.lengths.items()
    assert (name, length) == ("gi|9626243|ref|NC_001416.1|", 48_502)
    whole = "".join(record.sequence for record in read_records(genome.path))
    for start, end in ((0, 12), (69, 71), (24_000, 25_000), (length - 12, length)):
        assert genome.fetch(name, start, end) == whole[start:end]
    # The single-stranded end by which its ends join.
    assert whole.startswith("GGGCGGCGACCT")


def test_splice_junctions_of_uci() -> None:
    rows = labelled(data("uci/splice.data"))
    names, counts = np.unique(rows.labels, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "EI": 767, "IE": 768, "N": 1655,
    }  # fmt: skip
    assert {len(sequence) for sequence in rows.sequences} == {60}
    assert duplicates(rows.sequences) == 185
    assert sum("N" in sequence for sequence in rows.sequences) == 15


def test_gue_has_duplicates_between_its_splits() -> None:
    splits = labelled_splits(data("gue/prom_prom_core_tata"))
    assert {name: len(rows.sequences) for name, rows in splits.items()} == {
        "train": 4904, "valid": 613, "test": 613,
    }  # fmt: skip
    found = overlaps({name: rows.sequences for name, rows in splits.items()})
    assert [(o.first, o.second, o.same) for o in found] == [
        ("train", "valid", 8), ("train", "test", 16), ("valid", "test", 2),
    ]  # fmt: skip
