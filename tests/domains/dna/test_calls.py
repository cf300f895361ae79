"""Predictions keep the order and the places of what was read, in every format."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from dna_files import bases, fasta, packed
from dna_models import ByLetter, ByPosition

from titans_domains.dna import calls
from titans_domains.dna.calls import (
    Blank,
    Item,
    batches,
    bed_items,
    call,
    checked,
    header_of,
    record_items,
    window_items,
    write_call,
)
from titans_domains.dna.embedding import save_embeddings
from titans_domains.dna.genome import Genome, read_bed
from titans_domains.dna.output import Rows, draft, rows


def item(sequence: str, name: str = "r", start: int = 0, strand: str = ".") -> Item:
    return Item(name, start, start + len(sequence), name, strand, sequence, name, 0)


def test_batches_keep_the_order_and_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_BASES", 100)
    monkeypatch.setattr(calls, "MOST_ROWS", 7)
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist() + [500, 1] + [1] * 20
    found = list(batches(lengths, lambda n: n))
    assert [n for batch in found for n in batch] == lengths
    for batch in found:
        assert len(batch) == 1 or (max(batch) * len(batch) <= 100 and len(batch) <= 7)
    # No two neighbours would have fitted together.
    for a, b in itertools.pairwise(found):
        assert max([*a, b[0]]) * (len(a) + 1) > 100 or len(a) == 7
    assert list(batches([], len)) == []


def test_a_stream_is_read_no_further_than_its_batch() -> None:
    read: list[int] = []

    def endless() -> object:
        while True:
            read.append(1)
            yield 2**14

    stream = batches(endless(), lambda n: n)  # type: ignore[arg-type, type-var]
    next(stream)
    assert len(read) == 5


def test_records_windows_and_intervals_are_items(tmp_path: Path) -> None:
    contigs = {"one": "ACGTRACGTT", "two": "acg"}
    path = packed(tmp_path / "x.fa", fasta(contigs), "plain")
    whole = list(record_items(path))
    assert [(i.contig, i.start, i.end, i.name, i.sequence, i.ambiguous) for i in whole] == [
        ("one", 0, 10, "one", "ACGTNACGTT", 1), ("two", 0, 3, "two", "ACG", 0),
    ]  # fmt: skip
    cut = list(window_items(path, 4, 3))
    assert [(i.name, i.start, i.end, i.sequence) for i in cut] == [
        ("one:0-4", 0, 4, "ACGT"), ("one:3-7", 3, 7, "TNAC"), ("one:6-10", 6, 10, "CGTT"),
        ("two:0-3", 0, 3, "ACG"),
    ]  # fmt: skip
    bed = packed(tmp_path / "x.bed", "one\t0\t5\tx\t0\t-\none\t1\t3\n", "plain")
    genome = Genome(path)
    there = list(bed_items(genome, bed, read_bed(bed, genome)))
    assert [(i.name, i.strand, i.sequence, i.ambiguous) for i in there] == [
        ("x", "-", "NACGT", 1), ("one:1-3", ".", "CG", 0),
    ]  # fmt: skip


def test_what_is_too_short_for_the_tokens_is_named() -> None:
    items = [item("ACGTACG", "a"), item("AC", "x.fa, line 3, record 'b'")]
    kept = checked(items, 6)
    assert next(kept) == items[0]
    with pytest.raises(
        ValueError, match="x.fa, line 3, record 'b' has 2 bases, and the model's to"
    ):
        next(kept)


def test_what_is_too_long_to_be_read_at_once_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LONGEST", 8)
    kept = checked([item("ACGTACGT"), item("ACGTACGTA", "x.fa, line 3, record 'chr1'")], 1)
    assert next(kept).end == 8
    with pytest.raises(
        ValueError, match="record 'chr1' has 9 bases, and at most 8 are read as a whol"
    ):
        next(kept)


def written(kind: str, *, whole: bool = True, as_json: bool = False) -> list[str]:
    file = io.StringIO()
    table = Rows(file, as_json, header_of(kind, ["no", "yes"], whole=whole))
    items = [item("TTC", "chr 1;x", 5, "-"), item("ACG", "b")]
    for found in call(ByPosition(), items):
        write_call(table, kind, found, ["no", "yes"], whole=whole)
    return file.getvalue().splitlines()


def test_a_table_has_all_chances() -> None:
    assert written("tsv") == [
        "name\tlength\tprediction\tp_no\tp_yes",
        "chr 1;x\t8\tno\t0.558\t0.442",
        "b\t3\tno\t0.877\t0.123",
    ]
    assert written("tsv", whole=False)[:2] == [
        "contig\tstart\tend\tname\tstrand\tprediction\tp_no\tp_yes",
        "chr 1;x\t5\t8\tchr 1;x\t-\tno\t0.558\t0.442",
    ]
    first, _ = (json.loads(line) for line in written("tsv", as_json=True))
    assert first == {
        "name": "chr 1;x", "length": 8, "prediction": "no", "p_no": pytest.approx(0.558),
        "p_yes": pytest.approx(0.442),
    }  # fmt: skip


def test_bed_counts_from_0_and_gff3_from_1() -> None:
    assert written("bed") == ["chr 1;x\t5\t8\tno\t558\t-", "b\t0\t3\tno\t877\t."]
    assert written("gff3") == [
        "##gff-version 3",
        "chr%201%3Bx\ttitans\tregion\t6\t8\t0.558\t-\t.\tName=chr 1%3Bx;class=no;p_no=0.558;p_yes=0.442",
        "b\ttitans\tregion\t1\t3\t0.877\t.\t.\tName=b;class=no;p_no=0.877;p_yes=0.123",
    ]


def test_what_holds_no_known_base_is_left_out_and_counted() -> None:
    blank = Blank()
    assert [i.sequence for i in blank.watch([item("NNA"), item("NN"), item("C"), item("N")])] == [
        "NNA",
        "C",
    ]
    assert blank.count == 2


def test_with_several_labels_all_likely_ones_are_predicted() -> None:
    found = call(ByLetter(), [item("AAC"), item("ACAC"), item("GT")])
    assert [c.prediction for c in found] == ["a", "a,c", "none"]


def test_embeddings_keep_names_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_ROWS", 3)
    items = [item(bases(n, seed=n), f"r{n}") for n in (5, 40, 2, 9)]
    save_embeddings(ByPosition(), items, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert file["names"].tolist() == ["r5", "r40", "r2", "r9"]
        assert file["vectors"].dtype == np.float32
        assert file["vectors"].tolist() == [[len(i.sequence), i.sequence.count("G")] for i in items]
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"

    def fill(fail: bool) -> None:
        with rows(path, io.StringIO(), "rows") as table:
            table.row({"a": 1, "b": 0.25})
            if fail:
                raise ValueError("no more")

    with pytest.raises(ValueError, match="^no more$"):
        fill(True)
    assert list(tmp_path.iterdir()) == []
    fill(False)
    assert path.read_text() == "a\tb\n1\t0.25\n"
    with pytest.raises(ValueError, match="no more"):
        fill(True)
    assert path.read_text() == "a\tb\n1\t0.25\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), draft(path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_rows_has_its_header(tmp_path: Path) -> None:
    for as_json, text in ((False, "a\tb\n"), (True, "")):
        stream = io.StringIO()
        for path in (tmp_path / "x.tsv", None):
            with rows(path, stream, "rows", as_json=as_json, header="a\tb"):
                pass
        assert stream.getvalue() == (tmp_path / "x.tsv").read_text() == text


def test_of_a_stream_an_error_says_what_stands() -> None:
    file = io.StringIO()

    def fill(count: int) -> None:
        with rows(None, file, "sequences") as table:
            for number in range(count):
                table.row({"a": number})
            raise ValueError("No more.")

    with pytest.raises(ValueError, match="^No more.$"):
        fill(0)
    assert file.getvalue() == ""
    with pytest.raises(ValueError, match=r"^No more. The 2 sequences written before it stand.$"):
        fill(2)
    assert file.getvalue() == "a\n0\n1\n"
