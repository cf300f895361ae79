"""Any place of a genome is read from the disk alone; intervals that are not in it are refused."""

import os
import tempfile
from pathlib import Path

import pytest
from dna_files import bases, fasta, genbank, packed
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna import genome as module
from titans_domains.dna.genome import Contig, Genome, read_bed
from titans_domains.dna.reading import clean


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.sampled_from([1, 7, 60, 1000]),
    st.sampled_from(["plain", "bgzip"]),
    st.sampled_from(["\n", "\r\n"]),
    st.data(),
)
def test_every_place_is_that_of_the_record(
    lengths: list[int], width: int, how: str, end: str, data: st.DataObject
) -> None:
    contigs = {f"c{i}": bases(n, seed=i, letters="ACGTacgtRU") for i, n in enumerate(lengths)}
    name = data.draw(st.sampled_from(sorted(contigs)))
    first = data.draw(st.integers(0, len(contigs[name]) - 1))
    last = data.draw(st.integers(first + 1, len(contigs[name])))
    with tempfile.TemporaryDirectory() as folder:
        path = packed(Path(folder, "x.fa"), fasta(contigs, width).replace("\n", end), how)
        genome = Genome(path)
        assert genome.lengths == {k: len(s) for k, s in contigs.items()}
        found = genome.read(name, first, last, soft_mask=True)
    assert found.sequence == clean(contigs[name][first:last], "x").sequence
    assert found.soft_mask is not None
    assert found.soft_mask.tolist() == [c.islower() for c in contigs[name][first:last]]


def test_a_place_in_a_late_block_of_bgzip_is_reached(tmp_path: Path) -> None:
    # Blocks hold 64 KiB.
    contigs = {"a": bases(150_000), "b": bases(90_000, seed=1)}
    genome = Genome(packed(tmp_path / "x.fa.bgz", fasta(contigs), "bgzip"))
    assert genome.blocks is not None
    assert len(genome.blocks.raw) > 3
    for name, start in (("b", 89_990), ("a", 64_000), ("a", 0), ("b", 20)):
        assert genome.fetch(name, start, start + 10) == contigs[name][start : start + 10]
    assert genome.fetch("a", 0, 150_000) == contigs["a"]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("part", ["data", "header", "checksum"])
def test_a_damaged_late_block_of_bgzip_is_said(tmp_path: Path, part: str, *, indexed: bool) -> None:
    contigs = {"a": bases(150_000)}
    path = packed(tmp_path / "x.fa.bgz", fasta(contigs), "bgzip")
    genome = Genome(path)
    assert genome.blocks is not None
    second, third = genome.blocks.raw[1:3]
    at = {"data": second + 400, "header": second, "checksum": third - 8}[part]
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at : at + 4]) + whole[at + 4 :])
    if indexed:
        fai = tmp_path / "x.fa.bgz.fai"
        fai.write_text("\t".join(map(str, ("a", *genome.index["a"]))) + "\n")
        os.utime(fai, (path.stat().st_mtime + 5,) * 2)
    with pytest.raises(ValueError, match="x.fa.bgz is cut short or damaged: "):
        Genome(path)
    with pytest.raises(ValueError, match="x.fa.bgz is cut short or damaged: "):
        genome.fetch("a", 70_000, 70_010)


