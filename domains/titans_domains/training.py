"""Trains any domain's task with Lightning: schedule, log, samples, checkpoints and exact resumption."""

import errno
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO

from titans_core import decay_groups, detach, map_state
from titans_core.files import remove_drafts
from titans_core.state import named_tensors
from titans_domains.checkpoints import (
    WEIGHTS,
    complete,
    latest,
    load_checkpoint,
    rebuild,
    remove_checkpoint,
    save_checkpoint,
    settle,
    step_name,
)
from titans_domains.domain import Task
from titans_domains.log import Log
from titans_domains.train_config import TrainConfig
from titans_domains.weights import configuration_of, load_weights


class SkippedError(Exception):
    """Leaves a step out, before the optimiser has done anything."""


class TerminatedError(SystemExit):
    """The end of a process that was asked to end, after its checkpoint."""


class TrainingModule(LightningModule):
    """A task under Lightning. Carries each row's state from batch to batch, and into checkpoints.

    A step whose loss or gradient is not finite is left out, with the states that its batches would have
    left, and counted in `skipped`; more than `max_skipped` of them, or weights or states that are not
    finite, end the training before any of it is saved in `folder`.
    """

    def __init__(self, task: Task, config: TrainConfig, folder: Path) -> None:
        super().__init__()
        self.model = task.model
        self.task, self.config, self.folder = task, config, folder
        self.carried: Any = None
        self.cursor: dict[str, Any] | None = None
        self.batches: Iterator[Any] | None = None
        self.skipped = 0
        self.valid: dict[str, float] = {}

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
        if index % self.config.accumulate == 0:
            self.before, self.odd = self.carried, ""
        step = self.task.step(batch, self.carried)
        if not step.loss.isfinite().all():
            self.odd = "loss"
        self.carried = detach(step.state)
        self.last = step
        return step.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not self.odd and not torch.nn.utils.get_total_norm(gradients).isfinite():
            self.odd = "gradient"
        if self.odd:
            raise SkippedError

    def optimizer_step(self, *args: Any, **named: Any) -> None:
        try:
            super().optimizer_step(*args, **named)
        except SkippedError:
            self.carried = self.before
            self.skipped += 1
            if self.skipped > self.config.max_skipped:
                raise self._not_finite(self.odd, self.global_step + 1) from None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step, carried = self.global_step, named_tensors(self.carried)
        self._check_finite("weights", checkpoint["state_dict"].values(), step)
        self._check_finite("carried state", carried.values(), step)
        checkpoint["configuration"] = configuration_of(self.model)
        checkpoint["valid"] = self.valid
        checkpoint["skipped"] = self.skipped
        checkpoint["carried"] = self.carried
        checkpoint["cursor"] = self.cursor
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not (checkpoint["optimizer_states"] and checkpoint["lr_schedulers"]):
            raise LookupError("it has no optimiser")
        carried = rebuild(checkpoint["carried"], self.task.fresh_state())
        device = next(self.model.parameters()).device
        self.carried = map_state(lambda x: x.to(device), carried)
        self.cursor, self.skipped = checkpoint["cursor"], checkpoint["skipped"]
        # Here, so that a cursor that does not fit is refused before the log is touched.
        self.batches = self.task.batches(self.cursor)
        torch.set_rng_state(checkpoint["random"])

    def _check_finite(self, what: str, tensors: Iterable[torch.Tensor], step: int) -> None:
        if not all(x.isfinite().all() for x in tensors):
            raise self._not_finite(what, step)

    def _not_finite(self, what: str, step: int) -> ValueError:
        kept = complete(self.folder)
        return ValueError(
            f"The {what} of step {step} is not finite, and nothing of it was saved"
            + (f", after {self.skipped - 1} steps that were left out" if self.skipped > 1 else "")
            + ": train anew with a smaller train.lr or train.clip; "
            + (
                f"the last good checkpoint is {kept[-1]}."
                if kept
                else "there is no checkpoint yet."
            )
        )


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
        settle(Path(path), checkpoint.get("valid", {}), keep_last=self.keep_last)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        remove_checkpoint(Path(path))


class Save(Callback):
    """Checkpoints every `checkpoint_every` steps, at the end, and when the process is asked to end.

    SIGTERM and the first Ctrl-C take effect after the step that is being trained, and its checkpoint.
    """

    def __init__(self, folder: Path, config: TrainConfig, talk: Callable[[str], None]) -> None:
        self.folder, self.config, self.talk = folder, config, talk
        self.asked = 0
        self.begun = False  # whether the checkpoint that is gone on from was taken up

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:
        self.begun = True
        # Lightning puts back what was there before it began. Other threads cannot be asked.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # A process in the background, or under nohup, does not want to hear of it.
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % self.config.accumulate:
            return
        step = trainer.global_step
        due = step % self.config.checkpoint_every == 0 or step == self.config.steps
        if due or self.asked:
            trainer.save_checkpoint(self.folder / step_name(step))
        if not self.asked:
            return
        self.talk(f"stopped after step {step}; its checkpoint is there to go on from with --resume")
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise TerminatedError(128 + signal.SIGTERM)


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
    remove_drafts(out)
    # A run that was stopped before its first checkpoint goes on from its start.
    newest = latest(folder) if resume and complete(folder) else None
    if resume and newest is None:
        talk(f"There is no checkpoint in {folder} yet: training from the start.")
    if newest is not None:
        # Lightning would load them too, but with an error of many lines for another model's.
        load_weights(task.model, newest / WEIGHTS)
        if newest.name == step_name(config.steps):
            talk(f"{out} is trained to its last step, {config.steps}: nothing is left to do.")
    save = Save(folder, config, talk)
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_steps=config.steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip or None,
        # Saving follows logging, so that a checkpoint never lacks a row of the log.
        callbacks=[Log(out, config, show, talk), save],
        plugins=[CheckpointFolder(config.keep_last)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with in_a_sentence(out, newest, save):
        trainer.fit(
            TrainingModule(task, config, folder),
            ckpt_path=None if newest is None else str(newest),
        )


@contextmanager
def in_a_sentence(out: Path, newest: Path | None, save: Save) -> Iterator[None]:
    """What may end a training, and is no fault of ours, in words that say how it can go on."""
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning makes an exit of it.
        raise KeyboardInterrupt from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"There is no room left on the disk for {out}: make some, and go on with --resume from what "
            "was saved."
        ) from None
    except (LookupError, AttributeError, TypeError) as error:
        if newest is None or save.begun:
            raise
        raise ValueError(
            f"{newest} does not fit this run ({type(error).__name__}: {error}): take it away to go on from "
            "the checkpoint before it."
        ) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(
            "There is not enough memory to train this: take a smaller train.batch_size with "
            "train.accumulate, a shorter data.seq_len or a smaller model; what was saved is there to go on "
            "from."
        ) from None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU's allocator, had no more to give."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
