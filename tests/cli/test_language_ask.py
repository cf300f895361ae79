"""`titans language ask`: RULER and BABILong of a trained run, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from console import Titans, assert_refused

from titans_domains.language import load_run
from titans_domains.language.suites.babilong import evaluate_babilong
from titans_domains.language.suites.ruler import evaluate_ruler

ASK = ("language", "ask", "run", "--suite")


def test_a_run_is_asked_as_the_suite_asks_it(here: Path, titans: Titans) -> None:
    model, tokenizer, _ = load_run(here / "run", torch.device("cpu"))
    done = titans(*ASK, "ruler", "--tasks", "vt", "--lengths", "1800", "--count", "1", "--json")
    assert done.code == 0, done.err
    wanted = evaluate_ruler(model, tokenizer, "vt", 1800, 1) | {"protocol": "zero-shot"}
    assert json.loads(done.out) == {"suite": "ruler", "seed": 42, "rows": [wanted]}
    done = titans(
        *ASK, "babilong", "--tasks", "qa1", "--lengths", "1500", "--count", "1", "--mode", "reset"
    )
    assert done.code == 0, done.err
    row = evaluate_babilong(model, tokenizer, "qa1", 1500, "reset", count=1)
    head, line = done.out.splitlines()
    assert head.split() == ["task", "length", "unit", "mode", "samples", "exact_label", "contains"]
    assert line.split()[:4] == ["qa1", "1500", row["unit"], "reset"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("ruler", "--tasks", "qa1"), "--tasks must be of niah_single_1, "),
        (("babilong", "--tasks", "vt"), "--tasks must be of qa1, "),
        (("ruler", "--babi", "x"), "--babi is for --suite babilong: leave it out."),
        (("ruler", "--lengths", "1k"), "--lengths must be integers with commas: got '1k'."),
        (("ruler", "--lengths", "0"), "--lengths must be at least 1: got '0'."),
        (
            ("ruler", "--tasks", "vt", "--lengths", "64"),
            "length must hold the shortest prompt of vt",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    assert_refused(titans(*ASK, *args, "--count", "1"), sentence)
