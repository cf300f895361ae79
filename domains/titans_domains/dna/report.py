"""Figures of runs on held-out data, and what is to be said of the data beside them."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from titans_domains.dna.calls import batches
from titans_domains.dna.labelled import EMBEDDED, Labelled
from titans_domains.dna.labels import known_labels
from titans_domains.dna.markov import Markov
from titans_domains.dna.metrics import intervals
from titans_domains.dna.pretrained import MODES, Pretrained
from titans_domains.dna.reading import PIECE
from titans_domains.dna.splits import duplicates, overlaps
from titans_domains.dna.task import (
    DnaConfig,
    last_share,
    read_contigs,
    split_examples,
    splits_of,
)
from titans_domains.dna.tokenizers import codes
from titans_domains.hub import HUB

if TYPE_CHECKING:
    from titans_domains.dna.classifier import SequenceClassifier

Progress = Callable[[int], None]


def remarks(config: DnaConfig) -> list[str]:
    """What a user should know of labelled data before believing a figure of it."""
    if config.kind != "train":
        return []
    source = config.data.source
    splits = splits_of(config.data)
    found = [f"{overlap}." for overlap in overlaps({k: v.sequences for k, v in splits.items()})]
    for name, rows in splits.items():
        if name in ("train", "all") and (count := duplicates(rows.sequences)):
            found.append(
                f"{count:,} of {len(rows.sequences):,} sequences of {name} came before already, on either "
                "strand."
            )
        if rows.ambiguous:
            found.append(
                f"{rows.ambiguous:,} ambiguous bases (IUPAC codes) of {name} were read as N."
            )
    if source == EMBEDDED:
        found.append(bayes_line())
    return found


def bayes_line() -> str:
    from titans_domains.dna.synthetic import bayes_accuracy

    accuracy, error = bayes_accuracy()
    return f"The best possible (Bayes) accuracy on the made promoters is {accuracy:.4f} +- {error:.4f}."


def rows_for(
    run: Path, config: DnaConfig, source: str | None, genome: Path | None = None
) -> tuple[str, Labelled]:
    """The name of a split and its rows: test if there is one, else what the run held out.

    Of another source: test, else valid, else what is no split to train on.
    """
    data = config.data
    if source is not None:
        data = replace(data, source=source)
    if genome is not None:
        data = replace(data, genome=str(genome))
    splits = splits_of(data)
    if "test" in splits:
        return "test", splits["test"]
    if source is not None:
        names = [name for name in ("valid", *splits) if name in splits and name != "train"]
        # A data set of the hub may have but one split, which is called so.
        if not names and not source.startswith(HUB):
            raise ValueError(
                f"{source} has no split but train, and figures on it say nothing: give test or valid, or "
                "the table itself."
            )
        name = (names or ["train"])[0]
        return name, splits[name]
    held_out = split_examples(data, config.seed)[1]
    if held_out is None:
        raise ValueError(f"{run} held no sequences out: give some with --data.")
    return "validation", held_out


def overlap_remarks(
    run: Path, config: DnaConfig, source: str, split: str, rows: Labelled
) -> list[str]:
    """What is to be said of rows of another source that the run was trained on."""
    try:
        known = split_examples(config.data, config.seed)[0].sequences
    except (OSError, ValueError) as error:
        return [f"Whether {run} was trained on some of them could not be counted: {error}"]
    name = source if split == "all" else f"{split} of {source}"
    return [f"{o}." for o in overlaps({f"what {run} was trained on": known, name: rows.sequences})]


def classifier_report(
    model: "SequenceClassifier", rows: Labelled, progress: Progress = lambda count: None
) -> dict[str, Any]:
    """Figures with 95 % bootstrap intervals, and how many sequences each class has."""
    if model.multilabel_:
        rows = rows.by_columns(model.classes_.tolist())
    truth = known_labels(rows.labels, model.classes_, model.multilabel_)
    parts = []
    for batch in batches(rows.sequences, len):
        parts.append(model.predict_proba(batch))
        progress(len(batch))
    figures = intervals(truth, np.concatenate(parts))
    counts = (
        truth.sum(0) if model.multilabel_ else np.bincount(truth, minlength=len(model.classes_))
    )
    return {
        "sequences": len(rows.sequences),
        "classes": {str(n): int(c) for n, c in zip(model.classes_, counts, strict=True)},
        "figures": {name: figure._asdict() for name, figure in figures.items()},
    }


class Parts(NamedTuple):
    train: list[str]
    held_out: list[str]
    ambiguous: int  # IUPAC codes of the genome held out from that became N


def held_out_contigs(run: Path, config: DnaConfig, source: str | None) -> Parts:
    """What a pretrained model learned from, and what it held out, or another genome."""
    contigs = read_contigs(config.data)
    letters = [np.frombuffer(contig.sequence.encode(), np.uint8) for contig in contigs]
    train, held_out = (
        [part.tobytes().decode() for part in parts]
        for parts in last_share(letters, config.data.held_out)
    )
    if source is not None:
        contigs = read_contigs(replace(config.data, source=source))
        held_out = [contig.sequence for contig in contigs]
    if not sum(map(len, held_out)):
        raise ValueError(f"{run} held nothing out: give a genome with --data.")
    return Parts(train, held_out, sum(contig.ambiguous for contig in contigs))


def cost(config: DnaConfig, parts: Parts) -> int:
    """Bases that `genome_report` reads, for a progress bar."""
    return sum(map(len, parts.held_out)) * (len(MODES) if config.kind == "causal" else 1)


def genome_report(
    model: Pretrained, config: DnaConfig, parts: Parts, progress: Progress = lambda count: None
) -> dict[str, Any]:
    """Bits per base with the memory carried, frozen and reset, and of the order-7 Markov model.

    A masked model gives the bits of bases, each hidden alone among those around it.
    """
    if config.kind == "causal":
        scores = {
            describe(mode, model.window): _mean(_bits(model, parts.held_out, mode, progress))
            for mode in MODES
        }
    else:
        scores = {"masked": _masked(model, parts.held_out, progress)}
    markov = Markov([codes(text) for text in parts.train], ORDER)
    floor = _mean(markov.bits(codes(text)) for text in parts.held_out)
    return {
        "bits_per_base": scores,
        "floors": {f"order-{ORDER} Markov model": floor},
        "bases": sum(map(len, parts.held_out)),
    }


def _masked(model: Pretrained, contigs: list[str], progress: Progress) -> float:
    nats, count = 0.0, 0
    for contig in contigs:
        for at in range(0, len(contig), model.window):
            piece = contig[at : at + model.window]
            nats -= float(model.log_likelihood([piece])[0])
            count += len(piece) - piece.count("N")
            progress(len(piece))
    return nats / math.log(2) / count if count else float("nan")


ORDER = 7


def describe(mode: str, window: int) -> str:
    return f"{mode}({window})" if mode == "reset" else mode


def _bits(
    model: Pretrained, contigs: list[str], mode: Any, progress: Progress
) -> Iterator[Float[np.ndarray, " T"]]:
    for contig in contigs:
        pieces = (contig[at : at + PIECE] for at in range(0, len(contig), PIECE))
        for reading in model.bits_per_base(pieces, mode=mode):
            progress(len(reading.bits))
            yield reading.bits


def _mean(parts: Iterable[Float[np.ndarray, " T"]]) -> float:
    total, count = 0.0, 0
    for part in parts:
        total += float(np.nansum(part))
        count += int((~np.isnan(part)).sum())
    return total / count if count else float("nan")
