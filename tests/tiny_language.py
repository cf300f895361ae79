"""Language models, corpora and configurations that are small enough for tests."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from titans_core import AttentionConfig, BackboneConfig, HybridConfig, MemoryConfig
from titans_core.files import load_tensors
from titans_domains.checkpoints import TENSORS, WEIGHTS, latest, load_checkpoint
from titans_domains.config import override
from titans_domains.language import DOMAIN, LanguageConfig
from titans_domains.language.model import LanguageModel

CPU = torch.device("cpu")
VOCAB = 257

SETTINGS = (
    "model.dim=16",
    "model.num_layers=2",
    "model.memory.num_heads=2",
    "model.attention.num_heads=2",
    "data.seq_len=32",
    "data.valid_bytes=64",
    "train.batch_size=2",
    "train.steps=6",
    "train.warmup=2",
    "train.valid_every=0",
    "train.checkpoint_every=2",
)

SENTENCES = (
    "The memory reads, and what it did not expect it keeps.",
    "Größe, naïveté, 日本語 and a 🙂 are letters of several bytes.",
    'Tabs\tand\r\nlines too; a quote " and a backslash \\.',
)
DOCUMENTS = [
    SENTENCES[0] * 12,  # longer than a row's share of all
    SENTENCES[1],
    SENTENCES[2] * 3,
    "x",
    SENTENCES[1] * 2,
    SENTENCES[0] * 2,
]


def tiny_config(source: Path | str, *settings: str) -> LanguageConfig:
    changes = [f"data.source={json.dumps(str(source))}", *SETTINGS, *settings]
    return override(DOMAIN.presets["tiny"], changes)


def tiny_model(
    *, mixer: str = "lmm", num_layers: int = 2, window: int | None = None
) -> LanguageModel:
    config = BackboneConfig(
        dim=16,
        num_layers=num_layers,
        mixer=mixer,
        memory=MemoryConfig(num_heads=2),
        attention=AttentionConfig(num_heads=2, window=window),
        hybrid=HybridConfig(num_persistent=3, window=12, segment_len=16),
    )
    return LanguageModel(config, VOCAB).eval()


def write_documents(path: Path, texts: list[str] = DOCUMENTS) -> Path:
    """A .jsonl file with a document per line."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["tokens_per_s"]
    return rows


def assert_same_runs(a: Path, b: Path) -> None:
    assert rows_of(a) == rows_of(b)
    first, second = latest(a / "checkpoints"), latest(b / "checkpoints")
    assert first.name == second.name
    # Weights, optimiser, carried state and random numbers, in every bit.
    for file in (WEIGHTS, TENSORS):
        ours, theirs = load_tensors(first / file), load_tensors(second / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    ours, theirs = (load_checkpoint(path) for path in (first, second))
    assert ours["cursor"] == theirs["cursor"]
    assert ours["global_step"] == theirs["global_step"]
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]


class KilledError(Exception):
    pass


def kill_at(step: int) -> Callable[[int, dict[str, Any]], None]:
    def show(now: int, row: dict[str, Any]) -> None:
        if now == step:
            raise KilledError

    return show
