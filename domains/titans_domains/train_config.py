"""How a task is trained; apart from the trainer, whose libraries take seconds to import."""

import math
from dataclasses import dataclass
from typing import Literal

LARGEST = 1e15
"""The optimiser multiplies and divides settings, and the results must be float32."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 1000  # of the optimiser
    batch_size: int = 16  # rows at once, over all processes
    lr: float = 2e-3  # the largest learning rate
    min_lr: float = 0.1  # the last learning rate, as a share of the first
    warmup: int = 50  # steps until the largest learning rate
    weight_decay: float = 0.1  # of AdamW
    clip: float = 1.0  # norm that the gradient is cut to; 0 for none
    accumulate: int = 1  # batches per step, which learns what one of them all would
    precision: Literal["float32", "bf16", "float64"] = "float32"  # with bf16 weights stay float32
    checkpoint_activations: bool = False  # layers keep their input alone, and make the rest again
    compile: bool = False  # layers by torch.compile: minutes before the first step
    # Whether a document longer than a sequence goes on with its memory; None: where states are bounded.
    carry: bool | None = None
    valid_every: int = 200  # steps between validations; 0 for never
    sample_every: int = 0  # steps between samples; 0 for never
    checkpoint_every: int = 200  # steps between checkpoints
    keep_last: int = 2  # checkpoints that stay; the one with the best validation does too
    max_skipped: int = 10  # steps that may be left out because something was not finite

    def __post_init__(self) -> None:
        for name in ("lr", "min_lr", "weight_decay", "clip"):
            if not abs(getattr(self, name)) <= LARGEST:
                raise ValueError(
                    f"train.{name} must be finite and at most {LARGEST:g}: got {getattr(self, name)}."
                )
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1: got {getattr(self, name)}.")
        for name in (
            "warmup", "valid_every", "sample_every", "weight_decay", "clip", "max_skipped",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be 0 or more: got {getattr(self, name)}.")
        if not self.lr > 0 or not 0 <= self.min_lr <= 1:
            raise ValueError(
                "train.lr must be positive and train.min_lr, its last share, between 0 and 1: got "
                f"{self.lr} and {self.min_lr}."
            )

    @property
    def rows(self) -> int:
        """Rows of a whole step, which `Task.batches` gives."""
        return self.batch_size * self.accumulate

    def rate(self, step: int) -> float:
        """The share of `lr` at a step: linear warm-up, then a cosine down to `min_lr`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (1 - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
