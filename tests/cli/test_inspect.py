"""`titans inspect`: reports that stand by themselves, numbers for scripts, and what is refused."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from console import Titans, assert_refused, contents
from inspection_runs import BROWSER, CPU, READ, made_once, opened, rendered
from matplotlib import image

from titans_core import join, load_memory, save_memory
from titans_domains.inspection.along import read_along
from titans_domains.inspection.along_table import as_table
from titans_domains.timeseries.task import load_run, series_for

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory)


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of runs and files as the working folder."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


class Page(HTMLParser):
    """What a page refers to, its scripts, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def assert_alone(page: Path) -> None:
    """Nothing is fetched, and nothing that was read runs."""
    text = page.read_text(encoding="utf-8")
    tags = Page(text).tags
    for _, attributes in tags:
        assert not {"src", "srcset", "action", "data"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    scripts = [attributes.get("type") for tag, attributes in tags if tag == "script"]
    assert scripts in ([], ["application/json", None])
    assert "document.title = 'broken'</script>" not in text
    assert "<b>load" not in text


@pytest.mark.parametrize("name", READ)
def test_a_report_on_surprise_is_written(here: Path, titans: Titans, name: str) -> None:
    done = titans("inspect", "surprise", name, READ[name], "--png", "out.png", "--out", "out.html")
    assert (done.code, done.out) == (0, "out.html\nout.png\n"), done.err
    assert "reading " in done.err
    assert_alone(here / "out.html")
    assert image.imread(here / "out.png").shape[1] > 1000
    data = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', (here / "out.html").read_text()
    )
    assert data is not None
    table = json.loads(data[1])
    wanted = as_table(read_along(opened(here, name), here / READ[name]))
    assert table["count"] == wanted["tokens"] == len(wanted["labels"])
    done = titans("inspect", "surprise", name, READ[name], "--json")
    found = json.loads(done.out)
    assert not (here / "surprise.html").exists()
    assert found["labels"] == wanted["labels"]
    assert found["settings"]["chunk_size"] == wanted["settings"]["chunk_size"]
    for measure in ("surprise", "before", "step_size", "momentum", "forget", "written"):
        np.testing.assert_allclose(found[measure], wanted[measure], rtol=1e-5)


def test_a_part_of_a_file_is_drawn_and_said_so(here: Path, titans: Titans) -> None:
    done = titans(
        "inspect", "surprise", "causal", "genome.fa", "--first", 20, "--draw", 30, "--record", "one"
    )
    assert (done.code, done.out) == (0, "surprise.html\n"), done.err
    text = (here / "surprise.html").read_text()
    assert "120 of 150 tokens are not drawn" in text
    assert "tokens 20 to 49 are drawn" in text
    # The base that stands there.
    assert "<b>21</b>" in text
    found = json.loads(
        titans("inspect", "surprise", "causal", "genome.fa", "--draw", 7, "--json").out
    )
    assert (found["tokens"], len(found["surprise"])) == (220, 7)


@pytest.mark.parametrize("name", READ)
def test_a_report_on_a_memory_is_written(here: Path, titans: Titans, name: str) -> None:
    done = titans("inspect", "memory", name, READ[name], "--json", "--out", "out.html")
    assert done.code == 0, done.err
    path, line = done.out.splitlines()
    assert path == "out.html"
    assert_alone(here / "out.html")
    found = json.loads(line)
    assert found["apart"] == 0
    assert found["position"] >= found["tokens"] > 8
    assert len(found["matrices"]) == len(opened(here, name).units)
    for row in found["heads"]:
        assert -1 <= row["recall"] <= 1
        assert 0 <= row["found"] <= 1
        assert sum(row["tokens"]) == found["watched"]
        assert row["error"] < row["error_before"]


def test_a_name_that_is_no_utf8_is_shown(here: Path, titans: Titans) -> None:
    name = os.fsdecode(b"\xff\xfe.txt")
    shutil.copy("text.txt", name)
    for command in ("surprise", "memory"):
        done = titans("inspect", command, "text", name, "--out", f"{command}.html")
        assert done.code == 0, done.err
        assert "\ufffd\ufffd.txt" in (here / f"{command}.html").read_text(encoding="utf-8")
    done = titans("inspect", "surprise", "text", name, "--png", "x.png", "--json")
    assert done.code == 0, done.err
    assert os.fsencode(json.loads(done.out.splitlines()[-1])["file"]) == b"\xff\xfe.txt"


