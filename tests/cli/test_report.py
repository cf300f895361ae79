"""`titans report`: the page of a run anew, from its folder alone, and never over another file unasked."""

import shutil
from pathlib import Path

import pytest
from console import Titans, assert_refused


def test_training_leaves_a_report_and_report_writes_it_anew(
    trained: Path, tmp_path: Path, titans: Titans
) -> None:
    """The data is not needed for it."""
    text = (trained / "run/report.html").read_text()
    assert "bits per byte" in text
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (run / "report.html").unlink()
    done = titans("report", run)
    assert (done.code, done.out) == (0, f"{run}/report.html\n"), done.err
    assert (run / "report.html").read_text() == text


def test_a_report_goes_where_it_is_asked_for(trained: Path, tmp_path: Path, titans: Titans) -> None:
    page, run = tmp_path / "page.html", trained / "run"
    assert titans("report", run, "--out", page).out == f"{page}\n"
    assert page.read_text() == (run / "report.html").read_text()
    page.write_text("mine")
    assert_refused(titans("report", run, "--out", page), "page.html is there already")
    assert page.read_text() == "mine"
    assert titans("report", run, "--out", page, "--force").code == 0
    assert page.read_text() != "mine"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("none",), "There is no run folder 'none'"),
        ((".",), "config.json"),
        (("run", "--out", "none/page.html"), "There is no folder none: make it first"),
        (("run", "--out", "run", "--force"), "run is a folder: give the path of a file for --out"),
        (("run", "--out", "run"), "run is a folder: give the path of a file for --out"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    assert_refused(titans("report", *args), sentence)


def test_a_log_that_is_damaged_is_named(here: Path, titans: Titans) -> None:
    (here / "run/metrics.csv").write_text("step,loss\nfirst,3\n2,1\n")
    before = (here / "run/report.html").read_text()
    assert_refused(titans("report", "run"), "run/metrics.csv is damaged")
    assert (here / "run/report.html").read_text() == before


def test_a_logger_that_is_none_is_refused_before_anything_is_made(
    here: Path, titans: Titans
) -> None:
    done = titans("language", "train", "--data", "text.jsonl", "--log", "paper", "--out", "new")
    assert_refused(done, "--log must be tensorboard or wandb: got 'paper'.")
    assert not (here / "new").exists()
