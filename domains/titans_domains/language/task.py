"""Language modelling as a task of the shared trainer, and the runs it leaves."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from titans_core import PRESETS, BackboneConfig
from titans_domains.checkpoints import SCHEMA, WEIGHTS, latest, load_weights, read_json
from titans_domains.config import from_dict, to_dict
from titans_domains.domain import Step
from titans_domains.language import corpus
from titans_domains.language.evaluate import bits_per_byte, modes_of
from titans_domains.language.generate import as_text, generate
from titans_domains.language.model import LanguageModel, next_token_loss
from titans_domains.language.streams import Batch, Corpus, Hub, Source, Streams
from titans_domains.language.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from titans_domains.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = corpus.EMBEDDED  # embedded, a file, a folder, or hf:NAME[:SPLIT]
    sha256: str | None = None  # of the documents; filled in when they are read
    tokenizer: str = "bytes"  # bytes, bpe, or the path of a tokenizer file
    vocab_size: int = 4096  # of a BPE that is trained on the corpus
    seq_len: int = 256
    held_out: float = 0.1  # share of all bytes, the last ones, kept for validation
    valid_bytes: int = 16384  # of the held-out text, for the figure while training

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise ValueError(f"data.seq_len must be at least 1 token: got {self.seq_len}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out must be at least 0 and below 1: got {self.held_out}.")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    model: BackboneConfig = PRESETS["tiny"]
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0


LANGUAGE_PRESETS: dict[str, LanguageConfig] = {
    "tiny": LanguageConfig(train=TrainConfig(steps=300, batch_size=16, lr=4e-3, valid_every=100)),
    "small": LanguageConfig(model=PRESETS["small"]),
    **{
        name: LanguageConfig(
            model=PRESETS[name],
            data=DataConfig(tokenizer="bpe", vocab_size=32_000, seq_len=4096, held_out=0.01),
            # The paper's batch of half a million tokens, its peak learning rates and token counts.
            train=TrainConfig(
                steps=tokens * 10**9 // 2**19, batch_size=8, accumulate=16, lr=lr, warmup=1000,
                precision="bf16", valid_every=1000, checkpoint_every=1000,
            ),
        )
        for name, lr, tokens in (
            ("170m", 3e-3, 15), ("340m", 1.5e-3, 15), ("760m", 1.25e-3, 30), ("1.3b", 7e-4, 100),
        )
    },
}  # fmt: skip


class LanguageTask:
    """A language model, its corpus and its loss; follows `titans_domains.domain.Task`."""

    def __init__(self, config: LanguageConfig, device: torch.device) -> None:
        data, train, model = config.data, config.train, config.model
        held_out: list[bytes] = []
        source: Source
        if data.source.startswith(corpus.HUB):
            if data.tokenizer == "bpe":
                raise ValueError("A BPE cannot be trained on a streamed data set: give its file.")
            # Opens it now, so that a wrong name is said before a run begins.
            next(corpus.hub_documents(data.source))
            self.tokenizer = make_tokenizer(data.tokenizer, data.vocab_size, ())
            source, self.bytes_per_token = Hub(data.source, self.tokenizer), 1.0
        else:
            texts, held_out = read_corpus(data)
            sha256 = corpus.fingerprint([*texts, *held_out])
            if data.sha256 not in (None, sha256):
                raise ValueError(
                    f"{data.source} is not what it was: its SHA-256 is {sha256}, the run's "
                    f"{data.sha256}. Bring back the text, or start another run."
                )
            config = replace(config, data=replace(data, sha256=sha256))
            self.tokenizer = make_tokenizer(data.tokenizer, data.vocab_size, texts)
            ids = [self.tokenizer.encode(text) for text in texts]
            count = sum(map(len, ids))
            if count < data.seq_len:
                raise ValueError(
                    f"{data.source} has {count} tokens for training, fewer than one sequence of "
                    f"data.seq_len = {data.seq_len}: give more text or a shorter sequence."
                )
            self.bytes_per_token = sum(map(len, texts)) / count
            source = Corpus(ids, self.tokenizer.end, train.batch_size, config.seed)
        self.config = config
        self.streams = Streams(source, rows=train.batch_size, length=data.seq_len, grid=model.grid)
        torch.manual_seed(config.seed)
        self.model = LanguageModel(model, self.tokenizer.vocab_size).to(device)
        self.carry = train.carry if train.carry is not None else modes_of(self.model) != ("window",)
        self.valid = corpus.first_bytes(held_out, data.valid_bytes)

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return self.streams.batches(cursor)

    def fresh_state(self) -> Any:
        return self.model.backbone.fresh_state(self.config.train.batch_size)

    def step(self, batch: Batch, state: Any) -> Step:
        state = state if self.carry else None
        logits, state = self.model(batch.inputs, state, mask=batch.mask, reset=batch.reset)
        loss = next_token_loss(logits, batch.targets, batch.mask)
        tokens = batch.inputs.numel() if batch.mask is None else int(batch.mask.sum())
        nats = loss.item()
        bits = nats / math.log(2) / self.bytes_per_token
        return Step(
            loss,
            state if self.carry else (),
            tokens,
            {"loss": nats, "bits_per_byte": bits},
        )

    def validate(self) -> dict[str, float]:
        if not self.valid:
            return {}
        mode, window = modes_of(self.model)[0], self.config.data.seq_len
        bits = bits_per_byte(self.model, self.tokenizer, self.valid, mode, window=window)
        return {"bits_per_byte": bits}

    def sample(self) -> str:
        return "".join(as_text(generate(self.model, self.tokenizer, b"", max_tokens=200, seed=0)))

    def save_extras(self, folder: Path) -> None:
        self.tokenizer.save(folder)


def read_corpus(data: DataConfig) -> tuple[list[bytes], list[bytes]]:
    """The documents for training and those held out."""
    return corpus.split_documents(list(corpus.documents(data.source)), data.held_out)


class LanguageDomain:
    """Text: language modelling in bits per byte."""

    name = "language"
    config_type = LanguageConfig
    presets = LANGUAGE_PRESETS

    def task(self, config: LanguageConfig, device: torch.device) -> LanguageTask:
        return LanguageTask(config, device)


def write_run(task: LanguageTask, out: Path) -> None:
    """The run's configuration and tokenizer, from which `load_run` builds the model again."""
    table = {"schema": SCHEMA, "domain": "language", "config": to_dict(task.config)}
    (out / "config.json").write_text(json.dumps(table, indent=2) + "\n")
    task.save_extras(out)


def load_config(run: Path) -> LanguageConfig:
    """The configuration of a run; ValueError where `run` is none, or of another domain."""
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {str(run)!r}.")
    table = read_json(run / "config.json")
    if table.get("domain") != "language":
        raise ValueError(f"{run} is a run of the domain {table.get('domain')!r}, not of language.")
    return from_dict(LanguageConfig, table.get("config"))


def load_run(run: Path, device: torch.device) -> tuple[LanguageModel, Tokenizer, LanguageConfig]:
    """The model of a run at its newest checkpoint."""
    config = load_config(run)
    tokenizer = load_tokenizer(config.data.tokenizer, run)
    model = LanguageModel(config.model, tokenizer.vocab_size)
    load_weights(model, latest(run / "checkpoints") / WEIGHTS)
    return model.to(device).eval(), tokenizer, config
