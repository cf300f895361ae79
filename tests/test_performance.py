"""The page of performance is what its script writes, and a benchmark that became worse is found."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DAY = re.compile(r"of (\d{4}-\d\d-\d\d|unknown),")


def test_the_page_is_that_of_the_raw_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("page")
    made, kept = page.page(), (ROOT / "docs/performance.md").read_text()
    # A checkout without its history does not know the day of a commit.
    assert DAY.sub("", made) == DAY.sub("", kept)
    assert len(DAY.findall(kept)) == 3
    assert "unknown" not in kept


def compare(old: Path, new: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/compare.py"), str(old), str(new), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def slower(results: dict[str, Any]) -> None:
    results["chunks"]["64"]["forward"]["seconds"]["memory_update"] *= 1.3


def quicker(results: dict[str, Any]) -> None:
    results["chunks"]["64"]["forward"]["seconds"]["memory_update"] /= 1.3


def a_little_slower(results: dict[str, Any]) -> None:
    results["chunks"]["64"]["forward"]["seconds"]["memory_update"] *= 1.2


def more_memory(results: dict[str, Any]) -> None:
    results["chunks"]["16"]["MiB of a training step"]["ours"] *= 2


def not_measured(results: dict[str, Any]) -> None:
    del results["chunks"]["16"]["forward"]["seconds"]["attention"]


def not_finite(results: dict[str, Any]) -> None:
    results["chunks"]["16"]["forward"]["share of the best product"] = float("nan")


def slow_at_length(results: dict[str, Any]) -> None:
    results["runs"]["mag-0"]["pieces"][-1]["us_per_token"] *= 1.5


def grown(results: dict[str, Any]) -> None:
    results["runs"]["lmm-0"]["pieces"][-1]["state_bytes"] *= 2


def not_together(results: dict[str, Any]) -> None:
    results["together"]["tokens_per_s"] /= 2


def errors(results: dict[str, Any]) -> None:
    results["together"]["errors"] = 1000


@pytest.mark.parametrize(
    ("name", "change", "worse"),
    [
        # Slower than each of four others that are timed against it.
        ("kernels-cpu.json", slower, 4),
        ("kernels-cpu.json", quicker, 0),
        ("kernels-cpu.json", a_little_slower, 0),
        ("kernels-cpu.json", more_memory, 1),
        ("kernels-cpu.json", not_measured, 1),
        ("kernels-cpu.json", not_finite, 1),
        ("long_stream.json", slow_at_length, 1),
        ("long_stream.json", grown, 1),
        ("serving.json", not_together, 1),
        ("serving.json", errors, 1),
    ],
)
def test_a_fall_of_more_than_a_fifth_is_found(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None], worse: int
) -> None:
    results = json.loads((RESULTS / name).read_text())
    change(results)
    (tmp_path / name).write_text(json.dumps(results))
    done = compare(RESULTS / name, tmp_path / name)
    assert done.returncode == (1 if worse else 0), done.stderr
    assert done.stdout.count("WORSE") == worse


def test_how_far_a_ratio_may_fall_can_be_said(tmp_path: Path) -> None:
    results = json.loads((RESULTS / "serving.json").read_text())
    results["together"]["tokens_per_s"] *= 0.9
    (tmp_path / "new.json").write_text(json.dumps(results))
    assert compare(RESULTS / "serving.json", tmp_path / "new.json").returncode == 0
    assert (
        compare(RESULTS / "serving.json", tmp_path / "new.json", "--fall", "0.05").returncode == 1
    )


def assert_refused(done: subprocess.CompletedProcess[str], name: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert name in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["length.json", "not_there.json"])
def test_what_is_no_such_output_is_refused(name: str) -> None:
    assert_refused(compare(RESULTS / "serving.json", RESULTS / name), name)


@pytest.mark.parametrize(
    "text",
    [
        '{"chunks": {}}',
        '{"chunks": []}',
        '{"runs": {}}',
        '{"together": 3}',
        "[]",
        "3",
        '{"chunks": ',
    ],
)
def test_an_output_with_nothing_to_compare_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.json").write_text(text)
    assert_refused(compare(tmp_path / "empty.json", tmp_path / "empty.json"), "empty.json")


@pytest.mark.parametrize("fall", ["5", "1", "-0.1", "nan"])
def test_a_fall_that_is_no_share_is_refused(fall: str) -> None:
    done = compare(RESULTS / "serving.json", RESULTS / "serving.json", f"--fall={fall}")
    assert done.returncode == 2
    assert "--fall must be a share" in done.stderr
