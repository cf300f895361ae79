"""In-silico mutagenesis: every base of a sequence replaced by each other, as a table and a heat map."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float

from titans_domains.dna.output import Cells
from titans_domains.dna.reading import clean, read_records
from titans_domains.dna.scoring import Scorer

BASES = "ACGT"


class Saturation(NamedTuple):
    """`scores[base, i]` is the score of the sequence with that base (A, C, G, T) at `first + i`."""

    sequence: str
    first: int  # from 0
    reference: float
    scores: Float[np.ndarray, "4 T"]

    @property
    def differences(self) -> Float[np.ndarray, "4 T"]:
        return self.scores - self.reference


class Picked(NamedTuple):
    name: str
    sequence: str  # clean
    ambiguous: int  # IUPAC codes that became N


def pick_record(path: Path, name: str | None) -> Picked:
    """The record called `name`, or a file's only one."""
    found = None
    for record in read_records(path):
        if name is None and found is not None:
            raise ValueError(
                f"{path} has several records: say with --record which to take, {found.name!r} say."
            )
        if name in (None, record.name):
            found = record
            if name is not None:
                break
    if found is None:
        raise ValueError(f"{path} has no record {name!r}.")
    done = clean(found.sequence, found.where, whole=True)
    return Picked(found.name, done.sequence, done.ambiguous.total())


def saturate(
    scorer: Scorer,
    sequence: str,
    *,
    first: int = 0,
    last: int | None = None,
    batch: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> Saturation:
    """The scores (of their first column) of all single replacements from `first` to before `last`."""
    last = len(sequence) if last is None else last
    if not 0 <= first < last <= len(sequence):
        raise ValueError(
            f"Positions must lie between 1 and {len(sequence)}, the last not before the first: got "
            f"{first + 1} to {last}."
        )
    reference = float(scorer.score([sequence])[0, 0])
    scores = np.full((4, last - first), reference)
    places = [
        (row, at) for at in range(first, last) for row in range(4) if BASES[row] != sequence[at]
    ]
    for begin in range(0, len(places), batch):
        part = places[begin : begin + batch]
        changed = [sequence[:at] + BASES[row] + sequence[at + 1 :] for row, at in part]
        for (row, at), value in zip(part, scorer.score(changed)[:, 0], strict=True):
            scores[row, at - first] = value
        progress(len(part))
    return Saturation(sequence, first, reference, scores)


def cells_of(found: Saturation, name: str, column: str) -> Iterator[Cells]:
    """A row for each replacement, positions counted from 1."""
    for offset in range(found.scores.shape[1]):
        ref = found.sequence[found.first + offset]
        for row, alt in enumerate(BASES):
            if alt != ref:
                score = float(found.scores[row, offset])
                yield {
                    "name": name, "position": found.first + offset + 1, "ref": ref, "alt": alt,
                    column: score, "diff": score - found.reference,
                }  # fmt: skip


def draw_saturation(found: Saturation, title: str, label: str, file: BinaryIO) -> None:
    """The differences as a PNG, a dot on each base of the sequence itself, and each position's sum above."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    change = found.differences
    length = change.shape[1]
    figure = Figure(figsize=(min(24.0, max(7.0, 0.14 * length + 2)), 3.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[1, 1.6])
    positions = np.arange(found.first + 1, found.first + length + 1)
    above.bar(positions, change.sum(0) / 3, width=1.0, color="0.35")
    above.axhline(0, color="0.6", linewidth=0.6)
    above.set_ylabel("mean change")
    above.set_title(title, fontsize=10, parse_math=False)
    most = float(np.abs(change).max()) or 1.0
    image = below.imshow(
        change, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest",
        extent=(positions[0] - 0.5, positions[-1] + 0.5, 3.5, -0.5),
    )  # fmt: skip
    rows = [BASES.find(base) for base in found.sequence[found.first : found.first + length]]
    known = np.array([row >= 0 for row in rows])
    size = min(14.0, 1200 / length)
    below.scatter(positions[known], np.array(rows)[known], s=size, color="black", linewidths=0)
    below.set_yticks(range(4), list(BASES))
    below.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    below.set_xlabel("position (from 1); dots: the sequence itself")
    figure.colorbar(image, ax=[above, below], label=label, fraction=0.03)
    figure.savefig(file, dpi=130, format="png")
