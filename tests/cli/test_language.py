"""`titans language`: data on stdout and talk on stderr, from training to generation."""

import json
import shutil
from pathlib import Path

import torch
from console import TINY, Titans, contents

from titans_domains.language import DOMAIN, load_run
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
        "checkpoints", "config.json", "metrics.csv",
    ]  # fmt: skip


def test_options_are_settings_by_another_name(here: Path, titans: Titans) -> None:
    options = ["--data", "text.jsonl", "--mixer", "attention", "--seed", "7", "--device", "cpu"]
    done = titans("language", "train", *TINY, "--set", "train.steps=1", *options)
    assert (done.code, done.out) == (0, "runs/tiny\n")
    config, _ = load_run_table(here / "runs/tiny", DOMAIN)
    assert (config.model.mixer, config.seed, config.train.steps) == ("attention", 7, 1)
    assert config.data.source == "text.jsonl"
    assert titans("language", "eval", "runs/tiny").out.startswith("attention, window(32) ")


def test_evaluation_as_json_and_as_text(here: Path, titans: Titans) -> None:
    done = titans("language", "eval", "run", "--json")
    assert done.code == 0
    model, tokenizer, config = load_run(here / "run", CPU)
    training, held_out = texts_for(here / "run", config, None)
    wanted = report(model, tokenizer, held_out, training, window=config.data.seq_len)
    assert json.loads(done.out) == wanted
    assert done.err.startswith("reading ")
    rows = [f"{name:28} {bits:.3f} bits/byte" for name, bits in wanted["bits_per_byte"].items()]
    rows += [f"{name:28} {bits:.3f} bits/byte" for name, bits in wanted["floors"].items()]
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
    assert "order-5 n-gram, static" not in json.loads(done.out)["floors"]


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
    assert done.err.startswith("lmm, ")
    assert done.err.count("\n") == 1


def test_force_trains_anew(here: Path, titans: Titans) -> None:
    again = [*TINY, "--set", "train.steps=1", "--data", "text.jsonl", "--out", "run"]
    assert titans("language", "train", *again, "--force").code == 0
    assert [p.name for p in (here / "run/checkpoints").iterdir()] == ["step-0000001"]
