"""`titans language read --anomalies`: what it lists, and what it does not go with."""

import json
from pathlib import Path

import pytest
import torch
from console import Titans, assert_refused, contents
from tiny_language import SENTENCES

from titans_domains.language import load_run
from titans_domains.language.anomalies import anomalies, surprises_of

READ = ("language", "read", "run", "doc.txt", "--anomalies")


@pytest.fixture
def work(here: Path) -> Path:
    (here / "doc.txt").write_text(SENTENCES[0] * 3 + "\n\t" + SENTENCES[1], encoding="utf-8")
    return here


def test_what_is_far_out_is_listed(work: Path, titans: Titans) -> None:
    before = contents(work)
    text = (work / "doc.txt").read_bytes()
    model, tokenizer, _ = load_run(work / "run", torch.device("cpu"))
    surprise = surprises_of(model, tokenizer, text)
    wanted = anomalies(tokenizer, text, surprise, far=2.0)
    assert wanted
    done = titans(*READ, "--far", 2, "--json")
    assert done.code == 0
    table = json.loads(done.out)
    assert table["tokens"] == len(text)
    assert [(a["start"], a["end"]) for a in table["anomalies"]] == [
        (a.start, a.end) for a in wanted
    ]
    done = titans(*READ, "--far", 2)
    header, *lines = done.out.splitlines()
    assert header == "start\tend\ttokens\tscore\tunit\ttext"
    assert len(lines) == len(wanted)
    assert lines[0].split("\t")[:3] == [str(x) for x in wanted[0][:3]]
    tokens = sum(a.tokens for a in wanted)
    assert done.err.splitlines()[-1] == f"doc.txt: {tokens} of {len(text)} tokens are far out"
    done = titans(*READ, "--far", 1e9)
    assert (done.code, done.out) == (0, "")
    assert contents(work) == before


def test_what_does_not_go_together_is_refused(work: Path, titans: Titans) -> None:
    for more, sentence in (
        (("--memory", "m"), "keeps none: leave --memory and --from out"),
        (("--from", "m"), "keeps none: leave --memory and --from out"),
        (("--far", 0), "far must be above 0 deviations"),
    ):
        assert_refused(titans(*READ, *more), sentence)
    read = READ[:-1]
    assert_refused(titans(*read), "Give --memory FILE to keep the memory in, or --anomalies.")
    done = titans(*read, "--memory", "m", "--far", 3)
    assert_refused(done, "--far is for --anomalies")


def test_a_memory_that_is_kept_can_be_told_as_json(work: Path, titans: Titans) -> None:
    read = READ[:-1]
    done = titans(*read, "--memory", "m", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert told.keys() == {"memory", "bytes", "positions", "bits_per_byte"}
    assert told["memory"] == "m"
    assert told["bytes"] == (work / "m").stat().st_size
    # And one for the document's start.
    assert told["positions"] == (work / "doc.txt").stat().st_size + 1
    assert f"{told['bits_per_byte']:.3f} bits/byte" in done.err
    assert titans(*read, "--memory", "n").out == "n\n"
