"""Training a classifier as a task of the shared trainer, and without it until validation gets worse.

n sequences, T tokens, C classes or labels.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titans_core import count_parameters, decay_groups
from titans_core.files import write_tensors
from titans_domains.dna.encoder import ModelConfig
from titans_domains.dna.examples import (
    ExampleBatch,
    Examples,
    Weights,
    chances,
    class_weights,
    classification_loss,
    in_order,
    padded,
    shuffled,
)
from titans_domains.dna.metrics import scores
from titans_domains.dna.model import SequenceNetwork
from titans_domains.dna.tokenizers import DnaTokenizer, save_tokenizer
from titans_domains.domain import Step
from titans_domains.ranks import is_first
from titans_domains.report import Floors
from titans_domains.train_config import TrainConfig
from titans_domains.weights import header_of, make_model

BEST, CLASSES = "best.safetensors", "classes.json"


def build(
    config: ModelConfig,
    tokenizer: DnaTokenizer,
    outputs: int,
    *,
    device: torch.device,
) -> SequenceNetwork:
    return make_model(lambda: SequenceNetwork(config, tokenizer, outputs), device).to(device)


@torch.no_grad()
def logits_of(model: SequenceNetwork, tokens: list[Int[np.ndarray, " T"]]) -> Float[Tensor, "n C"]:
    """Logits in the order of the sequences, on the CPU."""
    was_training = model.training
    model.eval()
    found = torch.empty(len(tokens), model.outputs)
    for rows, part in in_order(tokens):
        ids, mask = padded(part, model.out.weight.device)
        found[rows] = model(ids, mask).float().cpu()
    model.train(was_training)
    return found


class ClassifyTask:
    """A classifier, its examples and its loss; follows `titans_domains.domain.Task`.

    The weights with the lowest loss on the validation examples are kept in `best`, and in the run's
    folder where there is one.
    """

    def __init__(
        self,
        model: SequenceNetwork,
        train: Examples,
        valid: Examples | None,
        *,
        tokenizer: DnaTokenizer,
        classes: Sequence[Any],
        batch_size: int,
        seed: int,
        smoothing: float = 0.0,
        weights: Weights = None,
        length: int = 0,
        data_sha256: str | None = None,
        folder: Path | None = None,
    ) -> None:
        shortest, config = min(map(len, train.tokens)), model.config
        # The stem's norms take mean and variance over a batch's places.
        if batch_size == 1 and config.direction == "both" and shortest <= config.stem.pool:
            raise ValueError(
                f"batch_size must be at least 2 for sequences as short as {shortest} tokens: got 1."
            )
        self.model, self.train, self.valid = model, train, valid
        self.tokenizer, self.classes, self.length = tokenizer, classes, length
        self.batch_size, self.seed, self.smoothing = batch_size, seed, smoothing
        self.weights = class_weights(train, weights, classes)
        self.data_sha256, self.folder = data_sha256, folder
        self.best: dict[str, Tensor] | None = None
        self.lowest = math.inf
        if folder is not None and (folder / BEST).exists():
            self.lowest = _loss_of(folder / BEST)

    @property
    def device(self) -> torch.device:
        return self.model.out.weight.device

    def describe(self) -> str:
        backbone = self.model.config.backbone
        held = 0 if self.valid is None else len(self.valid.tokens)
        return (
            f"{backbone.mixer}, {count_parameters(self.model):,} parameters; "
            f"{len(self.train.tokens):,} sequences to train on, {held:,} for validation, "
            f"{len(self.classes)} {'labels' if self.train.multilabel else 'classes'}"
        )

    def batches(
        self, cursor: dict[str, Any] | None
    ) -> Iterator[tuple[ExampleBatch, dict[str, Any]]]:
        return shuffled(self.train, self.batch_size, self.seed, self.device, cursor)

    def fresh_state(self) -> Any:
        return ()

    def step(self, batch: ExampleBatch, state: Any) -> Step:
        logits = self.model(batch.tokens, batch.mask)
        loss = classification_loss(logits, batch.targets, self.weights, self.smoothing)
        tokens = batch.tokens.numel() if batch.mask is None else int(batch.mask.sum())
        return Step(loss, (), tokens, {"loss": loss.item()}, self._weight(batch))

    def _weight(self, batch: ExampleBatch) -> float:
        """What the loss of a batch is the mean over."""
        if self.weights is None or self.train.multilabel:
            return len(batch.targets)
        return self.weights.to(batch.targets.device)[batch.targets].sum().item()

    def validate(self) -> dict[str, float]:
        """Loss and figures on the validation examples; keeps the weights if the loss is the lowest."""
        if self.valid is None:
            return {}
        figures = self._figures(logits_of(self.model, self.valid.tokens))
        loss = figures["loss"]
        if loss < self.lowest:
            self.lowest = loss
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            if self.folder is not None and is_first():
                self._write_best(self.folder / BEST)
        return figures

    def _figures(self, logits: Float[Tensor, "n C"]) -> dict[str, float]:
        """Loss and scores on the validation examples."""
        assert self.valid is not None
        targets = torch.from_numpy(self.valid.targets)
        loss = classification_loss(logits, targets, self.weights).item()
        proba = chances(logits, multilabel=self.valid.multilabel).numpy()
        return {"loss": loss, **scores(self.valid.targets, proba)}

    def floors(self) -> Floors:
        """What the classes' shares of the training sequences say of every sequence."""
        if self.valid is None:
            return {}
        several = self.train.multilabel
        counts = self.train.targets.sum(0) if several else np.bincount(self.train.targets)
        shares = torch.from_numpy(counts / len(self.train.tokens)).float().clamp(1e-6, 1 - 1e-6)
        logits = (shares.logit() if several else shares.log()).expand(len(self.valid.tokens), -1)
        return {
            f"valid_{name}": {"shares of the classes alone": value}
            for name, value in self._figures(logits).items()
        }

    def _write_best(self, path: Path) -> None:
        assert self.best is not None
        draft = path.with_name(path.name + ".tmp")
        write_tensors(self.best, draft, {"loss": repr(self.lowest), **header_of(self.model)})
        os.replace(draft, path)

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        self.folder = folder
        save_tokenizer(self.tokenizer, folder)
        table = {
            "classes": list(self.classes),
            "multilabel": self.train.multilabel,
            "positions": self.model.config.head.positions,
            "length": self.length,
        }
        (folder / CLASSES).write_text(json.dumps(table) + "\n")


