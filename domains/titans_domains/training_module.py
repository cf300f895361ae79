"""A task under Lightning: what a step is, in parts and processes, and what of it is carried and saved."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from titans_core import decay_groups, detach, map_state
from titans_core.sequence import sum_gradients
from titans_core.state import named_tensors
from titans_domains import ranks
from titans_domains.checkpoints import complete, rebuild
from titans_domains.domain import Task
from titans_domains.parts import Part, put_together
from titans_domains.rows import Share, in_order
from titans_domains.sharding import shard, whole
from titans_domains.train_config import TrainConfig
from titans_domains.weights import configuration_of


class SkippedError(Exception):
    """Leaves a step out, before the optimiser has done anything."""


class TrainingModule(LightningModule):
    """A task under Lightning. Carries each row's state from step to step, and into checkpoints.

    A step whose loss or gradient is not finite is left out and counted in `skipped`, and the rows go on with
    fresh states in the middle of their documents; more than `max_skipped` of them, or weights or states
    that are not finite, end the training before any of it is saved in `folder`.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        folder: Path,
        *,
        sharded: bool = False,
        sequence_ranks: int = 1,
    ) -> None:
        super().__init__()
        self.model = task.model
        self.task, self.config, self.folder, self.sharded = task, config, folder, sharded
        # Of neighbours that share the time of the same rows, the first keeps the states.
        line, self.place = divmod(ranks.rank(), sequence_ranks)
        self.line_length = sequence_ranks
        self.share = Share(config.accumulate, line, ranks.world() // sequence_ranks)
        self.is_alone = config.accumulate * ranks.world() == 1
        self.seed = torch.initial_seed()
        self.is_asked: Callable[[], int] = lambda: 0
        self.like: Any = None
        self.carried: list[Any] = [None] * config.accumulate  # a state for each part of a step
        self.cursor: dict[str, Any] | None = None
        self.batches: Iterator[Any] | None = None
        self.skipped = 0
        self.valid: dict[str, float] = {}

    def configure_model(self) -> None:
        if self.sharded and self.like is None:
            # Made while parameters are whole: what is carried is rebuilt after it.
            self.like = map_state(lambda x: x.to("meta"), self.task.fresh_state())
            shard(self)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            decay_groups(self.model, self.config.weight_decay), lr=self.config.lr, betas=(0.9, 0.95)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.config.rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> Iterator[Any]:
        batches = self.task.batches(None) if self.batches is None else self.batches
        while True:
            try:
                batch, cursor = next(batches)
                parts = self.share.of(batch)
            except StopIteration:
                return
            except ValueError as error:
                # All processes go through the same data.
                raise ranks.together(error) from None
            yield from ((part, cursor) for part in parts)

    def training_step(self, item: Any, index: int) -> Tensor:
        batch, self.cursor = item
        number = index % self.config.accumulate
        if number == 0:
            self.odd = ""
            self.parts: list[Part] = []
            if ranks.world() > 1:
                # So that dropout differs, and is what it would be in a run that goes on here.
                torch.manual_seed(ranks.seed_of(self.seed, self.global_step))
        step = self.task.step(batch, placed(self.carried[number], self._home()))
        self.carried[number] = placed(detach(step.state), self._waiting_room())
        weight = step.tokens if step.weight is None else step.weight
        odd = bool(weight or self.is_alone) and not step.loss.isfinite().all()
        self.parts.append(Part(weight, step.tokens, odd, step.log))
        if self.is_alone:
            return step.loss
        # A sum over what counts; where nothing does, the mean may be 0 / 0.
        return weight * step.loss if weight else 0 * step.loss.nan_to_num()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.step = put_together(self.parts, self.is_asked())
        if self.step.is_odd:
            self.odd = "loss"
        if self.line_length > 1:
            sum_gradients(self.model.parameters())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not self.is_alone:
            # Lightning has divided by the number of parts, and its strategies by that of processes.
            divided = self.share.parts * (self.share.world if self.line_length == 1 else 1)
            scale = divided / (self.step.weight or 1)
            torch._foreach_mul_(gradients, scale)
        if not self.odd and not is_finite(gradients):
            self.odd = "gradient"
        if self.odd:
            raise SkippedError

    def optimizer_step(self, *args: Any, **named: Any) -> None:
        try:
            super().optimizer_step(*args, **named)
        except SkippedError:
            # Its rows have moved on in their documents, and what was carried has not.
            self.carried = self._afresh()
            self.skipped += 1
            if self.skipped > self.config.max_skipped:
                error = self._not_finite(self.odd, self.global_step + 1)
                raise ranks.together(error) from None

    def _afresh(self) -> list[Any]:
        """A state for each part of a step, as before the first."""
        with whole(self):
            return self._own(detach(self.task.fresh_state()))

    def _own(self, state: Any) -> list[Any]:
        """Of a state of all rows, what this process carries for each part of a step."""
        room = self._waiting_room()
        return [None if self.place else placed(part, room) for part in self.share.states_of(state)]

    def validate_task(self) -> dict[str, float]:
        """The task's figures; all processes make them, so that none waits long for another."""
        with whole(self):
            return self.task.validate()

    def sample_task(self) -> str | None:
        with whole(self):
            return self.task.sample()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step = self.global_step
        with ranks.agreed():
            self._check_finite("weights", checkpoint["state_dict"].values(), step)
            self._check_finite("carried state", named_tensors(tuple(self.carried)).values(), step)
        checkpoint["configuration"] = configuration_of(self.model)
        checkpoint["valid"] = self.valid
        checkpoint["skipped"] = self.skipped
        checkpoint["carried"] = self._carried_rows()
        checkpoint["cursor"] = self.cursor
        checkpoint["random"] = torch.get_rng_state()

    def _carried_rows(self) -> Any:
        """The state of all rows, on the first process."""
        everyones = [self.carried] if ranks.world() == 1 else ranks.gathered(tuple(self.carried))
        return in_order(everyones[:: self.line_length]) if everyones else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not (checkpoint["optimizer_states"] and checkpoint["lr_schedulers"]):
            raise LookupError("it has no optimiser")
        like = self.task.fresh_state() if self.like is None else self.like
        self.carried = self._own(rebuild(checkpoint["carried"], like))
        self.cursor, self.skipped = checkpoint["cursor"], checkpoint["skipped"]
        # Here, so that a cursor that does not fit is refused before the log is touched.
        self.batches = self.task.batches(self.cursor)
        torch.set_rng_state(checkpoint["random"])

    def _waiting_room(self) -> torch.device:
        """Where a state is until its part's next turn: of a step in many parts that is a long time."""
        return self._home() if self.config.accumulate == 1 else torch.device("cpu")

    def _home(self) -> torch.device:
        return next(self.model.parameters()).device

    def _check_finite(self, what: str, tensors: Iterable[Tensor], step: int) -> None:
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


def placed(state: Any, device: torch.device) -> Any:
    return map_state(lambda x: x.to(device), state)


def is_finite(gradients: list[Tensor]) -> bool:
    norm = torch.nn.utils.get_total_norm(gradients)
    # Of gradients that are shared out, so is their norm.
    return bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite())