def test_a_memory_file_is_known_again(here: Path, titans: Titans) -> None:
    for document in ("text.txt", "other.txt"):
        assert (
            titans("language", "read", "text", document, "--memory", f"{document}.memory").code == 0
        )
    ask = ("inspect", "memory", "text", "text.txt", "--json", "--memory")
    same = json.loads(titans(*ask, "text.txt.memory").out)
    afresh = json.loads(titans(*ask[:-1]).out)
    assert same["apart"] < 1e-5
    for ours, theirs in zip(same["heads"], afresh["heads"], strict=True):
        assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-5)
        assert type(ours["half_life"]) is type(theirs["half_life"])
        assert ours["gate_half_life"] == theirs["gate_half_life"]
    other = json.loads(titans(*ask, "other.txt.memory").out)
    assert other["apart"] > 0.01
    # To a memory that has read something else the gates of this text say nothing.
    assert "retained_by_age" not in other["heads"][0]
    assert other["heads"][0]["half_life"] is None
    done = titans(*ask, "other.txt.memory", "--out", "out.html")
    assert done.code == 0
    assert "is not the one that reading text.txt leaves" in (here / "out.html").read_text()
    alone = json.loads(
        titans("inspect", "memory", "text", "--memory", "other.txt.memory", "--json").out
    )
    assert (alone["heads"], alone["file"]) == (None, None)
    assert alone["matrices"] == other["matrices"]
    nothing = json.loads(titans("inspect", "memory", "text", "--json").out)
    assert nothing["position"] == 0
    assert {row["distance"] for row in nothing["matrices"]} == {0}


def test_memories_are_compared(here: Path, titans: Titans) -> None:
    for document in ("text.txt", "other.txt"):
        assert (
            titans("language", "read", "text", document, "--memory", f"{document}.memory").code == 0
        )
    files = ("text.txt.memory", "other.txt.memory")
    done = titans("inspect", "compare", "text", *files, "--out", "out.html")
    assert (done.code, done.out) == (0, "out.html\n"), done.err
    assert_alone(here / "out.html")
    by_files = json.loads(titans("inspect", "compare", "text", *files, "--json").out)
    assert by_files["keys"] == {}
    assert all(-1 <= row["agree"] < 1 for row in by_files["chance"])
    by_texts = json.loads(
        titans("inspect", "compare", "text", "text.txt", "other.txt", "--json").out
    )
    for ours, theirs in zip(by_files["matrices"], by_texts["matrices"], strict=True):
        assert ours["difference"] == pytest.approx(theirs["difference"], rel=1e-4)
    asked = titans("inspect", "compare", "text", *files, "--text", "text.txt", "--json")
    rows = json.loads(asked.out)["keys"]["text.txt"]
    wanted = by_texts["keys"]["text.txt"]
    assert [r["recall_a"] for r in rows] == pytest.approx([r["recall_a"] for r in wanted], abs=1e-5)


@pytest.mark.parametrize("name", ["series", "causal", "classes"])
def test_every_domain_compares(here: Path, titans: Titans, name: str) -> None:
    file = READ[name]
    done = titans("inspect", "compare", name, file, file, "--out", "out.html", "--json")
    assert done.code == 0, done.err
    assert_alone(here / "out.html")
    found = json.loads(done.out.splitlines()[1])
    assert {row["difference"] for row in found["matrices"]} == {0}


def test_one_of_several_memories_is_chosen(here: Path, titans: Titans) -> None:
    predictor, config = load_run(here / "series", CPU)
    carrying = predictor.carry()
    carrying.update(series_for(here / "series", config, str(here / "series.csv")))
    carrying.save(here / "carried")
    file = "carried/streams.memory"
    ask = ("inspect", "memory", "series", "series.csv", "--record", "price", "--memory", file)
    assert_refused(titans(*ask), "holds 2 memories: choose one with --row")
    assert json.loads(titans(*ask, "--row", 1, "--json").out)["apart"] < 1e-4
    assert json.loads(titans(*ask, "--row", 0, "--json").out)["apart"] > 0.01
    assert_refused(titans(*ask, "--row", 2), "--row must be below the 2 memories")


