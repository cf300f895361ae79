"""`titans plan`: a table for the eye and for scripts, and what it refuses."""

import json
from typing import Any

import pytest
from console import TINY, Titans, assert_refused


@pytest.fixture(scope="module")
def gpus() -> tuple[str, ...]:
    return ("plan", *TINY, "--set", "train.batch_size=4", "--gpus", "2", "--memory-gib", "0.5")


def test_json_holds_what_is_planned(titans: Titans, gpus: tuple[str, ...]) -> None:
    done = titans(*gpus, "--json")
    assert (done.code, done.err) == (0, "")
    table: dict[str, Any] = json.loads(done.out)
    counts = table["parameters"]
    assert counts["all"] == sum(count for name, count in counts.items() if name != "all")
    assert table["bytes"]["optimiser"] == 2 * table["bytes"]["parameters"] == 8 * counts["all"]
    assert table["tokens"] == 4 * 4 * 32
    assert [way["strategy"] for way in table["ways"]] == ["ddp", "sharded"] * 2
    assert all(way["largest_rows"] == 2 for way in table["ways"])
    assert table["tokens_per_s"] > 0


def test_text_holds_the_same(titans: Titans, gpus: tuple[str, ...]) -> None:
    table = json.loads(titans(*gpus, "--json").out)
    text = titans(*gpus, "--gpu", "a100").out
    assert f"{table['parameters']['all'] / 1e6:.2f}M parameters" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("ddp", "sharded"))]
    assert [row[:2] for row in rows] == [
        ["ddp", "kept"], ["sharded", "kept"], ["ddp", "checkpointed"], ["sharded", "checkpointed"],
    ]  # fmt: skip
    assert rows[0][2] == f"{table['ways'][0]['one_row_gib']:.2f}"
    assert "assumed, not measured: 30% of 19.5 TFLOP/s of a100" in text


def test_what_fits_one_way_alone_is_said(titans: Titans, gpus: tuple[str, ...]) -> None:
    table = json.loads(titans(*gpus, "--json").out)
    sizes = sorted(way["one_row_gib"] for way in table["ways"])
    between = (sizes[0] + sizes[-1]) / 2
    done = titans(*gpus[:-1], between)
    assert done.code == 0
    assert "none fits" in done.out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--preset", "2b"], "--preset must be one of tiny, small, 170m"),
        (["--gpus", "0"], "--gpus must be at least 1: got 0."),
        (["--gpus", "3"], "train.batch_size must be a multiple of the 3 processes that share it"),
        (["--gpus", "2", "--gpu", "abacus"], "--gpu must be one of a100, h100"),
        (["--memory-gib", "0.00001"], "One row of 32 tokens takes at least"),
        (["--memory-gib", "-1"], "--memory-gib must be positive: got -1."),
        (["--mixer", "abacus"], "mixer must be one of lmm"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    titans: Titans, args: list[str], sentence: str
) -> None:
    assert_refused(titans("plan", *TINY, *args), sentence)


def test_help_has_an_example(titans: Titans) -> None:
    done = titans("plan", "--help")
    assert done.code == 0
    assert "Example: titans plan --preset 1.3b --gpus 8" in done.out
