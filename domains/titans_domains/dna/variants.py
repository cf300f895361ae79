"""Variants of a VCF file, and what a model says of a window with each allele in its middle."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from titans_domains.dna.genome import Genome
from titans_domains.dna.output import Cells
from titans_domains.dna.reading import clean, open_text
from titans_domains.dna.scoring import Score


class Variant(NamedTuple):
    """One allele of a line. `position` is counted from 1, as in the file."""

    contig: str
    position: int
    name: str
    ref: str
    alt: str
    line: int


class Alleles(NamedTuple):
    """Windows of one size, the allele's first base at `size // 2` of both."""

    variant: Variant
    ref: str
    alt: str


class Skipped:
    """How many alleles were left out because they are no sequences (<DEL>, *, breakends)."""

    count = 0


def read_vcf(path: str | Path, genome: Genome, skipped: Skipped) -> Iterator[Variant]:
    """Every allele of every line, REF checked against the genome; ValueError for a line that does not fit."""
    path, count = Path(path), 0
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.startswith("#") or not line.strip():
                continue
            count += 1
            yield from _alleles(line, f"{path}, line {number}", number, genome, skipped)
    if not count:
        raise ValueError(f"{path} is empty: it holds no variant.")


def _alleles(
    line: str, where: str, number: int, genome: Genome, skipped: Skipped
) -> Iterator[Variant]:
    cells = line.rstrip("\n").split("\t")
    if len(cells) < 5 or not cells[1].isdecimal():
        raise ValueError(
            f"{where}: VCF has CHROM, POS, ID, REF and ALT in its first five columns, between tabs: "
            f"got {line.strip()[:60]!r}."
        )
    contig, position, name = cells[0], int(cells[1]), cells[2]
    if not cells[3]:
        raise ValueError(f"{where}: REF is empty.")
    ref = clean(cells[3], f"{where}, REF").sequence
    start = position - 1
    genome.check(contig, start, start + len(ref), where)
    there = genome.fetch(contig, start, start + len(ref))
    if there != ref:
        raise ValueError(
            f"{where}: REF is {_shown(cells[3])}, but {genome.path} has {_shown(there)} at "
            f"{contig}:{position}; is the VCF of another assembly?"
        )
    for alt in cells[4].split(","):
        if not alt or set(alt) & set("<>[]*."):
            skipped.count += 1
            continue
        yield Variant(contig, position, name, ref, clean(alt, f"{where}, ALT").sequence, number)


def _shown(letters: str) -> str:
    return letters if len(letters) <= 20 else f"{letters[:20]}... ({len(letters)} bases)"


def windows(genome: Genome, variant: Variant, size: int, where: str) -> Alleles:
    """The reference and the alternative in the same surroundings, N beyond the ends of the contig.

    Both windows begin at the same base. An insertion pushes bases out on the right, a deletion draws
    bases in.
    """
    longest = max(len(variant.ref), len(variant.alt))
    if longest > size - size // 2:
        raise ValueError(
            f"{where}, line {variant.line}: an allele of {longest} bases does not fit into the right half "
            f"of a window of {size}: give a larger --window, or leave it out."
        )
    start = variant.position - 1
    left = _padded(genome, variant.contig, start - size // 2, start)
    end = start + len(variant.ref)
    right = _padded(genome, variant.contig, end, end + size)
    return Alleles(
        variant,
        (left + variant.ref + right)[:size],
        (left + variant.alt + right)[:size],
    )


def _padded(genome: Genome, contig: str, start: int, end: int) -> str:
    length = genome.lengths[contig]
    first, last = max(start, 0), min(end, length)
    inside = genome.fetch(contig, first, last) if first < last else ""
    return (
        "N" * (min(end, 0) - min(start, 0)) + inside + "N" * (max(end, length) - max(start, length))
    )


class Effect(NamedTuple):
    variant: Variant
    ref: Float[np.ndarray, " S"]
    alt: Float[np.ndarray, " S"]


def effects(score: Score, alleles: Iterable[Alleles]) -> list[Effect]:
    """What the model says of both windows of each variant; a reference that comes twice is read once."""
    pairs = list(alleles)
    sequences = list(dict.fromkeys(s for pair in pairs for s in (pair.ref, pair.alt)))
    found = dict(zip(sequences, score(sequences), strict=True))
    return [Effect(pair.variant, found[pair.ref], found[pair.alt]) for pair in pairs]


def cells_of(effect: Effect, names: Sequence[str]) -> Cells:
    """A row: the variant as the VCF has it, then each score of both windows and alt minus ref."""
    cells: Cells = dict(
        zip(("contig", "position", "id", "ref", "alt"), effect.variant, strict=False)
    )
    for name, ref, alt in zip(names, effect.ref, effect.alt, strict=True):
        cells |= {
            f"{name}_ref": float(ref), f"{name}_alt": float(alt), f"{name}_diff": float(alt - ref),
        }  # fmt: skip
    return cells