def test_what_cannot_be_inspected_is_refused(here: Path, titans: Titans) -> None:
    (here / "empty.txt").write_text("")
    (here / "short.csv").write_text("date,a\n2024-01-01 00:00,1\n2024-01-01 01:00,2\n")
    (here / "there.html").write_text("mine")
    assert titans("language", "read", "text", "text.txt", "--memory", "a.memory").code == 0
    run = opened(here, "text")
    backbone = run.subject.backbone
    torch.manual_seed(3)
    with torch.no_grad():
        backbone.norm.weight += 1
    save_memory("b.memory", backbone.fresh_state(1), backbone)
    (here / "cut.memory").write_bytes((here / "a.memory").read_bytes()[:200])
    before = contents(here)
    for command, sentence in (
        (
            ("surprise", "window", "text.txt"),
            "has no neural memory to inspect: its mixer is attention",
        ),
        (("surprise", "nowhere", "text.txt"), "There is no run folder 'nowhere'"),
        (("surprise", "carried", "text.txt"), "There is no run folder"),
        (("surprise", "text", "empty.txt"), "empty.txt"),
        (("surprise", "text", "none.txt"), "There is no document 'none.txt'"),
        (("surprise", "text", "."), "is a folder"),
        (("surprise", "text", "text.txt", "--record", "x"), "leave --record away"),
        (("surprise", "text", "text.txt", "--first", 10_000), "--first must be below"),
        (("surprise", "text", "text.txt", "--out", "there.html"), "there.html is there already"),
        (("surprise", "text", "text.txt", "--out", "no/x.html"), "There is no folder no"),
        (("surprise", "text", "text.txt", "--out", "x", "--png", "x"), "give two names"),
        (("surprise", "causal", "text.txt"), "text.txt"),
        (("surprise", "causal", "genome.fa", "--record", "three"), "has no record 'three'"),
        (("surprise", "series", "short.csv"), "is longer than a context and varies"),
        (("surprise", "series", "series.csv", "--record", "three"), "has no series 'three'"),
        (("surprise", "series", "series.csv", "--checkpoint", "best"), "leave --checkpoint out"),
        (("surprise", "causal", "genome.fa", "--checkpoint", "best"), "leave --checkpoint out"),
        (("memory", "window"), "has no neural memory to inspect"),
        (("memory", "text", "--memory", "none.memory"), "There is no memory file"),
        (("memory", "text", "--memory", "text.txt"), "is no memory file of titans"),
        (("memory", "text", "--memory", "cut.memory"), "is no memory file of titans"),
        (("memory", "text", "--memory", "b.memory"), "is the memory of another model"),
        (("memory", "causal", "--memory", "a.memory"), "is the memory of a model with another"),
        (("memory", "text", "--row", 0), "--row chooses in a memory file"),
        (("memory", "text", "--record", "x"), "--record chooses in a file"),
        (("compare", "text", "a.memory", "none.txt"), "none.txt"),
        (("compare", "text", "a.memory", "b.memory"), "is the memory of another model"),
        (("compare", "text", "a.memory", "a.memory", "--text", "a.memory"), "its keys are gone"),
        (("compare", "text", "text.txt", "text.txt", "--row", 0), "--row chooses in a memory file"),
        (
            ("compare", "text", "a.memory", "a.memory", "--record", "x"),
            "--record chooses in a file",
        ),
    ):
        done = titans("inspect", *command)
        last = done.err.splitlines()[-1]
        assert (done.code, done.out) == (2, ""), (command, done)
        assert last.startswith("error: "), command
        assert sentence in last, (command, done.err)
    assert contents(here) == before
    done = titans("inspect", "memory", "text", "--out", "there.html", "--force")
    assert done.code == 0
    assert "<!doctype html>" in (here / "there.html").read_text()


