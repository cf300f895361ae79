"""`titans language`: data on stdout and talk on stderr, from training to generation."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from console import TINY, Titans, assert_refused, contents

from titans_domains.language import DOMAIN, corpus, load_run, task
from titans_domains.language.evaluate import report
from titans_domains.language.generate import generate
from titans_domains.language.task import texts_for
from titans_domains.runs import load_run_table

CPU = torch.device("cpu")


def test_training_talks_on_stderr(trained: Path) -> None:
    first, *_, last = (trained / "stderr").read_text().splitlines()
    assert first.startswith("lmm, ")
    assert "text.jsonl" in first
    assert last.startswith("training 4/4 loss ")
    assert "Warning" not in (trained / "stderr").read_text()
    assert sorted(p.name for p in (trained / "run").iterdir()) == [
        "checkpoints", "config.json", "facts.json", "metrics.csv", "report.html",
    ]  # fmt: skip


def test_options_are_settings_by_another_name(here: Path, titans: Titans) -> None:
    options = ["--data", "text.jsonl", "--mixer", "attention", "--seed", "7", "--device", "cpu"]
    done = titans("language", "train", *TINY, "--set", "train.steps=1", *options)
    assert (done.code, done.out) == (0, "runs/tiny\n")
    config, _ = load_run_table(here / "runs/tiny", DOMAIN)
    assert (config.model.mixer, config.seed, config.train.steps) == ("attention", 7, 1)
    assert config.data.source == str(here / "text.jsonl")
    assert titans("language", "eval", "runs/tiny").out.startswith("attention, window(32) ")


def test_evaluation_as_json_and_as_text(here: Path, titans: Titans) -> None:
    done = titans("language", "eval", "run", "--json")
    assert done.code == 0
    model, tokenizer, config = load_run(here / "run", CPU)
    training, held_out = texts_for(here / "run", config, None)
    wanted = report(model, tokenizer, held_out, training, window=config.data.seq_len)
    assert json.loads(done.out) == wanted
    assert done.err.startswith("reading ")
    figures = wanted["bits_per_byte"] | wanted["floors"]
    width = max(map(len, figures))
    rows = [f"{name:{width}}  {bits:.3f} bits/byte" for name, bits in figures.items()]
    assert titans("language", "eval", "run").out.splitlines() == rows
    (here / "other.txt").write_text("Another text.")
    other = json.loads(titans("language", "eval", "run", "--json", "--data", "other.txt").out)
    assert other["bytes"] == 13


def test_another_text_is_measured_though_the_training_text_is_gone(
    here: Path, titans: Titans
) -> None:
    (here / "text.jsonl").rename(here / "other.jsonl")
    done = titans("language", "eval", "run", "--json", "--data", "other.jsonl")
    assert done.code == 0
    first, *_ = json.loads(done.out)["floors"]
    assert first == "order-5 n-gram, adaptive, without the training text"


def test_a_run_is_read_from_any_folder(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ["--data", "text.jsonl", *TINY, "--set", "train.steps=1", "--out", "r1"]
    assert titans("language", "train", *again).code == 0
    (here / "sub").mkdir()
    monkeypatch.chdir(here / "sub")
    assert titans("language", "eval", "../r1").code == 0
    done = titans("language", "train", "--resume", "--out", "../r1", "--data", "../text.jsonl")
    assert (done.code, done.out) == (0, "../r1\n")


def test_of_a_streamed_data_set_the_first_bytes_are_evaluated(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(source: str, skip: int = 0) -> Iterator[bytes]:
        assert source == "hf:some/set:en:test"
        while True:
            yield b"on and on, "

    monkeypatch.setattr(corpus, "hub_documents", endless)
    monkeypatch.setattr(task, "HUB_BYTES", 40)
    done = titans("language", "eval", "run", "--json", "--data", "hf:some/set:en:test")
    assert json.loads(done.out)["bytes"] == 40


def test_what_is_no_number_is_none_in_json(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "bits_per_byte": {"lmm, carried": math.nan, "x": 2.0},
        "floors": {"a": 1.0},
        "bytes": 3,
    }
    monkeypatch.setattr("titans_domains.language.evaluate.report", lambda *_, **__: table)
    read = json.loads(titans("language", "eval", "run", "--json").out, parse_constant=pytest.fail)
    assert read["bits_per_byte"] == {"lmm, carried": None, "x": 2.0}
    assert titans("language", "eval", "run").out.startswith("lmm, carried  nan bits/byte\n")


def test_nothing_is_written_before_the_first_token_is_drawn(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no chances to draw from")

    monkeypatch.setattr("titans_domains.language.generate.pick", refuse)
    assert_refused(titans("language", "generate", "run", "The "), "no chances to draw from")


def test_ctrl_c_ends_training_with_130(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(bar: object) -> Callable[..., None]:
        def show(step: int, row: dict[str, Any]) -> None:
            if step == 3:
                raise KeyboardInterrupt

        return show

    monkeypatch.setattr("titans_cli.progress.show_training", interrupted)
    done = titans("language", "train", "--data", "text.jsonl", *TINY, "--out", "new")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1] == "interrupted"
    assert titans("language", "train", "--resume", "--out", "new").code == 130


def test_generation_prints_the_prompt_and_what_follows(here: Path, titans: Titans) -> None:
    settings = ["--max-tokens", "30", "--temperature", "1", "--top-p", "0.9", "--seed", "3"]
    done = titans("language", "generate", "run", "größer ", *settings)
    assert (done.code, done.err) == (0, "")
    model, tokenizer, _ = load_run(here / "run", CPU)
    pieces = generate(
        model, tokenizer, "größer ".encode(), max_tokens=30, temperature=1, top_p=0.9, seed=3
    )
    assert done.out == f"größer {b''.join(pieces).decode(errors='replace')}\n"
    assert titans("language", "generate", "run", "größer ", *settings).out == done.out
    assert titans("language", "generate", "run", "größer ", *settings[:-1], "4").out != done.out
    assert titans("language", "generate", "run", "--max-tokens", "5").out.endswith("\n")


def test_a_terminal_is_not_told_what_a_model_makes_up(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titans_domains.language.generate.as_text", lambda _: iter(["a\x1b", "_b"]))
    assert titans("language", "generate", "run", "The ").out == "The a\x1b_b\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert titans("language", "generate", "run", "The ").out == "The a\\x1b_b\n"


def test_a_run_goes_on_by_its_name_alone(here: Path, titans: Titans) -> None:
    newest = here / "run/checkpoints/step-0000004"
    finished = contents(newest)
    shutil.rmtree(newest)
    done = titans("language", "train", "--resume", "--out", "run")
    assert (done.code, done.out) == (0, "run\n")
    assert "training 4/4" in done.err
    assert contents(newest) == finished
    # Settings that are the run's own may be said again; there is nothing left to do.
    done = titans(
        "language", "train", "--resume", "--out", "run", "--data", "text.jsonl", "--set", "seed=0"
    )
    assert (done.code, done.out) == (0, "run\n")
    first, second = done.err.splitlines()
    assert first.endswith("nothing is left to do.")
    assert second.startswith("lmm, ")


def test_a_finished_run_that_is_damaged_is_not_called_finished(here: Path, titans: Titans) -> None:
    path = max((here / "run/checkpoints").iterdir()) / "training.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        done = titans("language", "train", "--resume", "--out", "run")
        assert (done.code, done.out) == (2, "")
        assert "nothing is left" not in done.err
        assert "training.safetensors" in done.err.splitlines()[-1]


def test_force_trains_anew(here: Path, titans: Titans) -> None:
    again = [*TINY, "--set", "train.steps=1", "--data", "text.jsonl", "--out", "run"]
    assert titans("language", "train", *again, "--force").code == 0
    assert [p.name for p in (here / "run/checkpoints").iterdir()] == ["step-0000001"]


@pytest.fixture
def judged(here: Path, titans: Titans) -> Path:
    """A run whose second checkpoint, and not its last, is the best."""
    more = ["--set", "train.valid_every=2", "--set", "train.steps=6"]
    assert (
        titans("language", "train", *TINY, "--data", "text.jsonl", *more, "--out", "judged").code
        == 0
    )
    best = here / "judged/checkpoints/best.json"
    table = json.loads(best.read_text())
    best.write_text(json.dumps(table | {"checkpoint": "step-0000004"}))
    return here / "judged"


def test_a_run_is_read_at_its_last_checkpoint_or_at_its_best(
    judged: Path, here: Path, titans: Titans
) -> None:
    found = {}
    for which in ("last", "best"):
        model, tokenizer, config = load_run(judged, CPU, which)
        training, held_out = texts_for(judged, config, None)
        table = report(model, tokenizer, held_out, training, window=config.data.seq_len)
        asked = titans("language", "eval", "judged", "--json", "--checkpoint", which)
        assert json.loads(asked.out) == table
        done = titans(
            "language", "generate", "judged", "The", "--max-tokens", 20, "--checkpoint", which
        )
        assert done.out.startswith("The")
        (here / "doc.txt").write_text("A document that is read.")
        kept = titans(
            "language", "read", "judged", "doc.txt", "--memory", f"{which}.memory",
            "--checkpoint", which,
        )  # fmt: skip
        assert kept.code == 0
        found[which] = (table["bits_per_byte"], done.out, (here / f"{which}.memory").read_bytes())
    assert all(last != best for last, best in zip(found["last"], found["best"], strict=True))
    assert (
        json.loads(titans("language", "eval", "judged", "--json").out)["bits_per_byte"]
        == found["last"][0]
    )


def test_a_best_checkpoint_that_is_not_there_costs_a_line(here: Path, titans: Titans) -> None:
    for command in (["eval", "run"], ["generate", "run"]):
        done = titans("language", *command, "--checkpoint", "best")
        assert_refused(done, "There is no best checkpoint in run/checkpoints: none was validated")
        done = titans("language", *command, "--checkpoint", "first")
        assert_refused(done, "A checkpoint is 'last' or 'best': got 'first'.")
