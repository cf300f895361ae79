"""Language modelling as a task of the shared trainer, and the runs it leaves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from titans_core import PRESETS, BackboneConfig, count_parameters
from titans_domains.checkpoints import WEIGHTS, chosen
from titans_domains.domain import Step
from titans_domains.language import corpus
from titans_domains.language.evaluate import bits_per_byte, modes_of
from titans_domains.language.floors import floors
from titans_domains.language.generate import as_text, generate
from titans_domains.language.model import LanguageModel, next_token_loss
from titans_domains.language.streams import Batch, Corpus, Hub, Source, Streams
from titans_domains.language.tokenizers import (
    TOKENIZERS,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
)
from titans_domains.report import Floors
from titans_domains.runs import load_run_table
from titans_domains.train_config import TrainConfig
from titans_domains.weights import make_model, read_model

FLOOR_BYTES = 2**19
"""Most training text that n-grams are counted in before a training: about three seconds."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    # embedded, a file, a folder, hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT
    source: str = corpus.EMBEDDED
    tokenizer: str = "bytes"  # bytes, bpe, or the path of a tokenizer file
    vocab_size: int = 4096  # of a BPE that is trained on the corpus
    seq_len: int = 256  # tokens of a sequence
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
    seed: int = 0  # of initial weights and the order of the data

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 or more, and below 2**63: got {self.seed}.")