def test_the_memory_of_several_readers_is_asked_by_row(here: Path, titans: Titans) -> None:
    run = opened(here, "text")
    backbone = run.subject.backbone
    assert titans("language", "read", "text", "text.txt", "--memory", "a.memory").code == 0
    state = load_memory("a.memory", backbone)
    save_memory("two.memory", join([backbone.fresh_state(1), state]), backbone)
    ask = ("inspect", "memory", "text", "--memory", "two.memory", "--json")
    distances = [
        {row["distance"] > 0 for row in json.loads(titans(*ask, "--row", row).out)["matrices"]}
        for row in (0, 1)
    ]
    assert distances == [{False}, {True}]


LOOK = """
found.title = document.title;
const tokens = [...document.querySelectorAll('#tokens .text i, #tokens .letters i, #tokens rect')];
found.count = tokens.length;
found.text = tokens.map((token) => token.textContent).join('');
const shades = () => tokens.map((token) => token.getAttribute('class').match(/s(\\d)/)[1]).join('');
found.all = shades();
const choose = (id, value) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event('change', { bubbles: true }));
};
choose('head', '1'); choose('layer', '0'); choose('memory', 'block 0');
found.one = shades();
found.what = document.getElementById('what').textContent;
tokens[3].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
found.at = document.getElementById('at').textContent;
const press = (key) => document.getElementById('tokens').dispatchEvent(new KeyboardEvent('keydown', { key }));
press('ArrowRight');
found.next = document.getElementById('at').textContent;
found.on = tokens.findIndex((token) => token.classList.contains('on'));
found.cursor = document.querySelector('.cursor').getAttribute('x1');
found.wide = document.documentElement.scrollWidth <= window.innerWidth;
"""


@needs_browser
@pytest.mark.parametrize("name", READ)
def test_a_browser_shows_what_was_computed(
    here: Path, titans: Titans, tmp_path: Path, name: str
) -> None:
    command = ("inspect", "surprise", name, READ[name])
    assert titans(*command, "--out", "out.html").code == 0
    table = json.loads(titans(*command, "--json").out)
    found = rendered(here / "out.html", LOOK, tmp_path)
    # The script in the text has not run.
    assert found["title"] == f"Surprise along {READ[name]}"
    assert found["count"] == table["tokens"]
    if name == "text":
        shown = found["text"].replace("\u21b5", "").replace("\u21e5", "")
        assert shown == (here / "text.txt").read_text()
    surprise = np.array(table["surprise"], np.float32)
    units = table["units"]
    reading = [
        i for i, u in enumerate(units) if (u["memory"], u["head"], u["layer"]) == ("block 0", 1, 0)
    ]
    for shades, values in (
        (found["all"], surprise.mean(1)),
        (found["one"], surprise[:, reading].mean(1)),
    ):
        low, high = np.quantile(values, (0.02, 0.98))
        wanted = np.clip((values - low) / (high - low) * 10, 0, 9).astype(int)
        apart = np.abs(np.array([int(shade) for shade in shades]) - wanted)
        # Another rounding may put a number on the other side of a shade's edge.
        assert apart.max() <= 1
        assert (apart == 0).mean() > 0.9
    assert found["on"] == 4
    assert found["at"].startswith("token 3 ")
    assert found["next"].startswith("token 4 ")
    said = float(re.search(r"surprise ([\d.]+)", found["at"])[1])  # type: ignore[index]
    assert said == pytest.approx(surprise[3, reading].mean(), rel=1e-2)
    assert float(found["cursor"]) == pytest.approx(4.5 * 1000 / table["tokens"], rel=1e-3)
    assert found["wide"]


@needs_browser
@pytest.mark.parametrize("kind", ["memory", "compare"])
def test_a_browser_shows_the_other_reports(
    here: Path, titans: Titans, tmp_path: Path, kind: str
) -> None:
    files = ("text.txt",) if kind == "memory" else ("text.txt", "other.txt")
    assert titans("inspect", kind, "text", *files, "--out", "out.html").code == 0
    script = (
        "found.rows = document.querySelectorAll('.figures tbody tr').length;"
        "found.curves = document.querySelectorAll('.card svg').length;"
        "found.wide = document.documentElement.scrollWidth <= window.innerWidth;"
    )
    found = rendered(here / "out.html", script, tmp_path)
    # Two blocks of two heads of two layers.
    assert found == {
        "rows": 4 + 8 if kind == "memory" else 8 + 4 + 4,
        "curves": 4 if kind == "memory" else 0,
        "wide": True,
    }
