"""The shared trainer and a domain as a third party would write it: it knows of nothing but the protocol."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_language import (
    CPU,
    KilledError,
    assert_same_runs,
    kill_at,
    rows_of,
)
from torch import Tensor, nn

from titans_domains.checkpoints import latest, load_checkpoint
from titans_domains.domain import Step
from titans_domains.language import DOMAIN
from titans_domains.runs import resume_run, train_run
from titans_domains.train_config import TrainConfig
from titans_domains.training import TrainingModule, train


class Running(NamedTuple):
    total: Tensor
    nothing: None


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(3))
        self.matrix = nn.Parameter(torch.ones(2, 2))


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    train: TrainConfig = field(default_factory=TrainConfig)
    steepness: float = 1.0


class ToyTask:
    """The loss is a multiple of the vector's sum, so that every gradient is known."""

    data_sha256 = None

    def __init__(self, config: ToyConfig) -> None:
        self.config, self.model = config, Weights()
        self.seen: list[tuple[int, float]] = []

    def describe(self) -> str:
        return "three numbers"

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        number, rows = 0 if cursor is None else cursor["next"], self.config.train.rows
        while True:
            yield torch.arange(number, number + rows), {"next": number + rows}
            number += rows

    def fresh_state(self) -> Running:
        return Running(torch.zeros(self.config.train.rows), None)

    def step(self, batch: Tensor, state: Running | None) -> Step:
        """Of a single row: every row is a part of its own."""
        total = torch.zeros(1) if state is None else state.total
        self.seen.append((batch.item(), total.item()))
        loss = self.config.steepness * self.model.vector.sum() + 0 * self.model.matrix.sum()
        figures = {"loss": loss.item(), "batch": batch.item()}
        return Step(loss, Running(total + batch, None), 1, figures)

    def validate(self) -> dict[str, float]:
        return {"sum": self.model.vector.sum().item()}

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        (folder / "extra.txt").write_text("toy")


class ToyDomain:
    name = "toy"
    config_type = ToyConfig
    presets = {"one": ToyConfig()}  # noqa: RUF012

    def absolute(self, config: ToyConfig) -> ToyConfig:
        return config

    def task(self, config: ToyConfig, device: torch.device, folder: Path | None = None) -> ToyTask:
        assert folder is None or (folder / "extra.txt").read_text() == "toy"
        self.made = ToyTask(config)
        return self.made


def toy_config(steepness: float = 1.0, **settings: Any) -> ToyConfig:
    settings = {
        "steps": 6, "batch_size": 1, "warmup": 2, "lr": 0.1, "weight_decay": 0.0, "valid_every": 3,
        "checkpoint_every": 2, **settings,
    }  # fmt: skip
    return ToyConfig(train=TrainConfig(**settings), steepness=steepness)


class BrokenTask(ToyTask):
    """Finite until the fourth batch; then what is named is not."""

    broken = ""

    def step(self, batch: Tensor, state: Running | None) -> Step:
        step = super().step(batch, state)
        if batch < 3:
            return step
        if self.broken == "loss":
            return step._replace(loss=step.loss * math.nan)
        if self.broken == "gradient":
            # Infinite at 0, where the root itself is 0.
            return step._replace(loss=step.loss + (0 * self.model.matrix.sum()).sqrt())
        if self.broken == "carried state":
            return step._replace(state=Running(torch.tensor([math.inf]), None))
        if self.broken == "weights":
            self.model.matrix.data.fill_(math.inf)
        return step


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("broken", ["loss", "gradient", "carried state", "weights"])
def test_what_is_not_finite_stops_before_it_is_saved(
    tmp_path: Path, broken: str, accumulate: int
) -> None:
    config = toy_config(accumulate=accumulate, checkpoint_every=1, valid_every=0, max_skipped=0)
    task = BrokenTask(config)
    task.broken = broken
    step = 4 if accumulate == 1 else 2
    kept = tmp_path / f"checkpoints/step-{step - 1:07d}"
    sentence = (
        f"The {broken} of step {step} is not finite, and nothing of it was saved: train anew with a "
        f"smaller train.lr or train.clip; the last good checkpoint is {kept}."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train(task, config.train, tmp_path, device=CPU)
    assert latest(tmp_path / "checkpoints") == kept
    assert task.model.vector.isfinite().all()


def test_what_is_not_finite_before_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    task = BrokenTask(toy_config(checkpoint_every=6, max_skipped=0))
    task.broken = "loss"
    with pytest.raises(ValueError, match="loss of step 4 .* there is no checkpoint yet"):
        train(task, task.config.train, tmp_path, device=CPU)
    assert not (tmp_path / "checkpoints").exists()


class OnceBrokenTask(BrokenTask):
    """As a BrokenTask, but good again after the fourth batch."""

    def step(self, batch: Tensor, state: Running | None) -> Step:
        if batch <= 3:
            return super().step(batch, state)
        return ToyTask.step(self, batch, state)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    tmp_path: Path, broken: str, accumulate: int
) -> None:
    config = toy_config(
        accumulate=accumulate, checkpoint_every=1, valid_every=0, max_skipped=1, warmup=0, clip=0.0
    )
    for name in ("straight", "run"):
        (tmp_path / name).mkdir()
    straight = ToyTask(config)
    train(straight, config.train, tmp_path / "straight", device=CPU)
    task = OnceBrokenTask(config)
    task.broken = broken
    said: list[str] = []
    train(task, config.train, tmp_path / "run", device=CPU, talk=said.append)
    assert sum("was left out: its " + broken in line for line in said) == 1
    assert [row.get("skipped", "") for row in rows_of(tmp_path / "run")] == (
        [""] * (3 // accumulate) + ["1"] * (6 - 3 // accumulate)
    )
    # Its rows have moved on in their documents: what they carried does not fit what comes.
    last_lost = 3
    carried = load_checkpoint(latest(tmp_path / "run/checkpoints"))["carried"][0]
    assert carried.sum() == sum(range(last_lost + 1, 6 * accumulate))
    assert task.model.vector.isfinite().all()
    assert (task.model.vector > straight.model.vector).all()
    # It is counted through a resumption, and one more is too many.
    shutil.rmtree(latest(tmp_path / "run/checkpoints"))
    task.step = BrokenTask.step.__get__(task)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"The {broken} of step 6 .* after 1 steps that were left"):
        train(task, config.train, tmp_path / "run", device=CPU, resume=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["device", "cpu"],
)
def test_too_little_memory_is_said(tmp_path: Path, error: RuntimeError) -> None:
    class LargeTask(ToyTask):
        def step(self, batch: Tensor, state: Running | None) -> Step:
            raise error

    task = LargeTask(toy_config())
    with pytest.raises(MemoryError, match="There is not enough memory to train this: take a"):
        train(task, task.config.train, tmp_path, device=CPU)


