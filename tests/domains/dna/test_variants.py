"""Variants are checked against the genome and read in the middle of their window, to the base."""

from pathlib import Path

import numpy as np
import pytest
from dna_files import bases, fasta, packed
from dna_models import ByPosition
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna.genome import Genome
from titans_domains.dna.reading import Cleaned, clean
from titans_domains.dna.scoring import class_scorer, likelihood_scorer
from titans_domains.dna.variants import (
    Skipped,
    Variant,
    cells_of,
    effects,
    known,
    read_vcf,
    windows,
)

CONTIGS = {"chr1": "ACGTTGCAAC", "chr2": "GGGGG"}
HEAD = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\n"


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    return Genome(packed(tmp_path / "x.fa", fasta(CONTIGS, 4), "plain"))


@pytest.mark.parametrize("how", ["plain", "gzip", "bgzip"])
def test_every_allele_of_a_line_is_a_variant(genome: Genome, tmp_path: Path, how: str) -> None:
    text = HEAD + (
        "chr1\t1\trs1\tA\tC\t9\n\nchr1\t4\t.\tTT\tT,TTGG,g\nchr2\t5\tx\tG\t<DEL>,A,*,.,G[chr1:2[\n"
        "chr1\t10\t.\tc\tcaa\n"
    )
    skipped = Skipped()
    found = list(read_vcf(packed(tmp_path / "x.vcf", text, how), genome, skipped))
    assert found == [
        Variant("chr1", 1, "rs1", "A", "C", 3),
        Variant("chr1", 4, ".", "TT", "T", 5),
        Variant("chr1", 4, ".", "TT", "TTGG", 5),
        Variant("chr1", 4, ".", "TT", "G", 5),
        Variant("chr2", 5, "x", "G", "A", 6),
        Variant("chr1", 10, ".", "C", "CAA", 7),
    ]
    assert skipped.count == 4


