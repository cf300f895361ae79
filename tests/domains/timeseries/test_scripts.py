"""The benchmark scripts of forecasting: what made a figure stands beside it, and none is lost."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_timeseries import table

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
QUICK = ("patch_len=4", "model.dim=16", "fit.steps=2", "fit.valid_every=1", "fit.batch_size=4")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, args)])
    module.main()


def test_the_long_horizon_writes_its_command_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longhorizon = script("longhorizon", monkeypatch)
    table(200).interpolate().to_csv(tmp_path / "whole.csv", index_label="date")
    settings = [part for setting in QUICK for part in ("--set", setting)]
    asked = [
        "--data",
        tmp_path / "whole.csv",
        f"--out={tmp_path / 'new/results'}",
        "--lookback",
        16,
    ]
    asked += ["--horizons", 4, "--seeds", 0, *settings]
    call(longhorizon, monkeypatch, *asked)
    (path,) = (tmp_path / "new/results").iterdir()
    found = json.loads(path.read_text())
    assert path.name == "longhorizon-whole-16.json"
    assert found["command"] == (
        "python benchmarks/longhorizon.py --data whole.csv --out=results --lookback 16 --horizons 4 "
        f"--seeds 0 {' '.join(settings)}"
    )
    assert found["lookback by"] == "given"
    assert list(found["ridge on validation"]) == ["96"]
    before = path.read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call(longhorizon, monkeypatch, *asked)
    assert end.value.code == 2
    assert "longhorizon-whole-16.json is there already" in capsys.readouterr().err
    assert path.read_bytes() == before
    call(longhorizon, monkeypatch, *asked, "--force")
    assert json.loads(path.read_text())["command"].endswith("--force")


def test_runs_of_drift_keep_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drift = script("drift", monkeypatch)
    made: list[str] = []

    def measure(mixer: str, lookback: int, *_: Any) -> dict[str, Any]:
        made.append(f"{mixer}, {lookback}")
        return {"errors": {}}

    monkeypatch.setattr(drift, "measure", measure)
    monkeypatch.setattr(drift, "provenance", lambda: {"commit": "first"})
    asked = ["--out", tmp_path / "new", "--steps", 5]
    call(drift, monkeypatch, *asked)
    runs = json.loads((tmp_path / "new/drift.json").read_text())["runs"]
    assert list(runs) == made
    for run in runs.values():
        assert run["made of"] == {"commit": "first", "steps": 5, "seed": 0}
        assert run["command"] == "python benchmarks/drift.py --out new --steps 5"
    count = len(made)
    call(drift, monkeypatch, *asked)
    assert len(made) == count
    for changes, commit in ((["--seed", 1], "first"), ([], "later")):
        monkeypatch.setattr(drift, "provenance", lambda commit=commit: {"commit": commit})
        call(drift, monkeypatch, *asked, *changes)
        count += len(runs)
        assert len(made) == count
    again = json.loads((tmp_path / "new/drift.json").read_text())["runs"]
    assert {run["made of"]["commit"] for run in again.values()} == {"later"}
