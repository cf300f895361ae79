"""Trains any domain's task with Lightning: schedule, log, samples, checkpoints and exact resumption."""

import csv
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from titans_core import decay_groups, detach
from titans_domains.checkpoints import CheckpointFolder, latest, rebuild
from titans_domains.domain import Task


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 1000
    batch_size: int = 16
    lr: float = 2e-3
    min_lr: float = 0.1  # the last learning rate, as a share of the first
    warmup: int = 50  # steps
    weight_decay: float = 0.1
    clip: float = 1.0  # norm of the gradient; 0 for none
    accumulate: int = 1  # batches per step
    precision: Literal["float32", "bf16"] = "float32"
    # Whether a document longer than a sequence goes on with its memory; None: where states are bounded.
    carry: bool | None = None
    valid_every: int = 200  # steps; 0 for never
    sample_every: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1: got {getattr(self, name)}.")
        for name in ("warmup", "valid_every", "sample_every", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be 0 or more: got {getattr(self, name)}.")
        if not self.lr > 0 or not 0 <= self.min_lr <= 1:
            raise ValueError(
                "train.lr must be positive and train.min_lr, its last share, between 0 and 1: got "
                f"{self.lr} and {self.min_lr}."
            )

    def rate(self, step: int) -> float:
        """The share of `lr` at a step: linear warm-up, then a cosine down to `min_lr`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (1 - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class TrainingModule(LightningModule):
    """A task under Lightning. Carries each row's state from batch to batch, and into checkpoints."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        super().__init__()
        self.model = task.model
        self.task, self.config = task, config
        self.carried: Any = None
        self.cursor: dict[str, Any] | None = None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            decay_groups(self.model, self.config.weight_decay), lr=self.config.lr, betas=(0.9, 0.95)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.config.rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> Iterator[Any]:
        return self.task.batches(self.cursor)

    def training_step(self, item: Any, index: int) -> torch.Tensor:
        batch, self.cursor = item
        step = self.task.step(batch, self.carried)
        self.carried = detach(step.state)
        self.last = step
        return step.loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["carried"] = self.carried
        checkpoint["cursor"] = self.cursor
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.carried = rebuild(checkpoint["carried"], self.task.fresh_state())
        self.cursor = checkpoint["cursor"]
        torch.set_rng_state(checkpoint["random"])


class Log(Callback):
    """Metrics to `metrics.csv`, samples to `samples.txt`, and all of it to `show` for the terminal."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        show: Callable[[int, dict[str, Any]], None],
        talk: Callable[[str], None],
    ) -> None:
        self.out, self.config, self.show, self.talk = out, config, show, talk
        self.since, self.tokens = time.perf_counter(), 0
        self.columns: list[str] = []

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        # A checkpoint that cannot be read has been refused by now.
        self.talk(module.task.describe())

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:
        self.columns = trim(self.out / "metrics.csv", trainer.global_step)
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.tokens += module.last.tokens
        if (index + 1) % self.config.accumulate:
            return
        step, config = trainer.global_step, self.config
        now = time.perf_counter()
        row: dict[str, Any] = {
            "step": step,
            **module.last.log,
            "lr": config.lr * config.rate(step - 1),
            "tokens_per_s": round(self.tokens / (now - self.since)),
        }
        last = step == config.steps
        if config.valid_every and (step % config.valid_every == 0 or last):
            row |= {f"valid_{name}": value for name, value in module.task.validate().items()}
        if config.sample_every and (step % config.sample_every == 0 or last):
            row["sample"] = module.task.sample()
        self.write(row)
        self.show(step, row)
        self.since, self.tokens = time.perf_counter(), 0

    def write(self, row: dict[str, Any]) -> None:
        sample = row.get("sample")
        if sample:
            with (self.out / "samples.txt").open("a", encoding="utf-8", newline="") as file:
                file.write(f"--- step {row['step']}\n{sample}\n")
        row = {name: value for name, value in row.items() if name != "sample"}
        path = self.out / "metrics.csv"
        wider = [*self.columns, *(name for name in row if name not in self.columns)]
        if wider != self.columns:
            # A figure that comes for the first time needs a new column, and so a new file.
            rows = [old + [""] * (len(wider) - len(old)) for old in read_table(path)[1:]]
            write_table(path, [wider, *rows])
            self.columns = wider
        with path.open("a", newline="") as file:
            csv.DictWriter(file, wider).writerow(row)


def read_table(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write_table(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def trim(path: Path, step: int) -> list[str]:
    """Drops the rows that a resumed run will write again; gives the names of the columns."""
    header, *rows = read_table(path) or [[]]
    if header:
        write_table(path, [header, *(row for row in rows if int(row[0]) <= step)])
    return header


class Save(Callback):
    """Checkpoints every `checkpoint_every` steps and at the end."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder, self.config = folder, config

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % self.config.accumulate:
            return
        step = trainer.global_step
        if step % self.config.checkpoint_every == 0 or step == self.config.steps:
            trainer.save_checkpoint(self.folder / f"step-{step:07d}")


def train(
    task: Task,
    config: TrainConfig,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    show: Callable[[int, dict[str, Any]], None] = lambda step, row: None,
    talk: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains until `config.steps`, from the start or from the newest checkpoint under `out`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    folder = out / "checkpoints"
    newest = latest(folder) if resume else None
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_steps=config.steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip or None,
        # Saving follows logging, so that a checkpoint never lacks a row of the log.
        callbacks=[Log(out, config, show, talk), Save(folder, config)],
        plugins=[CheckpointFolder()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TrainingModule(task, config), ckpt_path=None if newest is None else str(newest))
