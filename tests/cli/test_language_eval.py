"""`titans language eval --by-position` and `lm-eval`: tables, JSON, pictures, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from console import Titans, assert_refused, contents
from lm_eval_files import CHOICES, TEXTS, write_tasks

from titans_cli.language_eval import task_rows
from titans_domains.language import load_run
from titans_domains.language.evaluate import bits_per_byte
from titans_domains.language.positions import by_position, long_documents, table_of
from titans_domains.language.task import texts_for

CPU = torch.device("cpu")
BY = ("language", "eval", "run", "--data", "text.jsonl", "--by-position")


def test_bits_by_position_as_json_as_text_and_as_a_picture(here: Path, titans: Titans) -> None:
    done = titans(*BY, "--length", "64", "--json")
    assert done.code == 0
    model, tokenizer, config = load_run(here / "run", CPU)
    texts = long_documents(texts_for(here / "run", config, "text.jsonl")[1], 64)
    assert len(texts) > 1
    wanted = by_position(model, tokenizer, texts, 64, window=config.data.seq_len)
    assert json.loads(done.out) == wanted
    assert done.err.startswith("reading ")
    pytest.importorskip("matplotlib")
    done = titans(*BY, "--length", "64", "--plot", "bits.png")
    head, *lines = done.out.splitlines()
    assert head.split("  ")[0] == "bytes"
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    assert cells == table_of(wanted)[1:]
    assert "bits.png: drawn" in done.err
    assert (here / "bits.png").read_bytes().startswith(b"\x89PNG")
    assert titans(*BY, "--length", "64", "--plot", "bits.png", "--force").code == 0


def test_a_length_that_half_of_the_documents_have_is_taken(here: Path, titans: Titans) -> None:
    found = json.loads(titans(*BY, "--json").out)
    sizes = [
        len(json.loads(x)["text"].encode()) for x in (here / "text.jsonl").read_text().splitlines()
    ]
    assert found["documents"] == sum(size >= found["length"] for size in sizes) >= len(sizes) / 2
    assert sum(size >= 2 * found["length"] for size in sizes) < len(sizes) / 2


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((*BY[:3], "--plot", "a.png"), "--length and --plot are for --by-position"),
        ((*BY[:3], "--length", "64"), "--length and --plot are for --by-position"),
        ((*BY, "--length", "9999"), "No document has 9999 bytes, the longest has"),
        ((*BY, "--length", "5"), "length must be at least 64 bytes"),
        ((*BY, "--plot", "text.jsonl"), "A picture must be named *.png"),
        ((*BY, "--plot", "there.png"), "there.png is there already"),
        ((*BY, "--plot", "no/a.png"), "There is no folder no"),
    ],
)
def test_what_cannot_be_read_or_drawn_costs_a_line(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    pytest.importorskip("matplotlib")
    (here / "there.png").write_text("a picture")
    before = contents(here)
    assert_refused(titans(*args), sentence)
    assert contents(here) == before


def test_without_lm_eval_a_line_says_what_to_install(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if "lm_eval_" in name or name == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = titans("language", "lm-eval", "run", "--tasks", "piqa")
    assert_refused(
        done, "titans language lm-eval needs lm-eval: pip install 'titans-toolkit[eval]'"
    )


def test_figures_stand_by_task_and_metric() -> None:
    results = {
        "a": {"acc,none": 0.5, "acc_stderr,none": 0.25, "alias": "a"},
        "b": {"match,strict": 1, "match_stderr,strict": "N/A", "ppl,none": 123456.78},
    }
    other = {
        "a": {"acc,none": 0.25, "acc_stderr,none": "N/A"},
        "b": {"match,strict": 0, "ppl,none": 2.0},
    }
    assert task_rows({"carried": results, "window": other}) == [
        ["task", "metric", "carried", "window"],
        ["a", "acc", "0.5000 ± 0.2500", "0.2500"],
        ["b", "match, strict", "1.0000", "0.0000"],
        ["b", "ppl", "1.235e+05", "2.0000"],
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tasks_of_lm_eval_are_asked_in_every_mode(here: Path, titans: Titans) -> None:
    pytest.importorskip("lm_eval")
    write_tasks(here / "tasks")
    ask = ("language", "lm-eval", "run", "--include-path", "tasks", "--tasks")
    found = json.loads(titans(*ask, "pages,choose", "--json").out)
    assert list(found) == ["carried", "window"]
    model, tokenizer, config = load_run(here / "run", CPU)
    texts = [row["text"].encode() for row in TEXTS]
    bits = bits_per_byte(model, tokenizer, texts, "carried", window=config.data.seq_len)
    assert found["carried"]["pages"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-9)
    assert found["window"]["pages"]["bits_per_byte,none"] != pytest.approx(bits, abs=1e-3)
    assert found["carried"]["choose"]["acc,none"] in [n / len(CHOICES) for n in (0, 1, 2)]
    done = titans(*ask, "pages", "--mode", "carried", "--limit", "1")
    first = bits_per_byte(model, tokenizer, texts[:1], "carried", window=config.data.seq_len)
    assert done.code == 0
    assert done.out.splitlines()[0].split() == ["task", "metric", "carried"]
    assert f"pages bits_per_byte {first:.4f}".split() in map(str.split, done.out.splitlines())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_s_own_command_knows_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    from titans_domains.language.lm_eval_adapter import main

    write_tasks(here / "tasks")
    args = ["--model", "titans", "--model_args", "run=run,mode=window,window=16", "--device", "cpu"]
    args += ["--tasks", "pages", "--include_path", "tasks"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *args])
    main()
    assert "bits_per_byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("run", "--tasks", " , "), "--tasks must name a task: got none"),
        (("run", "--tasks", "pages", "--include-path", "no"), "There is no folder of tasks 'no'"),
        (("nowhere", "--tasks", "pages"), "There is no run folder 'nowhere'"),
        (
            ("run", "--tasks", "pages", "--mode", "frozen"),
            "mode must be one of carried, window for",
        ),
        (("run", "--tasks", "pages", "--device", "tpu"), "--device must be auto, cpu, cuda"),
    ],
)
def test_mistakes_in_lm_eval_cost_a_line(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    pytest.importorskip("lm_eval")
    assert_refused(titans("language", "lm-eval", *args), sentence)
