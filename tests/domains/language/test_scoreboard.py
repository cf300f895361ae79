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
from titans_domains.language.scoreboard.cell import Cell, run
from titans_domains.language.scoreboard.systems import MAIN, SIZES, SYSTEMS, backbone
from titans_domains.language.scoreboard.tasks import BENCHES, TASKS

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
    return {
        "cell": asdict(cell), "spec": cell.spec.described(), "valid": valid,
        "tests": {} if valid is None else {"64": {"accuracy": 1 - valid, "rows": 2}},
        "protocol": "trained on the task", "parameters": 10, "added_parameters": 1,
        "made_with": {"commit": "abc"}, "state_bytes": {"64": 100}, "tokens_per_s": 5.0,
        "training_memory_mib": 3.0, "chance": 0.01, **changes,
    }  # fmt: skip


def test_cells_are_kept_and_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fake(cell: Cell, text: str, threads: int) -> dict[str, Any]:
        made.append(cell.name)
        return figures(cell)

    monkeypatch.setattr(boards, "in_a_process", fake)
    cells = [replace(CELL, seed=seed) for seed in range(3)]
    Board(tmp_path).fill(cells[:2], text="", jobs=2)
    done: list[str] = []
    Board(tmp_path).fill(cells, text="", jobs=1, done=lambda cell, _: done.append(cell.name))
    assert sorted(made) == sorted(cell.name for cell in cells)
    assert done == [cell.name for cell in cells]
    # A line that was being written when the machine went off is not there.
    path = tmp_path / CELLS
    path.write_text(path.read_text()[:-20])
    Board(tmp_path).fill(cells, text="", jobs=1)
    assert made[3:] == [cells[2].name]
    assert len(path.read_text().splitlines()) == 3


def test_a_cell_of_another_recipe_is_run_again(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.put(CELL, figures(CELL))
    assert Board(tmp_path).get(CELL) is not None
    assert Board(tmp_path).get(replace(CELL, device="cuda")) is None
    assert Board(tmp_path).get(replace(CELL, quick=False)) is None
    board.put(CELL, figures(CELL, spec={**CELL.spec.described(), "steps": 4}))
    assert Board(tmp_path).get(CELL) is None


def test_a_cell_that_fails_stops_the_others_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(cell: Cell, text: str, threads: int) -> dict[str, Any]:
        if cell.seed == 1:
            raise RuntimeError("seed 1")
        return figures(cell)

    monkeypatch.setattr(boards, "in_a_process", fake)
    cells = [replace(CELL, seed=seed) for seed in range(4)]
    with pytest.raises(RuntimeError, match="seed 1"):
        Board(tmp_path).fill(cells, text="", jobs=1)
    kept = Board(tmp_path)
    assert kept.get(cells[0]) is not None
    assert kept.get(cells[3]) is None


def test_rates_are_chosen_by_validation_on_the_first_task(tmp_path: Path) -> None:
    cells = tuning_cells("recall", ["lmm", "mac"], (1e-3, 2e-3), **COMMON)
    first = next(iter(BENCHES["recall"]))
    assert {(c.task, c.seed) for c in cells} == {(first, 0)}
    assert [(c.system, c.lr) for c in cells] == [
        (s, lr) for s in ("lmm", "mac") for lr in (1e-3, 2e-3)
    ]
    board = Board(tmp_path)
    for cell, valid in zip(cells, (0.3, 0.2, 0.4, None), strict=True):
        board.put(cell, figures(cell, valid))
    best = best_rates(board, cells)
    assert best == {"lmm": 2e-3, "mac": 1e-3}
    chosen = seed_cells(["mqar-64-4"], best, 2, **COMMON)
    assert {(c.system, c.lr, c.seed) for c in chosen} == {
        ("lmm", 2e-3, 0), ("lmm", 2e-3, 1), ("mac", 1e-3, 0), ("mac", 1e-3, 1),
    }  # fmt: skip


def test_tables_say_how_a_figure_was_made(tmp_path: Path) -> None:
    cells = [
        figures(replace(CELL, system=system, seed=seed), valid)
        for system, seed, valid in (
            ("lmm", 0, 0.2), ("lmm", 1, 0.4), ("transformer++", 0, 0.1), ("mac", 0, None),
        )
    ]  # fmt: skip
    table = report.rows(cells, (2e-3, 4e-3))
    lmm = next(row for row in table if row["system"] == "lmm")
    expected = {
        "mean": 0.7, "lowest": 0.6, "highest": 0.8, "seeds": 2, "diverged": 0, "titans": True,
        "trained_lengths": "64", "steps": 3, "tested_length": 64, "state_bytes": 100, "lr": 4e-3,
        "rate_at_edge": True, "protocol": "trained on the task", "commits": "abc",
    }  # fmt: skip
    assert {key: lmm[key] for key in expected} == pytest.approx(expected)
    written = report.write(cells, (2e-3, 4e-3), tmp_path, "recall", "titans bench recall")
    assert [path.name for path in written] == [f"recall.{x}" for x in ("json", "csv", "md", "png")]
    assert list(csv.DictReader(io.StringIO(written[1].read_text())))[0]["system"] == "lmm"
    lines = written[2].read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "seeds" not in line]
    # Best first, and what diverged last.
    assert [row.split(" | ")[0] for row in rows] == ["| transformer++", "| **lmm**", "| **mac**"]
    assert rows[0].split(" | ")[1] == "0.900"
    assert rows[1].split(" | ")[1] == "0.700 (0.600 to 0.800)"
    assert rows[2].split(" | ")[1] == "diverged"
    assert "`titans bench recall`" in lines
    assert json.loads(written[0].read_text())["rows"][0]["task"] == "mqar-64-4"


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
