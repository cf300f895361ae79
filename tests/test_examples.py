"""The examples run as a user runs them, with sizes that take moments, and stay short."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


def figures(text: str, name: str) -> float:
    """The number behind a name."""
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name).split()[0])


def test_each_is_a_script_of_less_than_forty_lines() -> None:
    scripts = sorted(FOLDER.iterdir())
    assert [path.name for path in scripts if path.suffix] == [
        "dna.py",
        "language.py",
        "timeseries.py",
    ]
    for path in scripts:
        if path.suffix:
            assert len(path.read_text().splitlines()) < 40, path


def test_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(
        "The memory reads, and what it did not expect it keeps. " * 40
    )
    run("language.py", monkeypatch, str(tmp_path / "text.txt"), "15")
    said = capsys.readouterr().out
    assert figures(said, "read on:") < figures(said, "afresh:")


def test_timeseries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("timeseries.py", monkeypatch, "1")
    said = capsys.readouterr().out
    assert "seasonal naive" in said
    for day in (1, 2):
        assert figures(said, f"day {day}: mean error of the median") < 0.3


def test_dna(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("dna.py", monkeypatch, "200", "2")
    said = capsys.readouterr().out
    assert 0 < figures(said, "accuracy") <= figures(said, "best possible (Bayes)") < 1
    assert sum(letter.isupper() for letter in said.splitlines()[-1]) == 12
