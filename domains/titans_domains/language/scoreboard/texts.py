"""Language modelling on one text: its last tenth is the test, the tenth before it the validation."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from titans_core import BackboneConfig, state_bytes
from titans_domains.language import corpus
from titans_domains.language.evaluate import bits_per_byte, modes_of
from titans_domains.language.floors import floors
from titans_domains.language.scoreboard.tasks import TaskSpec
from titans_domains.language.task import DataConfig, LanguageConfig, LanguageTask
from titans_domains.language.tokenizers import ByteTokenizer
from titans_domains.train_config import TrainConfig

SHORTEST = 10_000
"""Bytes of a text of which a tenth still says something."""


def parts(source: str) -> tuple[bytes, bytes, bytes]:
    """Training, validation and test, cut between letters."""
    text = b"\n".join(corpus.documents(source))
    if len(text) < SHORTEST:
        raise ValueError(f"{source} must have at least {SHORTEST:,} bytes: got {len(text):,}.")

    def cut(at: int) -> int:
        while at < len(text) and text[at] & 0xC0 == 0x80:
            at += 1
        return at

    first, second = cut(8 * len(text) // 10), cut(9 * len(text) // 10)
    return text[:first], text[first:second], text[second:]


def fingerprint(source: str) -> str:
    return corpus.fingerprint([*parts(source)])


def language_task(
    source: str, model: BackboneConfig, spec: TaskSpec, train: TrainConfig, seed: int,
    device: torch.device,
) -> LanguageTask:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        path.write_bytes(parts(source)[0])
        data = DataConfig(source=str(path), held_out=0.0, seq_len=spec.trained_length)
        config = LanguageConfig(model=model, data=data, train=train, seed=seed)
        return LanguageTask(config, device)


def bits(work: LanguageTask, source: str, spec: TaskSpec) -> dict[str, Any]:
    """Bits per byte in every way of reading; the first, carried or by windows, is the one compared."""
    training, valid, test = parts(source)
    device = work.model.embedding.weight.device
    model, window, tokenizer = work.model, spec.trained_length, ByteTokenizer()
    first = modes_of(model)[0]
    read = {
        mode: bits_per_byte(model, tokenizer, [test], mode, window=window)
        for mode in modes_of(model)
    }
    return {
        "valid": bits_per_byte(model, tokenizer, [valid], first, window=window),
        "tests": {len(test): read | {spec.figure: read[first]}},
        "state_bytes": {
            window: state_bytes(
                model(torch.zeros(1, window - 1, dtype=torch.long, device=device))[1]
            )
        },
        "floors": floors(training, test),
    }
