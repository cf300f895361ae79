"""The files that the pages of the docs call the reader's own, small, and settings that train in a moment."""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_language
import tiny_timeseries
from dna_files import bases, fasta

from titans_domains.dna import synthetic
from titans_domains.language import corpus

SETTINGS = {
    "language": (
        *tiny_language.SETTINGS,
        "train.steps=4",
        "train.valid_every=2",
        "model.hybrid.segment_len=16",
        "model.hybrid.num_retrieved=8",
        "model.hybrid.window=12",
    ),
    "timeseries": (
        *tiny_timeseries.SETTINGS,
        # Longer than the gaps of the made series.
        "forecast.context_length=48",
        "train.steps=3",
    ),
    "dna": (
        "model.backbone.dim=16",
        "model.backbone.num_layers=1",
        "model.backbone.memory.num_heads=2",
        "model.stem.channels=8",
        "model.stem.depth=1",
        "data.seq_len=32",
        "train.batch_size=4",
        "train.steps=2",
        "train.warmup=1",
        "train.valid_every=1",
        "train.checkpoint_every=2",
    ),
}
"""By domain; each overrides what a page asks for, which has been parsed by then."""


def text(seed: int) -> str:
    draw = random.Random(seed)
    return "".join(f"{draw.choice(tiny_language.SENTENCES)} {n}\n" for n in range(80))


def wide_table() -> str:
    stamps = pd.date_range("2026-01-01", periods=300, freq="h")
    load = 10 + np.sin(np.arange(300) * np.pi / 12)
    table = pd.DataFrame({"load": load, "price": 3 - load / 10}, index=stamps)
    return table.to_csv(index_label="date")


def long_table() -> str:
    days = pd.date_range("2025-01-01", periods=120, freq="D")
    rows = [
        pd.DataFrame(
            {
                "item_id": shop,
                "timestamp": days,
                "target": 20 + np.arange(120) % 7,
                "promo": (np.arange(120) % 10 == 0).astype(int),
            }
        )
        for shop in ("north", "south")
    ]
    return pd.concat(rows).to_csv(index=False)


def labelled() -> str:
    rows = [f"{bases(40, seed=i)},{'promoter' if i % 2 else 'other'}\n" for i in range(40)]
    return "sequence,label\n" + "".join(rows)


CONTIGS = {"chr1": bases(900, seed=1), "chr2": bases(400, seed=2)}


def variants() -> str:
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for at in (100, 200):
        base = CONTIGS["chr1"][at - 1]
        lines.append(f"chr1\t{at}\t.\t{base}\t{'C' if base == 'A' else 'A'}\t.\t.\t.")
    return "\n".join(lines) + "\n"


FILES: dict[str, Callable[[], str]] = {
    "book.txt": lambda: text(0),
    "other.txt": lambda: text(1),
    "more.txt": lambda: text(2),
    "load.csv": wide_table,
    "sales.csv": long_table,
    "promoters.csv": labelled,
    "promoters.fa": lambda: fasta({"first": bases(60, seed=3), "second": bases(60, seed=4)}, 50),
    "promoter.fa": lambda: fasta({"first": bases(40, seed=3)}, 50),
    "genome.fa": lambda: fasta(CONTIGS, 50),
    "calls.vcf": variants,
}


def shorten_what_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text and the promoters that stand for data where a command is given none."""
    read, make = corpus.documents, synthetic.promoters

    def documents(source: str) -> Iterator[bytes]:
        texts = read(source)
        return (part[:1500] for part in islice(texts, 4)) if source == corpus.EMBEDDED else texts

    monkeypatch.setattr(corpus, "documents", documents)
    monkeypatch.setattr(
        synthetic, "promoters", lambda count, *rest, **named: make(min(count, 200), *rest, **named)
    )


def write_files(folder: Path) -> None:
    for name, make in FILES.items():
        (folder / name).write_text(make())
