"""Sequence files become records with their lines, and clean sequences; what is none is refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from dna_files import bases, genbank, packed
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna.reading import (
    BGZF_END,
    clean,
    compression,
    read_records,
    reverse_complement,
)

FASTA = "\n>one first of all\nACGT\nacgu\n\n>two\nRYN\n"
FASTQ = "@one first\nACGT\n+\nIIII\n@two\nAC\nGT\n+\n@@\n@@\n"


@pytest.mark.parametrize("how", ["plain", "gzip", "bgzip"])
def test_every_format_gives_records_with_their_lines(tmp_path: Path, how: str) -> None:
    text = genbank(("ONE", "ACGT" * 30), ("TWO", "TTTAAA"))
    second = text.splitlines().index(next(x for x in text.splitlines() if "TWO" in x)) + 1
    wanted = {
        FASTA: [("one", "ACGTacgu", 2), ("two", "RYN", 6)],
        FASTQ: [("one", "ACGT", 1), ("two", "ACGT", 5)],
        text: [("ONE.1", "ACGT" * 30, 1), ("TWO.1", "TTTAAA", second)],
    }
    for content, records in wanted.items():
        path = packed(tmp_path / "file", content, how)
        assert compression(path) == (None if how == "plain" else how)
        found = [(r.name, r.sequence, r.line) for r in read_records(path)]
        assert found == records


def test_windows_line_ends_and_a_byte_order_mark_are_no_letters(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(b"\xef\xbb\xbf" + FASTA.strip().replace("\n", "\r\n").encode())
    assert [r.sequence for r in read_records(path)] == ["ACGTacgu", "RYN"]


def test_records_come_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">one\nACGT\n>two\n>three\nA\n")
    records = read_records(path)
    assert next(records).name == "one"
    with pytest.raises(ValueError, match="x.fa, line 3, record 'two' has no sequence"):
        next(records)


def test_progress_tells_the_bytes_that_were_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.fa.gz", ">a\n" + "ACGT" * 9000 + "\n>b\nA\n", "gzip")
    seen: list[int] = []
    assert len(list(read_records(path, progress=seen.append))) == 2
    assert seen[-1] == path.stat().st_size


WHOLE = gzip.compress(f">a\n{bases(5000)}\n".encode())
REFUSED = {
    "empty": (b"", "x is empty"),
    "blank": (b" \n\n", "x is empty"),
    "text": (b"\n\nsome text\n", "x, line 3: a FASTA, FASTQ or GenBank file begins with"),
    "zip": (b"PK\3\4" + bytes(40), "begins with '>', '@' or 'LOCUS': got"),
    "header alone": (b">one\n", "x, line 1, record 'one' has no sequence"),
    "header at the end": (b">one\nAC\n>two words\n\n", "x, line 3, record 'two' has no sequence"),
    "FASTQ without a sequence": (b"@one\n\n+\n\n", "x, line 1, record 'one' has no sequence"),
    "FASTQ cut short": (b"@one\nACGT\n+\nII", "x, line 4: Lengths of sequence and quality"),
    "FASTQ without qualities": (b"@one\nACGT\n", "x, line 2: End of file without quality"),
    "truncated gzip": (gzip.compress(FASTA.encode() * 50)[:-12], "x is cut short or damaged"),
    "gzip of nothing": (gzip.compress(b""), "x is empty"),
    "damaged gzip": (WHOLE[:200] + bytes(9) + WHOLE[209:], "x is cut short or damaged"),
    "another checksum": (WHOLE[:-8] + bytes(4) + WHOLE[-4:], "x is cut short or damaged"),
    "GenBank cut short": (genbank(("A", "ACGT" * 99)).encode()[:-60], "x, line "),
    "GenBank of another length": (
        genbank(("A", "ACGT" * 5)).replace("20 bp", "21 bp").encode(),
        "Expected sequence length 21, found 20",
    ),
    "GenBank without a sequence": (
        b"LOCUS       A    20 bp    DNA    linear   BCT 01-JAN-1980\nCONTIG      join(B:1..20)\n//\n",
        "x, line 1, record ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_sequence_file_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x") as error:
        list(read_records(path))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bgzip_file_cut_between_blocks_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "x", ">a\n" + "ACGT" * 40000 + "\n", "bgzip")
    whole = path.read_bytes()
    assert whole.endswith(BGZF_END)
    path.write_bytes(whole[: -len(BGZF_END)])
    with pytest.raises(ValueError, match="x is cut short: it lacks the block that ends"):
        list(read_records(path))


def test_missing_files_and_folders_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file '.*missing.fa'"):
        list(read_records(tmp_path / "missing.fa"))
    with pytest.raises(IsADirectoryError, match="is a folder"):
        list(read_records(tmp_path))


CODES = "RYSWKMBDHV"


@given(st.text(alphabet="ACGTUN" + CODES + "acgtun" + CODES.lower(), max_size=60))
def test_cleaning_maps_every_nucleotide_code(sequence: str) -> None:
    done = clean(sequence, "x", soft_mask=True)
    assert len(done.sequence) == len(sequence)
    for before, after in zip(sequence.upper(), done.sequence, strict=True):
        assert after == {"U": "T"}.get(before, "N" if before in CODES else before)
    assert done.ambiguous == {c: n for c in CODES if (n := sequence.upper().count(c))}
    assert done.soft_mask is not None
    assert done.soft_mask.tolist() == [letter.islower() for letter in sequence]
    again = clean(done.sequence, "x")
    assert (again.sequence, again.ambiguous.total(), again.soft_mask) == (done.sequence, 0, None)


@given(
    st.text(alphabet="ACGTN", max_size=20),
    st.characters(codec="utf-8").filter(lambda c: c.upper() not in "ACGTUN" + CODES),
    st.integers(0, 10**6),
)
def test_any_other_letter_is_refused_with_its_place(before: str, odd: str, offset: int) -> None:
    with pytest.raises(ValueError, match="is no base") as error:
        clean(before + odd + "ACGT", "file, record 'r'", offset=offset)
    place = f"file, record 'r', position {offset + len(before) + 1}: {odd!r} is no base"
    assert str(error.value).startswith(place)


@pytest.mark.parametrize(
    ("letter", "advice"),
    [("-", "it is a gap"), ("7", "take numbers"), (" ", "take numbers"), ("E", "not a protein"),
     ("*", "not a protein"), ("?", "give nucleotides in IUPAC codes")],
)  # fmt: skip
def test_the_refusal_says_what_to_do(letter: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        clean(f"AC{letter}", "x")


def test_a_record_of_ambiguous_letters_is_taken_for_a_protein() -> None:
    assert clean("ACRYNN", "x", whole=True).ambiguous.total() == 2
    assert clean("RYK", "x").sequence == "NNN"
    with pytest.raises(ValueError, match="x: 3 of 5 letters are ambiguous .* as in a protein"):
        clean("ACRYK", "x", whole=True)


@given(st.text(alphabet="ACGTN", max_size=50))
def test_the_other_strand_is_biopythons(sequence: str) -> None:
    assert reverse_complement(sequence) == str(Seq(sequence).reverse_complement())
    assert reverse_complement(reverse_complement(sequence)) == sequence


def test_records_are_biopythons(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = [
        SeqRecord(Seq("".join(random.choice(list("ACGTN"), n))), id=f"r{n}", description="")
        for n in (1, 59, 60, 61, 500)
    ]
    SeqIO.write(records, tmp_path / "x.fa", "fasta")
    found = [(r.name, r.sequence) for r in read_records(tmp_path / "x.fa")]
    assert found == [(r.id, str(r.seq)) for r in records]
