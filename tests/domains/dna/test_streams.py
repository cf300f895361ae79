"""Pieces and windows of a genome are what the whole record is, whichever way they are cut."""

import tempfile
from pathlib import Path

import pytest
from dna_files import bases, fasta, genbank, packed
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna import streams
from titans_domains.dna.reading import clean
from titans_domains.dna.streams import read_pieces, read_windows

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=3)


def contigs_of(lengths: list[int]) -> dict[str, str]:
    return {f"c{i}": bases(n, seed=i, letters="ACGTacgtNR") for i, n in enumerate(lengths)}


@given(LENGTHS, st.sampled_from([1, 7, 200]), st.integers(1, 100))
def test_pieces_join_to_the_records(lengths: list[int], width: int, size: int) -> None:
    contigs = contigs_of(lengths)
    joined = dict.fromkeys(contigs, "")
    soft: dict[str, list[bool]] = {name: [] for name in contigs}
    ambiguous = 0
    with tempfile.TemporaryDirectory() as folder:
        path = packed(Path(folder, "x.fa.gz"), fasta(contigs, width), "gzip")
        for piece in read_pieces(path, size):
            assert piece.start == len(joined[piece.contig])
            joined[piece.contig] += piece.sequence
            soft[piece.contig] += piece.soft_mask.tolist()
            ambiguous += piece.ambiguous
            assert piece.last == (len(joined[piece.contig]) == len(contigs[piece.contig]))
            assert len(piece.sequence) == size or (piece.last and 0 < len(piece.sequence) < size)
    assert joined == {name: clean(s, "x").sequence for name, s in contigs.items()}
    assert soft == {name: [c.islower() for c in s] for name, s in contigs.items()}
    assert ambiguous == sum(s.count("R") for s in contigs.values())


@given(LENGTHS, st.integers(1, 40), st.data())
def test_windows_stand_where_they_say_and_cover_everything(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(1, size))
    contigs = {name: clean(s, "x").sequence for name, s in contigs_of(lengths).items()}
    starts: dict[str, list[int]] = {name: [] for name in contigs}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # Small pieces, so that windows reach over them.
        patch.setattr(streams, "PIECE", 11)
        path = packed(Path(folder, "x.fa"), fasta(contigs, 8), "plain")
        for window in read_windows(path, size, step):
            end = window.start + len(window.sequence)
            assert window.sequence == contigs[window.contig][window.start : end]
            assert len(window.sequence) == min(size, len(contigs[window.contig]))
            starts[window.contig].append(window.start)
    for name, found in starts.items():
        last = len(contigs[name]) - size
        regular = list(range(0, last + 1, step)) or [0]
        assert found == (regular if regular[-1] >= last else [*regular, last])


def test_a_window_counts_the_ambiguous_bases_once(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.fa", ">a\nARGT\nACRT\nAY\n>b\nWA\n", "plain")
    windows = list(read_windows(path, 4, 2))
    assert sum(window.ambiguous for window in windows) == 4


def test_genbank_is_read_as_fasta_is(tmp_path: Path) -> None:
    contigs = {"ONE": bases(500), "TWO": bases(61, seed=1)}
    path = packed(tmp_path / "x.gbk.gz", genbank(*contigs.items()), "gzip")
    joined: dict[str, str] = {}
    for piece in read_pieces(path, 50):
        joined[piece.contig] = joined.get(piece.contig, "") + piece.sequence
        # Its sequences are always in lower case.
        assert not piece.soft_mask.any()
    assert joined == {f"{name}.1": sequence for name, sequence in contigs.items()}


def test_a_line_without_an_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 100)
    path = packed(tmp_path / "x.fa", f">{'long title ' * 50}\n{bases(5000)}", "plain")
    asked = []

    class Spy(streams.Lines):
        def readline(self, most: int = -1) -> str:
            asked.append(most)
            return super().readline(most)

    monkeypatch.setattr("titans_domains.dna.reading.Lines", Spy)
    pieces = list(read_pieces(path, 80))
    assert "".join(piece.sequence for piece in pieces) == bases(5000)
    assert {piece.contig for piece in pieces} == {"long"}
    assert min(asked) > 0


REFUSED = {
    "empty": ("", "x is empty"),
    "reads": ("@a\nAC\n+\nII\n", "x holds reads (FASTQ)"),
    "no sequence": (">a\nACGT\n>b\n>c\nA\n", "x, line 3, record 'b' has no sequence"),
    "no sequence at the end": (">a\nACGT\n>b\n", "x, line 3, record 'b' has no sequence"),
    "protein": (">a\nACGT\n>b\nACGT\nACGTMEL\n", "x, line 3, record 'b', position 10: 'E'"),
    "gap": (">a\n" + "ACGT" * 30 + "\nA-C\n", "x, line 1, record 'a', position 122: '-'"),
    "GenBank cut short": (genbank(("A", "ACGT" * 99))[:-40], "record 'A.1' is cut short"),
    "GenBank of another length": (
        genbank(("A", "ACGT" * 5)).replace("20 bp", "21 bp"), "must have 21 bases: it has 20",
    ),
    "GenBank without a length": (
        "LOCUS       A\nORIGIN\n        1 acgt\n//\n", "x, line 1: LOCUS must be followed by a name and",
    ),
    "a protein of IUPAC codes": (
        ">a\nACGT\n>b\nMKVSHR\n", "x, line 3, record 'b': 6 of 6 letters are ambiguous",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_genome_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "x").write_text(content)
    with pytest.raises(ValueError, match="x") as error:
        list(read_pieces(tmp_path / "x", 16))
    assert sentence in str(error.value)


@pytest.mark.parametrize(("size", "step"), [(0, None), (4, 0), (4, 5)])
def test_windows_without_a_size_or_with_gaps_are_refused(
    tmp_path: Path, size: int, step: int | None
) -> None:
    path = packed(tmp_path / "x.fa", ">a\nACGT\n", "plain")
    with pytest.raises(ValueError, match="A window must have at least 1 base"):
        list(read_windows(path, size, step))