LANGUAGE_PRESETS: dict[str, LanguageConfig] = {
    "tiny": LanguageConfig(train=TrainConfig(steps=300, batch_size=16, lr=4e-3, valid_every=100)),
    # As benchmarks/tinyshakespeare.py has it, whose figure is in the README.
    "small": LanguageConfig(
        model=PRESETS["small"],
        data=DataConfig(seq_len=512),
        train=TrainConfig(batch_size=8, lr=4e-3, warmup=20),
    ),
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

    def __init__(
        self, config: LanguageConfig, device: torch.device, folder: Path | None = None
    ) -> None:
        self.config = config
        self.valid: list[bytes] = []
        self.data_sha256: str | None = None
        self.bytes_per_token: float | None = None
        self.trained_bytes = 0
        streamed = config.data.source.startswith(corpus.HUB)
        source = self._hub(folder) if streamed else self._corpus(folder)
        self.streams = Streams(
            source,
            rows=config.train.rows,
            length=config.data.seq_len,
            grid=config.model.grid,
        )
        torch.manual_seed(config.seed)
        size = self.tokenizer.vocab_size
        self.model = make_model(lambda: LanguageModel(config.model, size), device).to(device)
        bounded = modes_of(self.model) != ("window",)
        self.carry = bounded if config.train.carry is None else config.train.carry
        if self.carry and not bounded:
            raise ValueError(
                "train.carry needs a state that does not grow: give model.attention.window, or leave "
                "train.carry away."
            )

    def _hub(self, folder: Path | None) -> Source:
        data = self.config.data
        if data.tokenizer == "bpe":
            raise ValueError("A BPE cannot be trained on a streamed data set: give its file.")
        if folder is None:
            # Opens it now, so that a wrong name is said before a run begins.
            first = next(corpus.hub_documents(data.source))
            self.tokenizer: Tokenizer = make_tokenizer(data.tokenizer, data.vocab_size, ())
            self.tokenizer.encode(first)
        else:
            self.tokenizer = load_tokenizer(data.tokenizer, folder)
        if data.tokenizer == "bytes":
            self.bytes_per_token = 1.0
        self.amount = "streamed"
        return Hub(data.source, self.tokenizer)

    def _corpus(self, folder: Path | None) -> Source:
        data = self.config.data
        texts, held_out = read_corpus(data)
        self.data_sha256 = corpus.fingerprint([*texts, *held_out])
        if folder is None:
            self.tokenizer = make_tokenizer(data.tokenizer, data.vocab_size, texts)
        else:
            self.tokenizer = load_tokenizer(data.tokenizer, folder)
        ids = [self.tokenizer.encode(text, self.tokenizer.smallest) for text in texts]
        count = sum(map(len, ids))
        if count < data.seq_len:
            raise ValueError(
                f"{data.source} has {count} tokens for training, fewer than one sequence of "
                f"data.seq_len = {data.seq_len}: give more text or a shorter sequence."
            )
        size = self.trained_bytes = sum(map(len, texts))
        self.bytes_per_token = size / count
        self.amount = f"{size:,} bytes to train on, {sum(map(len, held_out)):,} held out"
        self.valid = corpus.first_bytes(held_out, data.valid_bytes)
        return Corpus(ids, self.tokenizer.end, self.config.train.rows, self.config.seed)

    def describe(self) -> str:
        return (
            f"{self.config.model.mixer}, {count_parameters(self.model):,} parameters; "
            f"{self.config.data.source}, {self.amount}, SHA-256 {(self.data_sha256 or 'unknown')[:16]}"
        )

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return self.streams.batches(cursor)

    def fresh_state(self) -> Any:
        if not self.carry:
            return ()
        backbone = self.model.backbone
        return backbone.put_down(backbone.fresh_state(self.config.train.rows))

    def step(self, batch: Batch, state: Any) -> Step:
        backbone = self.model.backbone
        state = backbone.take_up(state) if self.carry and state is not None else None
        logits, state = self.model(batch.inputs, state, mask=batch.mask, reset=batch.reset)
        loss = next_token_loss(logits, batch.targets, batch.mask)
        tokens = batch.inputs.numel() if batch.mask is None else int(batch.mask.sum())
        state = backbone.put_down(state) if self.carry else ()
        return Step(loss, state, tokens, self.figures(loss))

    def figures(self, loss: torch.Tensor) -> dict[str, float]:
        """What the log has of a mean loss."""
        log = {"loss": loss.item()}
        if self.bytes_per_token is not None:
            log["bits_per_byte"] = log["loss"] / math.log(2) / self.bytes_per_token
        return log

    def over_time(self, group: Any) -> Any:
        """This task where the processes of a group share the time of every row."""
        from titans_domains.language.time_share import TimeShare

        return TimeShare(self, group)

    def validate(self) -> dict[str, float]:
        if not self.valid:
            return {}
        mode, window = modes_of(self.model)[0], self.config.data.seq_len
        bits = bits_per_byte(self.model, self.tokenizer, self.valid, mode, window=window)
        return {"bits_per_byte": bits}

    def floors(self) -> Floors:
        """Of the text that `validate` reads. The n-grams know the training text where that is short."""
        if not any(self.valid) or not self.config.train.valid_every:
            return {}
        known = []
        if self.trained_bytes <= FLOOR_BYTES:
            known = read_corpus(self.config.data)[0]
        return {"valid_bits_per_byte": floors(b"".join(known), *self.valid)}

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

    def absolute(self, config: LanguageConfig) -> LanguageConfig:
        data = config.data
        source, tokenizer = data.source, data.tokenizer
        named = source == corpus.EMBEDDED or source.startswith(corpus.HUB)
        if source and not named and Path(source).exists():
            source = str(Path(source).resolve())
        if tokenizer not in TOKENIZERS and Path(tokenizer).is_file():
            tokenizer = str(Path(tokenizer).resolve())
        return replace(config, data=replace(data, source=source, tokenizer=tokenizer))

    def task(
        self, config: LanguageConfig, device: torch.device, folder: Path | None = None
    ) -> LanguageTask:
        return LanguageTask(config, device, folder)

    def subject(self, run: Path, device: torch.device, checkpoint: str) -> Any:
        from titans_domains.language.inspected import TextSubject

        return TextSubject(*load_run(run, device, checkpoint)[:2])


DOMAIN = LanguageDomain()

HUB_BYTES = 2**20
"""Bytes of a streamed data set that are evaluated; it may have no end."""


def load_run(
    run: Path, device: torch.device, checkpoint: str = "last"
) -> tuple[LanguageModel, Tokenizer, LanguageConfig]:
    """The model of a run at its `last` checkpoint, or at the `best`, by its validation."""
    config, _ = load_run_table(run, DOMAIN)
    tokenizer = load_tokenizer(config.data.tokenizer, run)
    model = read_model(
        lambda: LanguageModel(config.model, tokenizer.vocab_size),
        chosen(run / "checkpoints", checkpoint) / WEIGHTS,
    )
    return model.to(device).eval(), tokenizer, config


def texts_for(
    run: Path, config: LanguageConfig, source: str | None
) -> tuple[list[bytes] | None, list[bytes]]:
    """A run's training texts where they are still there (else None), and the texts to evaluate.

    Without a source the latter are the run's own held-out ones.
    """
    table = load_run_table(run, DOMAIN)[1]
    training = held_out = None
    if not config.data.source.startswith(corpus.HUB):
        try:
            training, held_out = read_corpus(config.data)
        except (OSError, ValueError):
            if source is None:
                raise
        else:
            if corpus.fingerprint([*training, *held_out]) != table["data_sha256"]:
                if source is None:
                    raise ValueError(f"{config.data.source} has changed since {run} was trained.")
                training = None
    if source is not None:
        if source.startswith(corpus.HUB):
            return training, corpus.first_documents(source, HUB_BYTES)
        return training, list(corpus.documents(source))
    if not held_out:
        raise ValueError(f"{run} held no text out: give one with --data.")
    return training, held_out