def _loss_of(path: Path) -> float:
    """The loss on the validation examples that the weights in a file had."""
    try:
        with safe_open(path, framework="pt") as file:
            return float(file.metadata()["loss"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: it has no loss. Train anew.") from None


def train_until_worse(
    task: ClassifyTask,
    config: TrainConfig,
    *,
    patience: int,
    show: Callable[[int, dict[str, Any]], None] = lambda step, row: None,
) -> None:
    """Trains for `config.steps`, or until `patience` validations in a row did not lower the loss.

    The model ends with the weights of the lowest loss. Without validation examples it ends with its last.
    """
    model = task.model.train()
    optimizer = torch.optim.AdamW(
        decay_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate)
    waited = 0
    for number, (batch, _) in enumerate(task.batches(None), 1):
        step = task.step(batch, ())
        if not step.loss.isfinite():
            raise ValueError(f"The loss of step {number} is not finite: train with a smaller lr.")
        optimizer.zero_grad()
        step.loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        row = dict(step.log)
        if number == config.steps or (config.valid_every and number % config.valid_every == 0):
            lowest = task.lowest
            row |= {f"valid_{name}": value for name, value in task.validate().items()}
            waited = 0 if task.lowest < lowest else waited + 1
        show(number, row)
        if number == config.steps or (task.valid is not None and waited >= patience):
            break
    if task.best is not None:
        model.load_state_dict(task.best)
    model.eval()
