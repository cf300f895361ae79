"""`titans bench`: every refusal before anything is trained, and one quick board from end to end."""

import json
from pathlib import Path

import pytest
from console import Titans, assert_refused

REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "system": (("--mixers", "lstm"), "--mixers must be of transformer++, "),
    "task": (("--tasks", "mqar"), "--tasks must be of mqar-64-4, "),
    "task of another bench": (("--tasks", "parity"), "--tasks must be of mqar-64-4, "),
    "size": (("--preset", "huge"), "There is no size 'huge': there are tiny, small, 10m"),
    "rates": (("--rates", "0.1;0.2"), "--rates must be numbers with commas between: got '0.1;0.2'"),
    "no rate": (("--rates", "0,nan"), "--rates must be positive and finite: got '0,nan'"),
    "device": (("--device", "tpu"), "--device must be auto, cpu, cuda or cuda:N: got 'tpu'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_compared_is_refused(name: str, titans: Titans, tmp_path: Path) -> None:
    options, sentence = REFUSALS[name]
    out = tmp_path / "board"
    assert_refused(titans("bench", "recall", *options, "--out", str(out)), sentence)
    assert not out.exists()


def test_a_text_that_is_not_there_is_refused(titans: Titans, tmp_path: Path) -> None:
    out = tmp_path / "board"
    done = titans("bench", "language", "--data", str(tmp_path / "none.txt"), "--out", str(out))
    assert_refused(done, "There is no file or folder")
    assert not out.exists()


def test_a_board_goes_on_where_it_was(titans: Titans, tmp_path: Path) -> None:
    command = (
        "bench", "state", "--quick", "--mixers", "transformer++", "--tasks", "parity", "--rates",
        "0.004", "--jobs", "1", "--out", str(tmp_path),
    )  # fmt: skip
    done = titans(*command)
    assert done.code == 0, done.err
    assert [Path(line).name for line in done.out.splitlines()] == [
        "state.json", "state.csv", "state.md", "state.png",
    ]  # fmt: skip
    cells = (tmp_path / "cells.jsonl").read_text()
    (row,) = json.loads((tmp_path / "state.json").read_text())["rows"]
    assert (row["task"], row["steps"], row["seeds"], row["lr"]) == ("parity", 3, 1, 0.004)
    assert titans(*command).code == 0
    assert (tmp_path / "cells.jsonl").read_text() == cells
