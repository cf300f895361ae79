"""The report of a run: all of its log, nothing from elsewhere, escaped, and whole whenever it is there."""

import json
import math
import os
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_timeseries
from dna_files import bases
from inspection_runs import BROWSER, rendered
from tiny_language import CPU, rows_of, tiny_config, write_documents

from titans_core import files as core_files
from titans_domains import dna, timeseries
from titans_domains.config import override
from titans_domains.dna.task import split_examples
from titans_domains.language import DOMAIN
from titans_domains.language.evaluate import report as evaluate_report
from titans_domains.language.task import LanguageTask, load_run, texts_for
from titans_domains.page import page, tag
from titans_domains.report import REPORT, build_report, write_report
from titans_domains.report.build import counted
from titans_domains.report.curves import MOST_POINTS, axis, curve
from titans_domains.report.read import Column, read_metrics, read_samples
from titans_domains.runs import resume_run, train_run

NASTY = "</script><script>document.title = 'broken'</script><!-- & \"'"


class Reader(HTMLParser):
    """Elements, the texts of each kind of them, and every attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(name)
        self.attributes += attributes
        self.open.append(name)
        self.texts.setdefault(name, []).append("")

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(name)
        self.attributes += attributes

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += text


def written(folder: Path, steps: int = 6, **extra: str) -> Path:
    """A run's folder, as a third party's domain could leave it."""
    run = folder / "words"
    run.mkdir()
    (run / "config.json").write_text(
        json.dumps({"schema": 1, "domain": "words", "config": {"width": 3, "source": NASTY}})
    )
    rows = ["step,loss,lr,tokens_per_s,valid_loss,valid_hits"]
    for step in range(1, steps + 1):
        held_out = f"{9 / step},{step / 10}" if step % 3 == 0 else ","
        rows.append(f"{step},{10 / step},0.1,{1000 + step},{held_out}")
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    for name, text in extra.items():
        (run / name.replace("_", ".")).write_text(text)
    return run


def data_of(text: str) -> dict[str, Any]:
    (data,) = [t for t in Reader(text).texts["script"] if t.startswith("{")]
    return json.loads(data)


def figure(text: str, title: str) -> dict[str, Any]:
    """The curves of a figure by their names."""
    reader = Reader(text)
    titles = [t for t in reader.texts["h3"] if t not in ("run", "model", "data", "train", "loss ")]
    return {c["name"]: c for c in data_of(text)["figures"][titles.index(title)]}


def test_a_page_escapes_what_is_no_html() -> None:
    text = page(NASTY, tag("p", NASTY, title=NASTY), data={"text": NASTY})
    reader = Reader(text)
    assert reader.elements.count("script") == 1
    assert reader.texts["title"] == reader.texts["p"] == [NASTY]
    assert ("title", NASTY) in reader.attributes
    assert json.loads(reader.texts["script"][0]) == {"text": NASTY}
    with pytest.raises(ValueError, match="not JSON compliant"):
        page("", data=math.nan)
    name = os.fsdecode(b"\xff.txt")
    reader = Reader(page(name, tag("p", name, title=name)))
    assert reader.texts["title"] == reader.texts["p"] == ["\ufffd.txt"]
    assert ("title", "\ufffd.txt") in reader.attributes


def test_a_report_shows_a_run_of_any_domain_and_escapes_all_of_it(tmp_path: Path) -> None:
    facts = {
        "schema": 1,
        "describe": NASTY,
        "floors": {"valid_loss": {NASTY: 2.5, "none": math.nan}},
    }
    run = written(tmp_path, facts_json=json.dumps(facts), samples_txt=f"--- step 3\n{NASTY}\n")
    text = build_report(run)
    reader = Reader(text)
    assert reader.elements.count("script") == 2  # the numbers and the code
    assert reader.texts["h1"] == ["words"]
    assert NASTY in reader.texts["pre"]
    assert NASTY in reader.texts["td"]  # in the configuration
    assert f"words: {NASTY}" in reader.texts["p"]
    assert f"{NASTY} " in reader.texts["li"]  # the floor
    shown = dict(zip(reader.texts["span"], ["", *reader.texts["b"]], strict=False))
    assert {"steps", "loss of the last step", "loss held out, the best: step 6"} <= shown.keys()
    assert reader.texts["b"] == ["6", "1.667", "1.5", "1,004", "0"]


def test_a_report_fetches_nothing(tmp_path: Path) -> None:
    text = build_report(written(tmp_path, samples_txt="--- step 3\nhttps://example.com\n"))
    reader = Reader(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(reader.elements)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in reader.attributes}
    code = "".join(reader.texts["style"] + reader.texts["script"])
    assert not re.search(r"url\(|@import|fetch|XMLHttp|import\(|https?:", code)
    assert any("default-src 'none'" in (value or "") for _, value in reader.attributes)


def test_the_same_folder_makes_the_same_page(tmp_path: Path) -> None:
    run = written(tmp_path)
    once = build_report(run)
    shutil.copytree(run, tmp_path / "elsewhere" / run.name)
    assert build_report(tmp_path / "elsewhere" / run.name) == once
    assert write_report(run, tmp_path / "out.html") == tmp_path / "out.html"
    assert (tmp_path / "out.html").read_text() == once
    assert not (run / REPORT).exists()


def test_the_numbers_of_the_page_are_those_of_the_log(tmp_path: Path) -> None:
    loss = figure(build_report(written(tmp_path)), "loss")
    assert loss["training"]["steps"] == [1, 2, 3, 4, 5, 6]
    assert loss["training"]["means"] == pytest.approx([10 / s for s in range(1, 7)], rel=1e-5)
    assert (loss["held out"]["steps"], loss["held out"]["means"]) == ([3, 6], [3.0, 1.5])


def test_a_long_log_is_thinned_and_every_value_counts() -> None:
    draw = random.Random(0)
    values = [draw.gauss(0, 1) for _ in range(12_345)]
    values[777] = 50.0
    values[5000] = math.nan
    one = curve("", Column(list(range(1, 12_346)), values), "a")
    assert one.lows is not None
    assert one.highs is not None
    assert len(one.steps) == len(one.means) == MOST_POINTS
    assert one.steps[-1] == 12_345
    assert max(one.highs) == 50.0
    finite = [v for v in values if math.isfinite(v)]
    assert min(one.lows) == min(finite)
    sizes = [b - a for a, b in zip([0, *one.steps], one.steps, strict=False)]
    whole = sum(size * mean for size, mean in zip(sizes, one.means, strict=True))
    assert whole == pytest.approx(sum(finite), abs=1)
    short = curve("", Column([1, 2], [1.0, 2.0]), "a")
    assert (short.means, short.lows) == ([1.0, 2.0], None)


@pytest.mark.parametrize(
    ("values", "log"),
    [([1.0, 2.0, 3.0], False), ([0.1, 0.1, 0.2, 40.0], True), ([2.0], False), ([0.0, 0.0], False),
     ([-1.0, 1e-9, 5.0], False), ([], False), ([1e-12, 1e300], False), ([1e9 + 1, 1e9 + 2], False),
     ([0.0, 5e-324], False), ([5e-324, 1e-320, 1.0], False), ([-1e100, 1e100], False),
     ([2e-100, 1e-90, 9e99], True)],
)  # fmt: skip
def test_an_axis_holds_its_values_between_its_first_and_last_tick(
    values: list[float], log: bool
) -> None:
    found = axis(values)
    assert found.log is log
    assert 2 <= len(found.ticks) <= 8
    assert all(-1e-9 <= found.at(value) <= 1 + 1e-9 for value in values)
    assert (found.at(found.low), found.at(found.high)) == (0, 1)
    places = [found.at(tick) for tick in found.ticks]
    assert places == sorted(set(places))


def test_a_log_that_is_being_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,valid_loss\n1,3.0,\n2,nan,1.5\n3,2")
    columns = read_metrics(path)
    assert columns["loss"].steps == [1, 2]
    assert math.isnan(columns["loss"].values[1])
    assert columns["valid_loss"] == Column([2], [1.5])
    assert read_metrics(tmp_path / "none.csv") == {}
    path.write_text("step,loss\none,3.0\n2,1.0\n")
    with pytest.raises(ValueError, match=r"metrics.csv is damaged"):
        read_metrics(path)


def test_a_number_that_is_cut_short_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,2.125\n2,2.")
    assert read_metrics(path) == {"loss": Column([1], [2.125])}
    path.write_text("step,loss\r\n1,2.125\r\n2,2.5\r\n")
    assert read_metrics(path) == {"loss": Column([1, 2], [2.125, 2.5])}
    path.write_text("step,lo")
    assert read_metrics(path) == {}


def test_a_sample_may_look_like_the_title_of_one(tmp_path: Path) -> None:
    path = tmp_path / "samples.txt"
    path.write_text("--- step 5\na\n--- step 5\n--- step 2\nb\n--- step 10\n\nc\n")
    assert read_samples(path) == [(5, "a\n--- step 5\n--- step 2\nb"), (10, "\nc")]


def test_steps_left_out_are_drawn_from_zero_on_where_they_change() -> None:
    assert counted(Column([7, 8, 9, 12], [1.0, 1.0, 2.0, 2.0])) == Column(
        [0, 6, 7, 8, 9, 12], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    )


def test_training_writes_the_report_after_each_validation_and_at_the_end(tmp_path: Path) -> None:
    """And a run that was stopped and gone on with has the report of one that was not."""
    config = tiny_config(
        write_documents(tmp_path / "text.jsonl"), "train.valid_every=4", "train.sample_every=4"
    )
    run = tmp_path / "run"
    seen: dict[int, int | None] = {}

    def show(step: int, row: dict[str, Any]) -> None:
        path = run / REPORT
        seen[step] = None
        if path.exists():
            seen[step] = figure(path.read_text(), "loss")["training"]["steps"][-1]
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(DOMAIN, config, run, device=CPU, show=show)
    assert seen == {1: None, 2: None, 3: None, 4: 4, 5: 4}
    assert figure((run / REPORT).read_text(), "loss")["training"]["steps"][-1] == 5
    resume_run(DOMAIN, run, device=CPU)
    text = (run / REPORT).read_text()
    assert text == build_report(run)
    logged = [float(row["loss"]) for row in rows_of(run)]
    assert figure(text, "loss")["training"]["means"] == pytest.approx(logged, rel=1e-5)
    reader = Reader(text)
    assert {"step 4", "step 6"} <= set(reader.texts["summary"])
    made = json.loads((run / "config.json").read_text())
    assert {made["data_sha256"], made["made_with"]["torch"], "0"} <= set(reader.texts["td"])
    write_report(run)
    assert (run / REPORT).read_text() == text


def test_a_report_that_is_killed_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = written(tmp_path)
    write_report(run)
    before = (run / REPORT).read_text()
    (run / "metrics.csv").write_text("step,loss\n1,0.5\n")

    def killed(path: Path, content: str) -> None:
        path.write_text(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(core_files, "write_synced", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(run)
    assert (run / REPORT).read_text() == before
    assert not list(run.glob("*.tmp"))


def test_the_floors_of_a_text_are_those_that_eval_computes(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "text.jsonl")
    config = tiny_config(source, "train.valid_every=2", "train.steps=2", "data.valid_bytes=100000")
    run = tmp_path / "run"
    train_run(DOMAIN, config, run, device=CPU)
    model, tokenizer, config = load_run(run, CPU)
    training, texts = texts_for(run, config, None)
    table = evaluate_report(model, tokenizer, texts, training, window=32)
    facts = json.loads((run / "facts.json").read_text())
    assert facts["floors"] == {"valid_bits_per_byte": table["floors"]}
    assert facts["describe"].startswith("lmm, ")
    reader = Reader((run / REPORT).read_text())
    assert "Floors" in reader.texts["h2"]
    assert all(any(li.startswith(name) for li in reader.texts["li"]) for name in table["floors"])


def test_a_run_without_validation_computes_no_floors(tmp_path: Path) -> None:
    assert LanguageTask(tiny_config(write_documents(tmp_path / "text.jsonl")), CPU).floors() == {}


def test_classes_and_series_have_floors_of_their_own(tmp_path: Path) -> None:
    rows = [f"{bases(40, seed=i)},{'yes' if i % 4 else 'no'}\n" for i in range(40)]
    (tmp_path / "labelled.csv").write_text("sequence,label\n" + "".join(rows))
    source = f"data.source={json.dumps(str(tmp_path / 'labelled.csv'))}"
    settings = [
        source,
        "model.head.hidden=8",
        "train.steps=2",
        "train.valid_every=1",
        "train.batch_size=4",
    ]
    run = tmp_path / "classes"
    config: Any = override(dna.DOMAIN.presets["tiny"], settings)
    train_run(dna.DOMAIN, config, run, device=CPU)
    floors = json.loads((run / "facts.json").read_text())["floors"]
    assert floors.keys() == {f"valid_{n}" for n in ("loss", "accuracy", "mcc", "macro_f1", "auroc")}
    (accuracy,) = floors["valid_accuracy"].values()
    _, held_out = split_examples(config.data, config.seed)
    assert held_out is not None
    assert accuracy == [str(label) for label in held_out.labels].count("yes") / len(held_out.labels)
    assert floors["valid_auroc"] == {"shares of the classes alone": 0.5}
    run = tmp_path / "series"
    config = override(timeseries.DOMAIN.presets["tiny"], list(tiny_timeseries.SETTINGS))
    train_run(timeseries.DOMAIN, config, run, device=CPU)
    (floor,) = json.loads((run / "facts.json").read_text())["floors"]["valid_loss"].values()
    kept = json.loads((run / "best/score.json").read_text())["loss"]
    assert kept == min(floor, *(float(r["valid_loss"]) for r in rows_of(run) if r["valid_loss"]))


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here")
def test_a_browser_shows_the_numbers_at_the_pointer(tmp_path: Path) -> None:
    run = written(tmp_path, samples_txt=f"--- step 3\n{NASTY}\n")
    write_report(run)
    script = """
      found.title = document.title;
      found.wide = document.documentElement.scrollWidth <= innerWidth;
      const area = document.querySelector(".area"), place = area.getBoundingClientRect();
      const box = area.querySelector(".box"), line = area.querySelector(".line.a").getBoundingClientRect();
      found.hidden = getComputedStyle(box).display;
      const at = { clientX: place.left + place.width / 2, clientY: place.top + 5, bubbles: true };
      area.dispatchEvent(new PointerEvent("pointermove", at));
      found.shown = getComputedStyle(box).display;
      found.text = [...box.childNodes].map((node) => node.textContent);
      area.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      found.next = box.firstChild.textContent;
      found.from = (line.left - place.left) / place.width;
      found.to = (line.right - place.left) / place.width;
    """
    found = rendered(run / REPORT, script, tmp_path)
    assert found["title"] == "words: training report"
    assert found["wide"]
    assert (found["hidden"], found["shown"]) == ("none", "block")
    assert found["text"] == ["step 3", "training 3.333", "held out 3"]
    assert found["next"] == "step 4"
    # The curve reaches from the first step to the last.
    assert (found["from"], found["to"]) == (
        pytest.approx(1 / 6, abs=0.01),
        pytest.approx(1, abs=0.01),
    )


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("config.json", {"config": {"train": 3}}, "config.train must be a table, and is 3"),
        ("config.json", {"config": {"train": {"steps": "x"}}}, "train.steps must be a number"),
        ("config.json", {"made_with": ["torch"]}, "made_with must be a table"),
        ("facts.json", {"floors": 3}, "floors must be tables of numbers"),
        ("facts.json", {"floors": {"valid_loss": 3}}, "floors must be tables of numbers"),
        ("facts.json", {"floors": {"valid_loss": {"a": "b"}}}, "floors must be tables of numbers"),
    ],
)
def test_a_file_of_other_shapes_is_named(
    tmp_path: Path, name: str, change: dict[str, Any], sentence: str
) -> None:
    run = written(tmp_path, facts_json='{"schema": 1}')
    table = json.loads((run / name).read_text()) | change
    (run / name).write_text(json.dumps(table))
    with pytest.raises(ValueError, match=f"{name} is damaged: {sentence}"):
        build_report(run)


@pytest.mark.parametrize(
    "values", [(0, 5e-324), (-1.7e308, 1.7e308), (1e300, 10), (5e-324, 1e-320, 1), (2e-99, 3e99)]
)
def test_figures_of_any_size_are_drawn(tmp_path: Path, values: tuple[float, ...]) -> None:
    run = written(tmp_path)
    rows = [f"{step},{value},{value},{value}" for step, value in enumerate(values, 1)]
    (run / "metrics.csv").write_text("\n".join(["step,loss,tokens_per_s,valid_loss", *rows, ""]))
    floors = {"valid_loss": {"huge": 10**400, "small": 5e-324}}
    (run / "facts.json").write_text(json.dumps({"schema": 1, "floors": floors}))
    Reader(build_report(run))
    (run / "metrics.csv").write_text(f"step,loss\n{10**400},1\n")
    with pytest.raises(ValueError, match=r"metrics.csv is damaged: it has a step"):
        build_report(run)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no run folder"):
        build_report(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"schema": 1, "domain": "words"}')
    with pytest.raises(
        ValueError, match=r"config.json is damaged: it has no 'domain' and 'config'"
    ):
        build_report(tmp_path)
