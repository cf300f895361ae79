"""One cell: a system trained on a task from one seed at one learning rate, and asked."""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from titans_core import count_parameters, state_bytes
from titans_domains.config import to_dict
from titans_domains.language.corpus import EMBEDDED
from titans_domains.language.event_memory import EventMemory
from titans_domains.language.events import EventSettings
from titans_domains.language.scoreboard.systems import SYSTEMS, backbone
from titans_domains.language.scoreboard.tasks import TASKS, TaskSpec
from titans_domains.language.scoreboard.texts import bits, language_task
from titans_domains.language.suites.problem import PIECE
from titans_domains.language.suites.task import SuiteConfig, SuiteTask
from titans_domains.language.task import LanguageTask
from titans_domains.runs import made_with, peak_memory_mib
from titans_domains.train_config import TrainConfig

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    task: str
    system: str
    size: str
    seed: int
    lr: float
    device: str = "cpu"
    quick: bool = False  # a few steps and rows, to see that it runs
    data: str | None = None  # SHA-256 of the text, of a language task

    @property
    def spec(self) -> TaskSpec:
        spec = TASKS[self.task]
        if not self.quick:
            return spec
        return replace(
            spec, steps=3, tests=spec.tests[:1], test_rows=2, fewest_rows=2, test_tokens=0
        )

    @property
    def name(self) -> str:
        quick = ", quick" if self.quick else ""
        return f"{self.task}, {self.system}, lr {self.lr:g}, seed {self.seed}{quick}"


def run(cell: Cell, text: str = EMBEDDED) -> Figures:
    """The cell's figures and all that made them. A training that diverges is a result: no figures."""
    spec, device = cell.spec, torch.device(cell.device)
    config = backbone(cell.system, cell.size)
    began = time.perf_counter()
    rows: list[Figures] = []
    result: Figures = {
        **stamp(cell),
        "protocol": "trained on the task",
        "made_with": made_with(device),
    }
    settings = training(spec, cell)
    work: SuiteTask | LanguageTask
    if spec.problem is None:
        work = language_task(text, config, spec, settings, cell.seed, device)
    else:
        data = SuiteConfig(
            lengths=spec.lengths, batch_tokens=spec.batch_tokens, steps=spec.steps, seed=cell.seed
        )
        work = SuiteTask(config, spec.problem(), data, device)
    result["parameters"] = count_parameters(work.model.backbone)
    result["added_parameters"] = count_parameters(work.model) - result["parameters"]
    before = peak_memory_mib(device)
    try:
        fit(work, settings, rows, device)
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return result | {"diverged": str(error), "valid": None, "tests": {}}
    # Lightning leaves it on the CPU.
    work.model.to(device)
    peak = peak_memory_mib(device)
    result["training_memory_mib"] = None if peak is None or before is None else peak - before
    result["minutes"] = (time.perf_counter() - began) / 60
    result["tokens_per_s"] = median(row["tokens_per_s"] for row in rows[len(rows) // 5 :])
    if isinstance(work, LanguageTask):
        return result | bits(work, text, spec)
    return result | asked(work, spec, cell)


def stamp(cell: Cell) -> Figures:
    """What a cell's figures are of: with another task or model they are another cell's."""
    model = to_dict(backbone(cell.system, cell.size))
    return dict(
        json.loads(
            json.dumps({"cell": asdict(cell), "spec": cell.spec.described(), "model": model})
        )
    )


def fit(
    work: SuiteTask | LanguageTask, settings: TrainConfig, rows: list[Figures], device: torch.device
) -> None:
    # Lightning takes seconds to import, which is too long for those that only read results.
    from titans_domains.training import train

    with tempfile.TemporaryDirectory() as folder:
        show = lambda step, row: rows.append(row)  # noqa: E731
        train(work, settings, Path(folder), device=device, show=show)


def training(spec: TaskSpec, cell: Cell) -> TrainConfig:
    return TrainConfig(
        steps=spec.steps, lr=cell.lr, warmup=max(1, spec.steps // 20), valid_every=0,
        batch_size=spec.batch_tokens // spec.trained_length, checkpoint_every=spec.steps,
        **spec.train,
    )  # fmt: skip


def asked(work: SuiteTask, spec: TaskSpec, cell: Cell) -> Figures:
    """Figures at every tested length, and the bytes of state that a row has there."""
    valid = work.scores(spec.trained_length, spec.test_rows, "valid")
    loss = work.loss(spec.trained_length, spec.test_rows, "valid")
    if SYSTEMS[cell.system].retrieves:
        work.model = EventMemory(work.model, retrieval(spec.trained_length))
    tests, states = {}, {}
    # A call that goes on from a cache needs a mask of all of it, which takes three times as long.
    whole = SYSTEMS[cell.system].growing and not SYSTEMS[cell.system].retrieves
    for length in spec.tests:
        rows = max(spec.fewest_rows, min(spec.test_rows, spec.test_tokens // length))
        tests[length] = {
            **work.scores(
                length, rows, batch_tokens=spec.test_batch_tokens, piece=length if whole else PIECE
            ),
            "rows": rows,
        }
        # A segment's cache is empty at its end, and largest one token before.
        states[length] = max(state_of(work, length, read) for read in (length - 1, length))
    return {
        "valid": 1 - valid[spec.figure], "valid_loss": loss, "tests": tests, "state_bytes": states,
        "chance": work.problem.chance if spec.figure == "accuracy" else None,
    }  # fmt: skip


def retrieval(trained_length: int) -> EventSettings:
    """EM-LLM sees half of the trained length at its places, and about as much of looked-up events."""
    local = max(16, trained_length // 2)
    return EventSettings(
        local=local, sinks=4, block=local // 8, similar=6, contiguous=2, min_event=2,
        max_event=local // 8, surprise_window=local,
    )  # fmt: skip


@torch.no_grad()
def state_of(work: SuiteTask, length: int, read: int) -> int:
    """Bytes of one row's state after so many of its tokens."""
    inputs = work.problem.draw(1, length, "valid").inputs[:, :read].to(work.device)
    state = None
    for piece in inputs.split(PIECE, 1):
        _, state = work.model(piece, state)
    return state_bytes(state)
