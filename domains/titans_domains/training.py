"""Trains any domain's task with Lightning: schedule, log, samples, checkpoints and exact resumption.

One process does it, or several that share the rows of every step: see `titans_domains.rows`.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from titans_core.files import remove_drafts, sha256_of
from titans_domains import ranks
from titans_domains.blocks import set_blocks
from titans_domains.checkpoints import (
    REST,
    WEIGHTS,
    complete,
    latest,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
    settle,
    step_name,
)
from titans_domains.domain import Task
from titans_domains.ending import Save, in_a_sentence
from titans_domains.followers import Followers
from titans_domains.launch import local_processes
from titans_domains.log import Log
from titans_domains.sharding import Sharded
from titans_domains.train_config import TrainConfig
from titans_domains.training_module import TrainingModule
from titans_domains.weights import load_weights


class CheckpointFolder(CheckpointIO):
    """Lightning's checkpoint as a folder of `titans_domains.checkpoints`."""

    def __init__(self, keep_last: int) -> None:
        self.keep_last = keep_last

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path), keep_last=self.keep_last)

    def load_checkpoint(self, path: Any, map_location: Any = None, **_: Any) -> dict[str, Any]:
        checkpoint = load_checkpoint(Path(path))
        if ranks.is_first():
            settle(Path(path), checkpoint.get("valid", {}), keep_last=self.keep_last)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        remove_checkpoint(Path(path))


def train(
    task: Task,
    config: TrainConfig,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    show: Callable[[int, dict[str, Any]], None] = lambda step, row: None,
    talk: Callable[[str], None] = lambda line: None,
    strategy: str = "ddp",
    sequence_ranks: int = 1,
    loggers: Sequence[str] = (),
) -> None:
    """Trains until `config.steps`, from the start or from the newest checkpoint under `out`.

    All processes that have met (see `ranks.meeting`) call it, and share the work by `strategy`. Of a task
    that shares the time of rows too, `sequence_ranks` neighbours do.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    if not ranks.is_first():
        show, talk = lambda step, row: None, lambda line: None
    folder = out / "checkpoints"
    newest = begin(task, config, out, resume=resume, talk=talk)
    with ranks.agreed():
        set_blocks(task.model, config)
    save = Save(folder, config, talk)
    sharded = strategy == "sharded" and ranks.world() > 1
    followers = Followers(out, loggers)
    trainer = Trainer(
        precision="bf16-mixed" if config.precision == "bf16" else None,
        max_steps=config.steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip or None,
        # Saving follows logging, so that a checkpoint never lacks a row of the log.
        callbacks=[Log(out, config, show, talk, followers), save],
        plugins=[CheckpointFolder(config.keep_last), *plugins(config)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **placement(device, sharded=sharded, sequence_ranks=sequence_ranks),
    )
    with in_a_sentence(out, newest, save), followers:
        trainer.fit(
            TrainingModule(task, config, folder, sharded=sharded, sequence_ranks=sequence_ranks),
            ckpt_path=None if newest is None else str(newest),
        )


def begin(
    task: Task, config: TrainConfig, out: Path, *, resume: bool, talk: Callable[[str], None]
) -> Path | None:
    """The checkpoint to go on from, its weights in the model; None for the start."""
    folder = out / "checkpoints"
    with ranks.agreed():
        if ranks.is_first():
            remove_drafts(out)
    # A run that was stopped before its first checkpoint goes on from its start.
    newest = latest(folder) if resume and complete(folder) else None
    ranks.check_alike(
        {
            "checkpoint": newest and [newest.name, sha256_of(newest / REST)],
            "the weights' sum": total_of(task.model),
        }
    )
    if config.precision == "float64":
        task.model.double()
    if resume and newest is None:
        talk(f"There is no checkpoint in {folder} yet: training from the start.")
    if newest is not None:
        with ranks.agreed():
            # Lightning would load them too, but with an error of many lines for another model's.
            load_weights(task.model, newest / WEIGHTS)
        if newest.name == step_name(config.steps):
            with ranks.agreed():
                # All of it is whole, or nothing is said but that.
                load_checkpoint(newest)
            talk(f"{out} is trained to its last step, {config.steps}: nothing is left to do.")
    return newest


def total_of(model: torch.nn.Module) -> float:
    return sum(p.detach().double().abs().sum().item() for p in model.parameters())


def plugins(config: TrainConfig) -> list[Any]:
    precision = {"float32": [], "bf16": [], "float64": [DoublePrecision()]}[config.precision]
    return [*precision, *([TorchElasticEnvironment()] if ranks.world() > 1 else [])]


class Apart(DDPStrategy):
    """Processes whose gradients nobody averages: the module sums them itself."""

    def configure_ddp(self) -> None:
        """Nothing: a module that waits for its neighbours must not be made to wait for buckets too."""


def placement(device: torch.device, *, sharded: bool, sequence_ranks: int) -> dict[str, Any]:
    """What Lightning's trainer is told of devices and processes."""
    kind = "gpu" if device.type == "cuda" else "cpu"
    if ranks.world() == 1:
        return {
            "accelerator": kind,
            "devices": [device.index or 0] if device.type == "cuda" else 1,
        }
    here = local_processes()
    kind_of = DDPStrategy if sequence_ranks == 1 else Apart
    return {
        "accelerator": kind,
        "devices": here,
        "num_nodes": ranks.world() // here,
        "strategy": Sharded() if sharded else kind_of(timeout=ranks.WAIT),
    }
