"""The scoreboard: equal parameters, cells that are kept and gone on with, tables that say how."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from processes import processes_with

from titans_core import build_backbone, count_parameters
from titans_domains.language.scoreboard import board as boards
from titans_domains.language.scoreboard import report
from titans_domains.language.scoreboard.board import (
    CELLS,
    Board,
    best_rates,
    seed_cells,
    tuning_cells,
)
from titans_domains.language.scoreboard.cell import Cell, run, stamp
from titans_domains.language.scoreboard.systems import MAIN, SIZES, SYSTEMS, backbone
from titans_domains.language.scoreboard.tasks import TASKS

CELL = Cell(task="mqar-64-4", system="transformer++", size="tiny", seed=0, lr=4e-3, quick=True)
COMMON: dict[str, Any] = {"size": "tiny", "device": "cpu", "quick": True}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_have_the_same_number_of_parameters(name: str) -> None:
    found = count_parameters(build_backbone(backbone(name, "tiny")))
    assert abs(found / SIZES["tiny"].parameters - 1) < 0.02


def test_systems_and_sizes_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"no system 'lstm': there are transformer\+\+"):
        backbone("lstm", "tiny")
    with pytest.raises(ValueError, match="no size 'huge': there are tiny, small, 10m"):
        backbone("lmm", "huge")


def figures(cell: Cell, valid: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    """What a run of the cell would give."""
    right = {"accuracy": 1 - (valid or 0), "macro": 0.5, "exact": 0.25, "rows": 2}
    return {
        **stamp(cell), "valid": valid, "valid_loss": 1.0, "tests": {} if valid is None else {"64": right},
        "protocol": "trained on the task", "parameters": 10, "added_parameters": 1,
        "made_with": {"commit": "abc", "threads": 1}, "state_bytes": {"64": 100}, "tokens_per_s": 5.0,
        "training_memory_mib": 3.0, "chance": 0.01, **changes,
    }  # fmt: skip


def opened(folder: Path, *cells: Cell) -> list[bool]:
    """Whether a board in the folder has each cell."""
    with Board(folder) as board:
        return [board.get(cell) is not None for cell in cells]


def test_cells_are_kept_and_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Cell] = []

    def fake(cell: Cell, text: str, threads: int) -> dict[str, Any]:
        made.append(cell)
        return figures(cell)

    def fill(cells: list[Cell], jobs: int) -> list[Cell]:
        done: list[Cell] = []
        with Board(tmp_path) as board:
            board.fill(cells, text="", jobs=jobs, done=lambda cell, _: done.append(cell))
        return done

    monkeypatch.setattr(boards, "in_a_process", fake)
    cells = [replace(CELL, seed=seed) for seed in range(3)]
    fill(cells[:2], 2)
    assert fill(cells, 1) == cells
    assert sorted(made, key=lambda cell: cell.seed) == cells
    # A line that was being written when the machine went off is not there.
    path = tmp_path / CELLS
    path.write_text(path.read_text()[:-20])
    fill(cells, 1)
    assert made[3:] == [cells[2]]
    assert len(path.read_text().splitlines()) == 3


def test_a_cell_of_another_recipe_is_run_again(tmp_path: Path) -> None:
    others = [
        replace(CELL, **change)
        for change in (
            {"device": "cuda"}, {"quick": False}, {"size": "small"}, {"data": "abc"}, {"lr": 5e-3},
        )
    ]  # fmt: skip
    with Board(tmp_path) as board:
        board.put(CELL, figures(CELL))
    assert opened(tmp_path, CELL, *others) == [True] + [False] * len(others)
    for change in ({"spec": {**CELL.spec.described(), "steps": 4}}, {"model": {"dim": 8}}):
        with Board(tmp_path) as board:
            board.put(CELL, figures(CELL, **change))
        assert opened(tmp_path, CELL) == [False]


def test_cells_of_several_sizes_and_texts_stay_in_one_folder(tmp_path: Path) -> None:
    cells = [CELL, replace(CELL, size="small"), replace(CELL, data="a"), replace(CELL, data="b")]
    with Board(tmp_path) as board:
        for cell in cells:
            board.put(cell, figures(cell))
        assert all(board.get(cell)["cell"] == asdict(cell) for cell in cells)  # type: ignore[index]
        found = board.all_of(["mqar-64-4"], size="tiny", data="a")
    assert [f["cell"] for f in found] == [asdict(cells[2])]


def test_a_folder_is_one_board_at_a_time(tmp_path: Path) -> None:
    with Board(tmp_path), pytest.raises(ValueError, match="Another board is writing to"):
        Board(tmp_path)
    Board(tmp_path).held.close()


def test_a_cell_that_fails_stops_the_others_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(cell: Cell, text: str, threads: int) -> dict[str, Any]:
        if cell.seed == 1:
            raise RuntimeError("seed 1")
        if cell.seed == 2:
            time.sleep(1)  # begun before the failure is seen
        return figures(cell)

    monkeypatch.setattr(boards, "in_a_process", fake)
    cells = [replace(CELL, seed=seed) for seed in range(4)]
    with pytest.raises(RuntimeError, match="seed 1"), Board(tmp_path) as board:
        board.fill(cells, text="", jobs=1)
    assert opened(tmp_path, cells[0], cells[3]) == [True, False]


def test_rates_are_chosen_by_validation(tmp_path: Path) -> None:
    tasks = ["mqar-64-4", "mad-compression"]
    cells = tuning_cells(tasks[:1], ["lmm", "mac"], (1e-3, 2e-3), **COMMON)
    assert [(c.task, c.system, c.lr, c.seed) for c in cells] == [
        ("mqar-64-4", s, lr, 0) for s in ("lmm", "mac") for lr in (1e-3, 2e-3)
    ]
    with Board(tmp_path) as board:
        for cell, valid in zip(cells, (0.3, 0.2, 0.4, None), strict=True):
            board.put(cell, figures(cell, valid))
        best = best_rates(board, cells)
        assert best == {("mqar-64-4", "lmm"): 2e-3, ("mqar-64-4", "mac"): 1e-3}
        chosen = seed_cells(tasks, best, 2, **COMMON)
        assert {(c.task, c.system, c.lr, c.seed) for c in chosen} == {
            (task, system, lr, seed)
            for task in tasks for system, lr in (("lmm", 2e-3), ("mac", 1e-3)) for seed in (0, 1)
        }  # fmt: skip
        # Where none is right the loss decides, and not the order; what is no number is worst.
        for losses, lr in (((3.0, 2.0), 2e-3), ((float("nan"), 9.0), 2e-3), ((1.0, 2.0), 1e-3)):
            for cell, loss in zip(cells[:2], losses, strict=True):
                board.put(cell, figures(cell, 1.0, valid_loss=loss))
            assert best_rates(board, cells[:2]) == {("mqar-64-4", "lmm"): lr}


def test_em_llm_is_asked_where_rows_are_streams() -> None:
    tasks = ["mqar-64-4", "mad-compression", "text"]
    cells = tuning_cells(tasks, ["em-llm", "lmm"], (1e-3,), **COMMON)
    assert [c.task for c in cells if c.system == "em-llm"] == ["mqar-64-4"]
    assert [c.task for c in cells if c.system == "lmm"] == tasks


def test_tables_say_how_a_figure_was_made(tmp_path: Path) -> None:
    cells = [
        figures(replace(CELL, system=system, seed=seed, lr=lr), valid)
        for system, seed, lr, valid in (
            ("lmm", 0, 4e-3, 0.2), ("lmm", 1, 4e-3, 0.4), ("lmm", 0, 2e-3, 0.3),
            ("transformer++", 0, 4e-3, 0.1), ("transformer++", 0, 2e-3, 0.9),
            ("mac", 0, 4e-3, 0.0), ("mac", 1, 4e-3, None),
        )
    ]  # fmt: skip
    # The rate that is best in validation is worse on the test.
    cells[2]["tests"]["64"]["accuracy"] = 0.95
    table = report.rows(cells)
    lmm = next(row for row in table if row["system"] == "lmm")
    expected = {
        "mean": 0.7, "lowest": 0.6, "highest": 0.8, "macro": 0.5, "exact": 0.25, "seeds": 2,
        "diverged": 0, "best_rate_on_test": 0.95, "lr": 4e-3, "rate_at_edge": True, "titans": True,
        "trained_lengths": "64", "steps": 3, "tested_length": 64, "state_bytes": 100, "threads": 1,
        "protocol": "trained on the task", "commits": "abc",
    }  # fmt: skip
    assert {key: lmm[key] for key in expected} == pytest.approx(expected)
    mac = next(row for row in table if row["system"] == "mac")
    # A run that diverges counts.
    assert (mac["mean"], mac["lowest"], mac["seeds"], mac["diverged"]) == (0.5, 0.0, 2, 1)
    written = report.write(cells, tmp_path, "recall", "titans bench recall")
    assert [path.name for path in written] == [f"recall.{x}" for x in ("json", "csv", "md", "png")]
    assert {row["system"] for row in csv.DictReader(io.StringIO(written[1].read_text()))} == {
        "lmm", "mac", "transformer++",
    }  # fmt: skip
    lines = written[2].read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "seeds" not in line]
    assert [row.split(" | ")[0] for row in rows] == ["| transformer++", "| **lmm**", "| **mac**"]
    assert rows[0].split(" | ")[1] == "0.900"
    assert rows[1].split(" | ")[1] == "0.700 (0.600 to 0.800)"
    assert rows[2].split(" | ")[1] == "0.500 (0.000 to 1.000), 1 diverged"
    assert "`titans bench recall`" in lines
    assert json.loads(written[0].read_text())["rows"][0]["task"] == "mqar-64-4"


def test_chance_stands_beside_the_figure_that_it_is_of() -> None:
    found = run(replace(CELL, task="niah-pk", system="transformer++"))
    assert found["spec"]["figure"] == "exact"
    assert found["chance"] is None
    assert found["valid_loss"] > 0


def test_every_task_is_one_that_its_main_systems_can_be_asked() -> None:
    for task, spec in TASKS.items():
        if spec.problem is not None:
            problem = spec.problem()
            for length in spec.lengths:
                assert spec.batch_tokens >= length, task
                assert problem.draw(1, length, "train").inputs.shape[1] <= length
    assert set(MAIN) <= set(SYSTEMS)


def test_a_cell_runs_and_its_figures_are_plain(tmp_path: Path) -> None:
    found = run(CELL)
    again = json.loads(json.dumps(found))
    assert again["cell"] == asdict(CELL)
    assert 0 <= again["valid"] <= 1
    assert set(again["tests"]["64"]) == {"accuracy", "macro", "exact", "rows"}
    # Full attention keeps keys and values of two layers, of 64 tokens and 64 channels, and places.
    assert again["state_bytes"]["64"] == 2 * (2 * 64 * 64 * 4 + 64 * 8 + 8)


@pytest.mark.slow
def test_a_killed_board_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "titans_cli.app", "bench", "recall", "--quick", "--mixers",
        "transformer++,lmm", "--tasks", "mqar-64-4", "--jobs", "1", "--out", str(tmp_path),
    ]  # fmt: skip
    cells = tmp_path / CELLS
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not cells.exists() or cells.read_text().count("\n") < 3:
        time.sleep(0.1)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = cells.read_text().splitlines()
    subprocess.run(command, check=True, capture_output=True)
    after = cells.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len({json.dumps(json.loads(x)["cell"]) for x in after}) == 8
    assert (tmp_path / "recall.md").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="lists processes in /proc")
def test_the_processes_of_a_killed_board_end(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "titans_cli.app", "bench", "recall", "--mixers", "lmm", "--tasks",
        "mqar-64-4", "--jobs", "1", "--out", str(tmp_path),
    ]  # fmt: skip
    mark = {"TITANS_TEST_BOARD": str(tmp_path)}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | mark
    )
    # The board, its tracker of resources, the server that forks, and a cell that takes minutes.
    while len(processes_with(mark)) < 4:
        time.sleep(0.1)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        until = time.monotonic() + 60
        while processes_with(mark):
            assert time.monotonic() < until, "They go on by themselves."
            time.sleep(0.1)
    finally:
        for pid in processes_with(mark):
            os.kill(pid, signal.SIGKILL)