REFUSED = {
    "empty": ("", "x.vcf is empty: a VCF without variants has a header"),
    "mismatch": (
        HEAD + "chr1\t1\t.\tA\tC\nchr1\t2\t.\tA\tC\n",
        "x.vcf, line 4: REF is A, but ",
    ),
    "mismatch by one": (
        HEAD + "chr1\t0\t.\tA\tC\n",
        "POS must be a whole number from 1: got '0'",
    ),
    "end": (
        HEAD + "chr2\t5\t.\tGG\tC\n",
        "POS 5 with REF of 2 bases reaches beyond chr2, which has 5",
    ),
    "contig": (HEAD + "chrX\t5\t.\tG\tC\n", "x.vcf, line 3: "),
    "blanks": (HEAD + "chr1 1 . A C\n", "x.vcf, line 3: VCF has CHROM, POS, ID, REF and ALT"),
    "four columns": (HEAD + "chr1\t1\t.\tA\n", "x.vcf, line 3: VCF has CHROM, POS"),
    "no number": (HEAD + "chr1\tone\t.\tA\tC\n", "x.vcf, line 3: POS must be a whole number"),
    "letters of REF": (
        HEAD + "chr1\t1\t.\tE\tC\n",
        "x.vcf, line 3, REF, position 1: 'E' is no base",
    ),
    "letters of ALT": (HEAD + "chr1\t1\t.\tA\tCQ\n", "x.vcf, line 3, ALT, position 2: 'Q' is no"),
    "no REF": (HEAD + "chr1\t1\t.\t\tC\n", "x.vcf, line 3: REF is empty"),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_the_genome_is_refused(
    genome: Genome, tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "x.vcf").write_text(content)
    with pytest.raises(ValueError, match="x.vcf") as error:
        list(read_vcf(tmp_path / "x.vcf", genome, Skipped()))
    assert sentence in str(error.value)


def test_a_mismatch_shows_what_the_genome_has(genome: Genome, tmp_path: Path) -> None:
    (tmp_path / "x.vcf").write_text("chr1\t2\t.\tCGA\tC\n")
    with pytest.raises(
        ValueError, match=r"REF is CGA, but .*x.fa has CGT at chr1:2; is the VCF of"
    ):
        list(read_vcf(tmp_path / "x.vcf", genome, Skipped()))


@given(st.integers(1, 40), st.integers(0, 4), st.text(alphabet="ACGT", min_size=1, max_size=6),
       st.integers(12, 31))  # fmt: skip
def test_alleles_stand_in_the_middle_of_windows_of_one_size(
    position: int, longer: int, alt: str, size: int
) -> None:
    sequence = bases(40)
    ref = sequence[position - 1 : position + longer]
    pair = windows(InMemory(sequence), Variant("c", position, ".", ref, alt, 1), size, "x.vcf")
    left = size // 2
    around = "N" * size + sequence + "N" * size
    at = size + position - 1
    assert len(pair.ref) == len(pair.alt) == size
    assert pair.ref == around[at - left : at - left + size]
    assert pair.alt == (around[at - left : at] + alt + around[at + len(ref) :])[:size]
    assert pair.alt[left : left + len(alt)] == alt
    even = windows(
        InMemory(sequence), Variant("c", position, ".", ref, alt, 1), size, "x.vcf", even=True
    )
    assert known(even.ref) == known(even.alt) == min(known(pair.ref), known(pair.alt))
    for cut, whole in ((even.ref, pair.ref), (even.alt, pair.alt)):
        assert whole.startswith(cut)
        assert len(cut) >= left
        assert not cut[left:].endswith("N")


def test_iupac_codes_of_a_window_and_its_alleles_are_counted(tmp_path: Path) -> None:
    genome = Genome(packed(tmp_path / "x.fa", ">c\nRACGTSCGTAAW\n", "plain"))
    (tmp_path / "x.vcf").write_text("c\t4\t.\tG\tR\nc\t6\t.\tS\tA\nc\t9\t.\tT\tG\n")
    read = read_vcf(tmp_path / "x.vcf", genome, Skipped())
    found = [windows(genome, v, 6, "x") for v in read]
    assert [(pair.ref, pair.ambiguous) for pair in found] == [
        ("NACGTN", 3), ("CGTNCG", 1), ("NCGTAA", 1),
    ]  # fmt: skip


class InMemory(Genome):
    def __init__(self, sequence: str) -> None:
        self.sequence = sequence

    @property
    def lengths(self) -> dict[str, int]:
        return {"c": len(self.sequence)}

    def read(self, contig: str, start: int, end: int, *, soft_mask: bool = False) -> Cleaned:
        assert 0 <= start < end <= len(self.sequence)
        return clean(self.sequence[start:end], contig)


def test_a_model_that_reads_places_sees_the_variant_where_it_is(
    genome: Genome, tmp_path: Path
) -> None:
    # chr1 is ACGTTGCAAC; the model reads three letters from the window's middle on as decimals.
    (tmp_path / "x.vcf").write_text(
        "chr1\t5\t.\tT\tA\nchr1\t5\t.\tTG\tT\nchr1\t5\t.\tT\tTC\nchr1\t10\t.\tC\tG\n"
    )
    model = ByPosition(at=4, width=3)
    scorer = class_scorer(model, None)
    assert scorer.names == ["p_yes"]
    read = read_vcf(tmp_path / "x.vcf", genome, Skipped())
    found = effects(scorer.score, (windows(genome, v, 8, "x") for v in read))
    assert model.calls == 1
    rows = [cells_of(effect, scorer.names) for effect in found]
    # TGC; TGC -> AGC, TCA, TCG; C and then what is beyond the end.
    wanted = [(0.432, 0.132), (0.432, 0.421), (0.432, 0.423), (0.2, 0.3)]
    for row, (ref, alt) in zip(rows, wanted, strict=True):
        assert row["p_yes_ref"] == pytest.approx(ref)
        assert row["p_yes_alt"] == pytest.approx(alt)
        assert row["p_yes_diff"] == pytest.approx(alt - ref)
    assert list(rows[1].values())[:5] == ["chr1", 5, ".", "TG", "T"]
    assert list(rows[1])[:5] == ["contig", "position", "id", "ref", "alt"]
    # Of eight, as many as the contig has from four before the variant on.
    assert [(row["bases_ref"], row["bases_alt"]) for row in rows] == [
        (8, 8),
        (8, 8),
        (8, 8),
        (5, 5),
    ]


def test_alleles_longer_than_half_a_window_are_refused(genome: Genome) -> None:
    variant = Variant("chr1", 1, ".", "ACGTT", "A", 7)
    with pytest.raises(ValueError, match="x.vcf, line 7: an allele of 5 bases does not fit"):
        windows(genome, variant, 8, "x.vcf")
    assert windows(genome, variant, 10, "x.vcf").alt == "NNNNNAGCAA"


def test_classes_are_scored_by_name_or_all() -> None:
    three = ByPosition(classes=["a", "b", "c"])
    assert class_scorer(three, None).names == ["p_a", "p_b", "p_c"]
    scorer = class_scorer(three, "c")
    assert scorer.names == ["p_c"]
    np.testing.assert_allclose(scorer.score(["ACG", "T"]), [[0.123], [0.4]])
    with pytest.raises(ValueError, match="--class must be one of a, b, c: got 'd'"):
        class_scorer(three, "d")


def test_log_odds_are_finite_where_a_class_is_certain() -> None:
    scorer = class_scorer(ByPosition(width=1), "yes", log_odds=True)
    assert scorer.names == ["logit_yes"]
    found = scorer.score(["C", "N"])[:, 0]
    assert found[0] == pytest.approx(np.log(0.2 / 0.8))
    assert found[1] == pytest.approx(np.log(1e-7), rel=1e-4)


def test_a_pretrained_model_scores_by_likelihood() -> None:
    scorer = likelihood_scorer(ByPosition())
    assert scorer.names == ["log_likelihood"]
    np.testing.assert_allclose(scorer.score(["AAC", "T"]), [[-5.0], [-1.0]])