def test_an_index_of_samtools_is_taken_where_it_is_newer(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.fa", ">a\nACGTA\nCG\n>b\nTT\n", "plain")
    fai = tmp_path / "x.fa.fai"
    # Of the first record, as if the file held no other.
    fai.write_text("a\t7\t3\t5\t6\n")
    os.utime(fai, (path.stat().st_mtime + 5,) * 2)
    assert Genome(path).index == {"a": Contig(7, 3, 5, 6)}
    os.utime(fai, (path.stat().st_mtime - 5,) * 2)
    assert Genome(path).lengths == {"a": 7, "b": 2}
    os.utime(fai, (path.stat().st_mtime + 5,) * 2)
    fai.write_text("a\tseven\t3\t5\t6\n")
    with pytest.raises(ValueError, match="x.fa.fai, line 1 is no line of an index"):
        Genome(path)
    fai.write_text("a\t70\t3\t5\t6\n")
    with pytest.raises(ValueError, match="does not fit its index at a:0-70"):
        Genome(path).fetch("a", 0, 70)


REFUSED = {
    "empty": ("", "x.fa is empty"),
    "GenBank": (genbank(("A", "ACGT")), "x.fa must be a FASTA file"),
    "two of a name": (">a\nAC\n>b\nA\n>a x\nA\n", "x.fa, line 5: there is a second record 'a'"),
    "no sequence": (">a\nAC\n>b\n>c\nA\n", "x.fa, line 3, record 'b' has no sequence"),
    "no sequence at the end": (">a\nAC\n>b\n", "x.fa, line 3, record 'b' has no sequence"),
    "ragged": (">a\nACGT\nAC\nACGT\n", "x.fa, line 4, record 'a': all lines of a record but the"),
    "longer": (">a\nAC\nACGT\n", "x.fa, line 3, record 'a': all lines of a record but the last"),
    "blank inside": (">a\nAC\n\nAC\n", "x.fa, line 4, record 'a': all lines of a record but the"),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_indexed_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="x.fa") as error:
        Genome(packed(tmp_path / "x.fa", content, "plain"))
    assert sentence in str(error.value)


def test_plain_gzip_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.fa.gz", ">a\nACGT\n", "gzip")
    with pytest.raises(ValueError, match=r"gunzip -c \S*x.fa.gz \| bgzip > \S*x.fa.bgz"):
        Genome(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_longer_than_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    contigs = {"a": bases(83), "b": bases(300, seed=1), "c": bases(35, seed=2)}
    lines = [f">a {'>b ' * 20}", contigs["a"], ">b", contigs["b"], ">c", contigs["c"]]
    path = tmp_path / "x.fa"
    path.write_bytes((end.join(lines) + end).encode())
    # Chunks that end in the middle of a line, of a title, and between the two letters of a line's end.
    for piece in (5, 6, 7, 9, 16):
        monkeypatch.setattr(module, "PIECE", piece)
        genome = Genome(path)
        assert genome.lengths == {name: len(sequence) for name, sequence in contigs.items()}
        for name, sequence in contigs.items():
            assert genome.fetch(name, 0, len(sequence)) == sequence
            assert genome.fetch(name, len(sequence) - 3, len(sequence)) == sequence[-3:]


def test_odd_letters_are_said_with_their_place_in_the_contig(tmp_path: Path) -> None:
    genome = Genome(packed(tmp_path / "x.fa", ">a\nACGTA\nC-GTA\n", "plain"))
    with pytest.raises(ValueError, match="x.fa, record 'a', position 7: '-' is no base"):
        genome.fetch("a", 4, 8)


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    contigs = {"chr1": "ACGTACGTAC", "chr2": "TTTTG"}
    return Genome(packed(tmp_path / "x.fa", fasta(contigs, 4), "plain"))


def test_a_bed_file_gives_intervals(genome: Genome, tmp_path: Path) -> None:
    text = "track name=x\n# a comment\nbrowser y\n\nchr1\t1\t4\nchr2 0 5\nchr1\t8\t10\tend\t0\t-\textra\n"
    found = [tuple(i) for i in read_bed(packed(tmp_path / "x.bed.gz", text, "gzip"), genome)]
    assert found == [
        ("chr1", 1, 4, "chr1:1-4", ".", 5),
        ("chr2", 0, 5, "chr2:0-5", ".", 6),
        ("chr1", 8, 10, "end", "-", 7),
    ]


BAD_BED = {
    "empty": ("# nothing\n", "x.bed is empty"),
    "beyond": (
        "chr1\t0\t5\nchr2\t0\t6\n",
        "x.bed, line 2: 0-6 reaches beyond chr2, which has 5 bases",
    ),
    "no such contig": ("chrX\t0\t5\n", "has no contig 'chrX': it has chr1, chr2"),
    "of another name": ("1\t0\t5\n", "has no contig '1': it calls it 'chr1'"),
    "nothing": ("chr1\t3\t3\n", "x.bed, line 1: 3-3 of chr1 holds no base"),
    "backwards": ("chr1\t5\t3\n", "x.bed, line 1: 5-3 of chr1 holds no base"),
    "no numbers": ("chr1\ta\tb\n", "x.bed, line 1: BED has contig, start and end"),
    "negative": ("chr1\t-1\t3\n", "x.bed, line 1: BED has contig, start and end"),
    "two columns": ("chr1\t1\n", "x.bed, line 1: BED has contig, start and end"),
    "strand": ("chr1\t1\t2\tn\t0\t5\n", "x.bed, line 1: the strand must be +, - or .: got '5'"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_BED.values(), ids=BAD_BED)
def test_bad_intervals_are_refused(
    genome: Genome, tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "x.bed").write_text(content)
    with pytest.raises(ValueError, match="x.") as error:
        list(read_bed(tmp_path / "x.bed", genome))
    assert sentence in str(error.value)
