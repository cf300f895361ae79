"""Trains any domain's task with Lightning: schedule, log, samples, checkpoints and exact resumption."""

import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO

from titans_core import decay_groups, detach, map_state
from titans_core.state import named_tensors
from titans_domains.checkpoints import (
    WEIGHTS,
    complete,
    configuration_of,
    latest,
    load_checkpoint,
    load_weights,
    rebuild,
    save_checkpoint,
    step_name,
)
from titans_domains.domain import Task
from titans_domains.log import Log
from titans_domains.train_config import TrainConfig


class TrainingModule(LightningModule):
    """A task under Lightning. Carries each row's state from batch to batch, and into checkpoints.

    What is not finite ends the training before any of it is saved in `folder`.
    """

    def __init__(self, task: Task, config: TrainConfig, folder: Path) -> None:
        super().__init__()
        self.model = task.model
        self.task, self.config, self.folder = task, config, folder
        self.carried: Any = None
        self.cursor: dict[str, Any] | None = None
        self.batches: Iterator[Any] | None = None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            decay_groups(self.model, self.config.weight_decay), lr=self.config.lr, betas=(0.9, 0.95)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.config.rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> Iterator[Any]:
        return self.task.batches(None) if self.batches is None else self.batches

    def training_step(self, item: Any, index: int) -> torch.Tensor:
        batch, self.cursor = item
        step = self.task.step(batch, self.carried)
        self._check_finite("loss", [step.loss], self.global_step + 1)
        self.carried = detach(step.state)
        self.last = step
        return step.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._check_finite("gradient", [norm], self.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step, carried = self.global_step, named_tensors(self.carried)
        self._check_finite("weights", checkpoint["state_dict"].values(), step)
        self._check_finite("carried state", carried.values(), step)
        checkpoint["configuration"] = configuration_of(self.model)
        checkpoint["carried"] = self.carried
        checkpoint["cursor"] = self.cursor
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        carried = rebuild(checkpoint["carried"], self.task.fresh_state())
        device = next(self.model.parameters()).device
        self.carried = map_state(lambda x: x.to(device), carried)
        self.cursor = checkpoint["cursor"]
        # Here, so that a cursor that does not fit is refused before the log is touched.
        self.batches = self.task.batches(self.cursor)
        torch.set_rng_state(checkpoint["random"])

    def _check_finite(self, what: str, tensors: Iterable[torch.Tensor], step: int) -> None:
        if all(x.isfinite().all() for x in tensors):
            return
        kept = complete(self.folder)
        raise ValueError(
            f"The {what} of step {step} is not finite, and nothing of it was saved: train anew with "
            "a smaller train.lr or train.clip; "
            + (
                f"the last good checkpoint is {kept[-1]}."
                if kept
                else "there is no checkpoint yet."
            )
        )


class CheckpointFolder(CheckpointIO):
    """Lightning's checkpoint as a folder of `titans_domains.checkpoints`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, **_: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


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
            trainer.save_checkpoint(self.folder / step_name(step))


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
    # A run that was stopped before its first checkpoint goes on from its start.
    newest = latest(folder) if resume and complete(folder) else None
    if resume and newest is None:
        talk(f"There is no checkpoint in {folder} yet: training from the start.")
    if newest is not None:
        # Lightning would load them too, but with an error of many lines for another model's.
        load_weights(task.model, newest / WEIGHTS)
        if newest.name == step_name(config.steps):
            talk(f"{out} is trained to its last step, {config.steps}: nothing is left to do.")
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
    try:
        trainer.fit(
            TrainingModule(task, config, folder),
            ckpt_path=None if newest is None else str(newest),
        )
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning makes an exit of it.
        raise KeyboardInterrupt from None
