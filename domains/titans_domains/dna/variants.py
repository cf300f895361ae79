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
    ambiguous: int = 0  # IUPAC codes that became N


class Alleles(NamedTuple):
    """Windows of one size or, `even`, of as many known bases; the allele begins at `size // 2` of both."""

    variant: Variant
    ref: str
    alt: str
    ambiguous: int  # IUPAC codes that became N


class Skipped:
    """How many alleles were left out: no sequences (<DEL>, *, breakends), or too long for a window."""

    count = 0
    long = 0
    first_long = 0  # line of the first that is too long

    def remarks(self, size: int) -> list[str]:
        found = []
        if self.count:
            found.append(f"{_left_out(self.count)} no sequence (<DEL>, *, ...).")
        if self.long:
            found.append(
                f"{_left_out(self.long)} longer than half of a window of {size} bases, the first in line "
                f"{self.first_long}: give a larger --window to have them scored."
            )
        return found


def _left_out(count: int) -> str:
    what = "allele was left out: it is" if count == 1 else "alleles were left out: they are"
    return f"{count} {what}"


def read_vcf(
    path: str | Path, genome: Genome, skipped: Skipped, longest: int | None = None
) -> Iterator[Variant]:
    """Every allele of every line, REF checked against the genome; ValueError for a line that does not fit.

    Variants with an allele of more than `longest` bases are skipped.
    """
    path, begun = Path(path), False
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            begun = begun or bool(line.strip())
            if line.startswith("#") or not line.strip():
                continue
            yield from _alleles(line, f"{path}, line {number}", number, genome, skipped, longest)
    if not begun:
        raise ValueError(f"{path} is empty: a VCF without variants has a header.")


def _alleles(
    line: str, where: str, number: int, genome: Genome, skipped: Skipped, longest: int | None
) -> Iterator[Variant]:
    cells = line.rstrip("\n").split("\t")
    if len(cells) < 5:
        raise ValueError(
            f"{where}: VCF has CHROM, POS, ID, REF and ALT in its first five columns, between tabs: "
            f"got {line.strip()[:60]!r}."
        )
    if not cells[1].isdecimal() or int(cells[1]) < 1:
        raise ValueError(f"{where}: POS must be a whole number from 1: got {cells[1]!r}.")
    contig, position, name = cells[0], int(cells[1]), cells[2]
    if not cells[3]:
        raise ValueError(f"{where}: REF is empty.")
    ref, codes, _ = clean(cells[3], f"{where}, REF")
    start, length = position - 1, genome.lengths.get(contig)
    if length is not None and start + len(ref) > length:
        raise ValueError(
            f"{where}: POS {position} with REF of {len(ref)} bases reaches beyond {contig}, which has "
            f"{length} bases in {genome.path}; is the VCF of another assembly?"
        )
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
        done = clean(alt, f"{where}, ALT")
        if longest is not None and max(len(ref), len(alt)) > longest:
            skipped.long += 1
            skipped.first_long = skipped.first_long or number
            continue
        ambiguous = codes.total() + done.ambiguous.total()
        yield Variant(contig, position, name, ref, done.sequence, number, ambiguous)


def _shown(letters: str) -> str:
    return letters if len(letters) <= 20 else f"{letters[:20]}... ({len(letters)} bases)"


def windows(
    genome: Genome, variant: Variant, size: int, where: str, *, even: bool = False
) -> Alleles:
    """The reference and the alternative in the same surroundings, N beyond the ends of the contig.

    Both windows begin at the same base. An insertion pushes bases out on the right, a deletion draws
    bases in. `even` ends both where they hold as many known bases, as the one with fewer has.
    """
    longest = max(len(variant.ref), len(variant.alt))
    if longest > size - size // 2:
        raise ValueError(
            f"{where}, line {variant.line}: an allele of {longest} bases does not fit into the right half "
            f"of a window of {size}: give a larger --window, or leave it out."
        )
    start = variant.position - 1
    left, before = _padded(genome, variant.contig, start - size // 2, start)
    end = start + len(variant.ref)
    shortest = min(len(variant.ref), len(variant.alt))
    right, after = _padded(genome, variant.contig, end, end + size - size // 2 - shortest)
    ref, alt = ((left + allele + right)[:size] for allele in (variant.ref, variant.alt))
    if even:
        count = min(known(ref), known(alt))
        ref, alt = (_cut(window, count, len(left)) for window in (ref, alt))
    return Alleles(variant, ref, alt, variant.ambiguous + before + after)


def known(sequence: str) -> int:
    """How many bases of a clean sequence are known."""
    return len(sequence) - sequence.count("N")


def _cut(sequence: str, count: int, shortest: int) -> str:
    """As far as the last of its first `count` known bases; what both windows begin with stays."""
    places = [at for at, base in enumerate(sequence) if base != "N"][:count]
    return sequence[: max([shortest, *(at + 1 for at in places[-1:])])]


def _padded(genome: Genome, contig: str, start: int, end: int) -> tuple[str, int]:
    """Bases, N beyond the contig's ends, and how many IUPAC codes became N."""
    length = genome.lengths[contig]
    first, last = max(start, 0), min(end, length)
    left = "N" * (min(end, 0) - min(start, 0))
    right = "N" * (max(end, length) - max(start, length))
    if first >= last:
        return left + right, 0
    inside = genome.read(contig, first, last)
    return left + inside.sequence + right, inside.ambiguous.total()


class Effect(NamedTuple):
    variant: Variant
    bases: tuple[int, int]  # known ones of each window
    ref: Float[np.ndarray, " S"]
    alt: Float[np.ndarray, " S"]


def effects(score: Score, alleles: Iterable[Alleles]) -> list[Effect]:
    """What the model says of both windows of each variant; a reference that comes twice is read once."""
    pairs = list(alleles)
    sequences = list(dict.fromkeys(s for pair in pairs for s in (pair.ref, pair.alt)))
    found = dict(zip(sequences, score(sequences), strict=True))
    return [
        Effect(p.variant, (known(p.ref), known(p.alt)), found[p.ref], found[p.alt]) for p in pairs
    ]


def columns(names: Sequence[str]) -> list[str]:
    scores = [f"{name}_{which}" for name in names for which in ("ref", "alt", "diff")]
    return ["contig", "position", "id", "ref", "alt", *scores, "bases_ref", "bases_alt"]


def cells_of(effect: Effect, names: Sequence[str]) -> Cells:
    """A row: the variant as the VCF has it, each score of both windows and alt minus ref, known bases."""
    scores = np.stack([effect.ref, effect.alt, effect.alt - effect.ref], 1).ravel()
    cells = (*effect.variant[:5], *map(float, scores), *effect.bases)
    return dict(zip(columns(names), cells, strict=True))
