"""Training runs in processes of their own that are killed, and what they were doing when they were."""

import mmap
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_language import CPU, assert_same_runs, rows_of, tiny_config, write_documents

from titans_domains import checkpoints, training
from titans_domains.language import DOMAIN
from titans_domains.language.task import LanguageTask
from titans_domains.log import Log
from titans_domains.runs import resume_run, train_run

SETTINGS = (
    "train.steps=24", "train.checkpoint_every=2", "train.keep_last=1", "train.valid_every=7",
    "train.sample_every=20",
)  # fmt: skip
PHASES = (
    "starting", "loading", "training", "validating", "logging", "saving", "saving: weights and tensors",
    "saving: table", "saving: settling",
)  # fmt: skip
PLACES: dict[str, tuple[tuple[Any, str], ...]] = {
    "loading": ((training, "load_checkpoint"), (training, "load_weights")),
    "validating": ((LanguageTask, "validate"), (LanguageTask, "sample")),
    "logging": ((Log, "write"), (Log, "on_train_start")),
    "saving": ((training, "save_checkpoint"),),
    "saving: weights and tensors": ((checkpoints, "write_tensors"),),
    "saving: table": ((checkpoints, "write_synced"),),
    "saving: settling": ((checkpoints, "settle"),),
}
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")
"""Audit events of what changes files, or begins to; each comes before it is done."""


class Notes:
    """What a process does, in a file that outlives it: its phase, and how often it touched its run."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8)
            self.bytes = mmap.mmap(file.fileno(), 8)

    @property
    def phase(self) -> str:
        return PHASES[self.bytes[0]]

    @phase.setter
    def phase(self, name: str) -> None:
        self.bytes[0] = PHASES.index(name)

    @property
    def operations(self) -> int:
        return int.from_bytes(self.bytes[1:8], "little")

    @operations.setter
    def operations(self, count: int) -> None:
        self.bytes[1:8] = count.to_bytes(7, "little")


def mark(notes: Notes, phase: str, owner: Any, name: str) -> None:
    """Notes the phase whenever the function runs."""
    function: Callable[..., Any] = getattr(owner, name)

    @wraps(function)
    def marked(*args: Any, **named: Any) -> Any:
        before = notes.phase
        notes.phase = phase
        try:
            return function(*args, **named)
        finally:
            notes.phase = before

    setattr(owner, name, marked)


def live(config: Any, out: Path, book: Path, last: int | None) -> None:
    """Trains on, and dies before its `last` operation on the files of the run."""
    notes = Notes(book)
    notes.phase, notes.operations = "starting", 0
    for phase, functions in PLACES.items():
        for owner, name in functions:
            mark(notes, phase, owner, name)
    step = training.TrainingModule.training_step

    def training_step(*args: Any) -> Any:
        notes.phase = "training"
        return step(*args)

    training.TrainingModule.training_step = training_step

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not str(args[0]).startswith(str(out)):
            return
        notes.operations += 1
        if notes.operations == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    torch.set_num_threads(1)
    # Killed before it had a configuration, a run begins anew.
    if (out / "config.json").exists():
        resume_run(DOMAIN, out, device=CPU)
    else:
        train_run(DOMAIN, config, out, device=CPU, force=True)


class Life(NamedTuple):
    phase: str | None  # in which it was killed; None where it came to its end
    operations: int
    seconds: float


def lead(config: Any, out: Path, *, seconds: float = 1e9, last: int | None = None) -> Life:
    """A life of a run, ended after some time or before an operation on its files."""
    context = multiprocessing.get_context("forkserver")
    # Imported once for all that follow.
    context.set_forkserver_preload(["titans_domains.training", "titans_domains.language.task"])
    book = out.with_name(out.name + ".notes")
    notes = Notes(book)
    notes.phase = "starting"
    child = context.Process(target=live, args=(config, out, book, last))
    began = time.perf_counter()
    child.start()
    child.join(min(seconds, 300))
    # It may end, or end itself, at this very moment.
    with suppress(ProcessLookupError):
        child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"the child failed: {child.exitcode}"
    took = time.perf_counter() - began
    return Life(notes.phase if child.exitcode else None, notes.operations, took)


def assert_ended_alike(straight: Path, out: Path) -> None:
    assert_same_runs(straight, out)
    for file in ("samples.txt", "checkpoints/best.json"):
        assert (straight / file).read_bytes() == (out / file).read_bytes()
    assert [p.name for p in checkpoints.complete(straight / "checkpoints")] == [
        p.name for p in checkpoints.complete(out / "checkpoints")
    ]
    assert not list(out.rglob("*.tmp")), "what was half written stays behind"


def kill_often(folder: Path, kills: int, seed: int = 0) -> tuple[int, Counter[str]]:
    """Lives of runs that are killed until they are done, every one compared with one that was not.

    By turns they die at a random operation on their files and at a random time. The number of runs, and
    in which phase the kills were.
    """
    chance = random.Random(seed)
    config = tiny_config(write_documents(folder / "text.jsonl"), *SETTINGS)
    straight = folder / "straight"
    # The first start of all others pays for the imports.
    assert lead(config, straight, seconds=0).phase == "starting"
    whole = lead(config, straight)
    assert whole.phase is None
    assert len(rows_of(straight)) == 24
    phases: Counter[str] = Counter()
    runs = 0
    while phases.total() < kills:
        out = folder / f"run {runs}"
        while True:
            if phases.total() % 2:
                life = lead(config, out, seconds=chance.uniform(0, 0.8 * whole.seconds))
            else:
                life = lead(config, out, last=chance.randint(1, round(0.8 * whole.operations)))
            if life.phase is None:
                break
            phases[life.phase] += 1
            for checkpoint in checkpoints.complete(out / "checkpoints"):
                checkpoints.load_checkpoint(checkpoint)
        assert_ended_alike(straight, out)
        runs += 1
    return runs, phases
