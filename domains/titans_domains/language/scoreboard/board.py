"""Which cells a scoreboard has, and running those that it lacks, each in a process of its own."""

import json
import math
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from titans_core.files import lock_file, write_whole
from titans_domains.language.scoreboard.cell import Cell, Figures, run, stamp
from titans_domains.language.scoreboard.systems import SYSTEMS
from titans_domains.language.scoreboard.tasks import TASKS

CELLS = "cells.jsonl"
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)


class Board:
    """The cells in a folder. A line of `cells.jsonl` is one; a torn last line is one that is not there.

    The folder is one process's for as long as the board is open.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / CELLS
        out.mkdir(parents=True, exist_ok=True)
        self.held = lock_file(
            out / ".lock",
            f"Another board is writing to {out}: wait for it, or give another --out.",
        )
        self.found: dict[Cell, Figures] = {}
        self.lock = threading.Lock()
        try:
            self._read()
        except BaseException:
            self.held.close()
            raise

    def _read(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            figures = read_cell(line, f"{self.path}, line {number}")
            self.found[Cell(**figures["cell"])] = figures
        if len(whole) < len(text):
            write_whole(self.path, whole)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def get(self, cell: Cell) -> Figures | None:
        """The cell's figures, if they were made as they would be now."""
        figures = self.found.get(cell)
        if figures is None:
            return None
        wanted = stamp(cell)
        return figures if {name: figures.get(name) for name in wanted} == wanted else None

    def all_of(self, tasks: Iterable[str], **common: Any) -> list[Figures]:
        """The figures of every cell of these tasks that was made as it would be now."""
        wanted = set(tasks)
        cells = [
            cell for cell in self.found
            if cell.task in wanted and common.items() <= asdict(cell).items()
        ]  # fmt: skip
        return [figures for cell in cells if (figures := self.get(cell)) is not None]

    def put(self, cell: Cell, figures: Figures) -> None:
        line = json.dumps(figures)
        with self.lock:
            with self.path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.found[cell] = json.loads(line)

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


def read_cell(line: bytes, where: str) -> Figures:
    """The figures in a line of `cells.jsonl`; ValueError where it is none."""
    kinds: dict[str, Any] = {
        "task": str, "system": str, "size": str, "seed": int, "lr": (int, float), "quick": bool,
        "device": str, "data": (str, type(None)),
    }  # fmt: skip
    try:
        figures = json.loads(line)
        found = asdict(Cell(**figures["cell"]))
        good = isinstance(figures["spec"], dict)
    except (ValueError, TypeError, LookupError, RecursionError):
        good = False
    if not good or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{where} is damaged: it holds no cell. Take the line out to run it anew.")
    return dict(figures)


def in_a_process(cell: Cell, text: str, threads: int) -> Figures:
    """A process of its own has a peak memory of its own. What it needs is imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "titans_domains.training"])
    ours, theirs = context.Pipe()
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
    if kind == "refused":
        raise ValueError(what)
    if kind == "failed":
        raise RuntimeError(f"The cell ({cell.name}) failed: {what}")
    return dict(what)


def answer_to(parent: Any, cell: Cell, text: str, threads: int) -> None:
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    found: tuple[str, Any]
    try:
        found = "figures", run(cell, text)
    except (ValueError, OSError) as error:
        found = "refused", f"The cell ({cell.name}) cannot be run: {error}"
    except Exception:
        found = "failed", traceback.format_exc()
    with suppress(BrokenPipeError):
        parent.send(found)


def end_with(parent: Any) -> None:
    """Ends this process when the board's has gone, for which alone it works.

    The board sends nothing. Its process is not this one's parent, which is the server that forked it.
    """
    with suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)


def tuning_cells(
    tasks: Sequence[str], systems: Sequence[str], rates: Sequence[float], **common: Any
) -> list[Cell]:
    """Seed 0 at every learning rate."""
    return [
        Cell(task=task, system=system, lr=lr, seed=0, **common)
        for task in tasks for system in systems for lr in rates
        if applies(system, task)
    ]  # fmt: skip


def applies(system: str, task: str) -> bool:
    """Whether a system can be asked: a reader of streams has nothing to read where rows are no streams."""
    return TASKS[task].retrievable or not SYSTEMS[system].retrieves


def best_rates(board: Board, cells: Iterable[Cell]) -> dict[tuple[str, str], float]:
    """The learning rate of each task and system that does best in validation."""
    best: dict[tuple[str, str], tuple[tuple[float, ...], float]] = {}
    for cell in cells:
        figures = board.get(cell)
        assert figures is not None
        key = (cell.task, cell.system)
        if key not in best or rank(figures) < best[key][0]:
            best[key] = (rank(figures), cell.lr)
    return {key: lr for key, (_, lr) in best.items()}


def rank(figures: Figures) -> tuple[float, ...]:
    """How a cell does in validation, least first: by the figure that counts, then by the loss.

    A figure may be 0 at all learning rates. What diverged is worst.
    """

    def worst_if_none(value: float | None) -> float:
        return math.inf if value is None or math.isnan(value) else value

    return tuple(worst_if_none(figures.get(name)) for name in ("valid", "valid_loss"))


def seed_cells(
    tasks: Sequence[str], rates: dict[tuple[str, str], float], seeds: int, **common: Any
) -> list[Cell]:
    """Every seed of the tasks; a task without rates of its own takes those of the one that has them."""
    systems = list(dict.fromkeys(system for _, system in rates))
    (first, _), *_ = rates
    return [
        Cell(
            task=task, system=system, seed=seed,
            lr=rates.get((task, system)) or rates[first, system], **common,
        )
        for seed in range(seeds) for task in tasks for system in systems if applies(system, task)
    ]  # fmt: skip
