"""Training without Lightning's talk, and with random states that nobody else notices."""

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from gluonts.torch.model.estimator import TrainOutput
from tqdm import tqdm

LOGGERS = ("lightning.pytorch", "lightning.fabric", "gluonts.torch.model.estimator")


@contextmanager
def quiet() -> Iterator[None]:
    """No hints on devices, loggers and workers; what went wrong is said all the same."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS[:2]:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(LOGGERS[2]).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", ".*LeafSpec.*")
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fixed random states inside, those of before afterwards. Samplers of GluonTS draw from numpy's."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def trainer_settings(asked: dict[str, Any], folder: str, *callbacks: pl.Callback) -> dict[str, Any]:
    """What a Trainer is made with: nothing is left in the working folder, one device, one bar."""
    settings = {
        "default_root_dir": folder,
        "logger": False,
        "devices": 1,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        **asked,
    }
    bar = [Progress()] if "enable_progress_bar" not in asked else []
    # A list of its own: GluonTS takes the callbacks out of the settings.
    settings["callbacks"] = [*asked.get("callbacks", []), *callbacks, *bar]
    return settings


class Progress(pl.Callback):
    """A bar over all steps on a terminal's stderr; nothing elsewhere."""

    bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if sys.stderr.isatty() and total != float("inf"):
            self.bar = tqdm(total=int(total), desc="training", unit="step", leave=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.bar is not None:
            found = {k: f"{v:.3f}" for k, v in trainer.callback_metrics.items()}
            self.bar.set_postfix(found)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()


class Start(pl.Callback):
    """Remembers the network that training began with, and its validation loss."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.loss: float | None = None

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        loader = trainer.val_dataloaders
        if loader is None:
            return
        self.weights = {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
        module.eval()
        total = count = 0.0
        for batch in loader:
            size = len(batch["target"])
            moved = {name: x.to(module.device) for name, x in batch.items()}
            total, count = total + size * module.loss(moved).item(), count + size
        module.train()
        self.loss = total / max(count, 1)

    def keep_if_better(self, trained: TrainOutput) -> None:
        """Brings the start back where no epoch had a lower validation loss."""
        best = trained.trainer.checkpoint_callback.best_model_score
        if self.loss is not None and (best is None or not best < self.loss):
            trained.trained_net.load_state_dict(self.weights)
