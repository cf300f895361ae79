"""Which cells a scoreboard has, and running those that it lacks, each in a process of its own."""

import json
import math
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from titans_domains.language.scoreboard.cell import Cell, Figures, run
from titans_domains.language.scoreboard.systems import SYSTEMS
from titans_domains.language.scoreboard.tasks import BENCHES, TASKS

CELLS = "cells.jsonl"
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)


class Board:
    """The cells in a folder. A line of `cells.jsonl` is one; a torn last line is one that is not there."""

    def __init__(self, out: Path) -> None:
        self.path = out / CELLS
        self.found: dict[str, Figures] = {}
        self.lock = Lock()
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            if len(whole) < len(lines):
                self.path.write_text("".join(whole))
            for line in whole:
                figures = json.loads(line)
                self.found[Cell(**figures["cell"]).name] = figures

    def get(self, cell: Cell) -> Figures | None:
        """The cell's figures, if they were made as they would be now."""
        figures = self.found.get(cell.name)
        if figures is None:
            return None
        same = json.loads(json.dumps(cell.spec.described())) == figures["spec"]
        return figures if same and figures["cell"] == asdict(cell) else None

    def put(self, cell: Cell, figures: Figures) -> None:
        with self.lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(figures) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.found[cell.name] = json.loads(json.dumps(figures))

    def fill(
        self,
        cells: Iterable[Cell],
        *,
        text: str,
        jobs: int,
        done: Callable[[Cell, Figures], None] = lambda cell, figures: None,
    ) -> None:
        """Runs the cells that are not there, `jobs` at a time."""

        def one(cell: Cell) -> None:
            if (figures := self.get(cell)) is None:
                figures = in_a_process(cell, text, max(1, (os.cpu_count() or 1) // jobs))
                self.put(cell, figures)
            done(cell, figures)

        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(one, cell) for cell in cells]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                raise


def in_a_process(cell: Cell, text: str, threads: int) -> Figures:
    """A process of its own has a peak memory of its own. What it needs is imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "titans_domains.training"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=answer_to, args=(theirs, cell, text, threads))
    child.start()
    theirs.close()
    try:
        kind, what = ours.recv()
    except EOFError:
        child.join()
        raise MemoryError(
            f"The process of the cell ({cell.name}) was ended (code {child.exitcode}): perhaps there is "
            "not enough memory. Run the command again with fewer --jobs; finished cells are kept."
        ) from None
    child.join()
    if kind == "error":
        raise RuntimeError(f"The cell ({cell.name}) failed: {what}")
    return dict(what)


def answer_to(parent: Any, cell: Cell, text: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        parent.send(("figures", run(cell, text)))
    except Exception:
        parent.send(("error", traceback.format_exc()))


def tuning_cells(
    bench: str, systems: Sequence[str], rates: Sequence[float], **common: Any
) -> list[Cell]:
    """Seed 0 of the bench's first task at every learning rate."""
    first = next(iter(BENCHES[bench]))
    return [
        Cell(task=first, system=system, lr=lr, seed=0, **common)
        for system in systems for lr in rates
    ]  # fmt: skip


def best_rates(board: Board, cells: Iterable[Cell]) -> dict[str, float]:
    """The learning rate with the best validation figure of each system; a diverged one has none."""
    best: dict[str, tuple[float, float]] = {}
    for cell in cells:
        figures = board.get(cell)
        assert figures is not None
        valid = figures["valid"] if figures["valid"] is not None else math.inf
        if cell.system not in best or valid < best[cell.system][0]:
            best[cell.system] = (valid, cell.lr)
    return {system: lr for system, (_, lr) in best.items()}


def seed_cells(
    tasks: Sequence[str], rates: dict[str, float], seeds: int, **common: Any
) -> list[Cell]:
    return [
        Cell(task=task, system=system, lr=lr, seed=seed, **common)
        for seed in range(seeds) for task in tasks for system, lr in rates.items()
        if not SYSTEMS[system].retrieves or TASKS[task].streamed
    ]  # fmt: skip