class UnevenTask(ToyTask):
    """Batch n has n + 1 tokens and the figure n."""

    def step(self, batch: Tensor, state: Running | None) -> Step:
        step = super().step(batch, state)
        return step._replace(tokens=batch.item() + 1, log={"loss": float(batch)})


def test_the_log_of_a_step_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    task = UnevenTask(toy_config(accumulate=2, valid_every=0, steps=2))
    train(task, task.config.train, tmp_path, device=CPU)
    losses = [float(row["loss"]) for row in rows_of(tmp_path)]
    assert losses == pytest.approx([(0 * 1 + 1 * 2) / 3, (2 * 3 + 3 * 4) / 7])


def test_what_is_carried_goes_on_where_the_model_is(tmp_path: Path) -> None:
    task = ToyTask(toy_config())
    task.model.to("meta")
    module = TrainingModule(task, task.config.train, tmp_path)
    module.on_load_checkpoint(
        {
            "optimizer_states": [{}],
            "lr_schedulers": [{}],
            "carried": (torch.ones(1), None),
            "cursor": {"next": 3},
            "skipped": 0,
            "random": torch.get_rng_state(),
        }  # fmt: skip
    )
    (carried,) = module.carried
    assert isinstance(carried, Running)
    assert carried.total.device.type == "meta"


def test_another_domain_trains_and_goes_on(tmp_path: Path) -> None:
    config, domain = toy_config(), ToyDomain()
    train_run(domain, config, tmp_path / "straight", device=CPU)
    assert domain.made.seen == [(0, 0), (1, 0), (2, 1), (3, 3), (4, 6), (5, 10)]
    with pytest.raises(KilledError):
        train_run(domain, config, tmp_path / "killed", device=CPU, show=kill_at(5))
    resume_run(domain, tmp_path / "killed", asked=config, device=CPU)
    assert domain.made.seen == [(4, 6), (5, 10)]
    assert_same_runs(tmp_path / "straight", tmp_path / "killed")
    assert list(rows_of(tmp_path / "straight")[0]) == ["step", "loss", "batch", "lr", "valid_sum"]
    table = json.loads((tmp_path / "straight/config.json").read_text())
    assert (table["domain"], table["data_sha256"]) == ("toy", None)
    with pytest.raises(ValueError, match="is a run of the domain 'toy', not of 'language'"):
        resume_run(DOMAIN, tmp_path / "killed", device=CPU)


def test_the_optimiser_takes_the_scheduled_steps(tmp_path: Path) -> None:
    # Under a gradient that stays, Adam moves by the learning rate.
    config = toy_config(clip=0.0)
    task = ToyTask(config)
    train(task, config.train, tmp_path, device=CPU)
    moved = 0.1 * sum(config.train.rate(step) for step in range(6))
    assert task.model.vector.tolist() == pytest.approx([-moved] * 3, rel=1e-5)
    rates = [float(row["lr"]) for row in rows_of(tmp_path)]
    assert rates == pytest.approx([0.1 * config.train.rate(step) for step in range(6)])
    assert task.model.matrix.tolist() == [[1, 1], [1, 1]]


def test_only_matrices_decay(tmp_path: Path) -> None:
    config = toy_config(steepness=0.0, weight_decay=0.5)
    task = ToyTask(config)
    task.model.vector.data.fill_(1)
    train(task, config.train, tmp_path, device=CPU)
    left = math.prod(1 - 0.5 * 0.1 * config.train.rate(step) for step in range(6))
    assert task.model.matrix.flatten().tolist() == pytest.approx([left] * 4)
    assert task.model.vector.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 10 * 3**0.5), (0.5, 0.5), (100.0, 10 * 3**0.5)])
def test_the_gradient_is_clipped_to_a_norm(tmp_path: Path, clip: float, norm: float) -> None:
    task = ToyTask(toy_config(steepness=10.0, clip=clip))
    train(task, task.config.train, tmp_path, device=CPU)
    assert task.model.vector.grad is not None
    assert task.model.vector.grad.norm().item() == pytest.approx(norm, rel=1e-4)
