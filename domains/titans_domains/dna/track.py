"""Bits per base along genomes: averages over windows, and a picture of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float

from titans_domains.dna.output import Cells
from titans_domains.dna.streams import Piece

if TYPE_CHECKING:
    from titans_domains.dna.pretrained import Pretrained


class Span(NamedTuple):
    """What a stretch of a contig cost."""

    contig: str
    start: int  # from 0
    bits: Float[np.ndarray, " T"]  # of each base; NaN where none is counted, as on N


def spans(model: "Pretrained", pieces: Iterable[Piece], mode: Any) -> Iterator[Span]:
    """What every base costs, each contig read as one stream from a fresh memory on."""
    state = None
    for piece in pieces:
        if not piece.start:
            state = None
        for reading in model.bits_per_base([piece.sequence], state, mode=mode):
            yield Span(piece.contig, piece.start, reading.bits)
            state = reading.state


class Stretch(NamedTuple):
    contig: str
    start: int
    end: int
    bits: float  # per base that is counted; NaN where there is none
    bases: int  # that are counted

    @property
    def cells(self) -> Cells:
        bits = None if np.isnan(self.bits) else self.bits
        return {
            "contig": self.contig, "start": self.start, "end": self.end, "bits_per_base": bits,
            "bases": self.bases,
        }  # fmt: skip


def stretches(spans: Iterable[Span], size: int) -> Iterator[Stretch]:
    """Averages over windows of `size` bases, the last of each contig shorter.

    Spans follow on each other, however they are cut.
    """
    contig, start, held = "", 0, np.empty(0)
    for span in spans:
        if span.start == 0 and len(held):
            yield _stretch(contig, start, held)
        if span.start == 0:
            contig, start, held = span.contig, 0, np.empty(0)
        assert (span.contig, span.start) == (contig, start + len(held))
        held = np.concatenate([held, span.bits])
        while len(held) >= size:
            yield _stretch(contig, start, held[:size])
            start, held = start + size, held[size:]
    if len(held):
        yield _stretch(contig, start, held)


def _stretch(contig: str, start: int, bits: Float[np.ndarray, " T"]) -> Stretch:
    counted = bits[~np.isnan(bits)]
    mean = float(counted.mean()) if len(counted) else float("nan")
    return Stretch(contig, start, start + len(bits), mean, len(counted))


def summary(found: Sequence[Stretch]) -> str:
    bases = sum(s.bases for s in found)
    bits = sum(s.bits * s.bases for s in found if s.bases)
    return f"{bits / bases:.4f} bits/base over {bases:,} bases" if bases else "no base that counts"


MOST_PANELS = 12


def draw_track(found: Sequence[Stretch], title: str, file: BinaryIO) -> None:
    """A PNG with a panel for each of the longest contigs, in the order of the file."""
    from matplotlib.figure import Figure

    ends: dict[str, int] = {}
    for stretch in found:
        ends[stretch.contig] = stretch.end
    longest = sorted(ends, key=lambda name: -ends[name])[:MOST_PANELS]
    contigs = [name for name in ends if name in longest]
    figure = Figure(figsize=(11, 1.2 + 1.9 * len(contigs)), layout="constrained")
    panels = figure.subplots(len(contigs), squeeze=False, sharey=True)[:, 0]
    for contig, axes in zip(contigs, panels, strict=True):
        rows = [s for s in found if s.contig == contig]
        edges = np.array([*(s.start for s in rows), rows[-1].end]) / 1000
        axes.stairs([s.bits for s in rows], edges, baseline=None, color="tab:blue", linewidth=0.9)
        axes.axhline(2, color="0.6", linewidth=0.7, linestyle="--")
        axes.set_title(contig, fontsize=9, loc="left", parse_math=False)
        axes.set_xlim(edges[0], edges[-1])
    panels[-1].set_xlabel("position in thousands of bases")
    figure.supylabel("bits per base")
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.savefig(file, dpi=130, format="png")
