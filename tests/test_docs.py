"""The docs say what is so: their blocks run, their commands parse, their numbers are computed."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Titans, caller
from page_files import shorten_what_is_embedded, write_files
from pages import (
    DOCS,
    PAGES,
    ROOT,
    Block,
    Refused,
    blocks,
    commands,
    parse,
    run_python,
    small,
    words_of,
)

from titans_core import MIXERS, PRESETS, count_parameters
from titans_domains.language.model import LanguageModel

CHOICES = (DOCS / "choices.md").read_text()
NOT_RUN = {
    "how-to/corpus.md": 2,
    "how-to/long-documents.md": 1,
    "how-to/memory.md": 1,
    "scale.md": 2,
    "serving.md": 2,
    "start/forecasting.md": 1,
    "start/language.md": 1,
}
"""Blocks of each page that are only parsed, each with its reason in a comment before it."""


@pytest.fixture
def titans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Titans:
    return caller(monkeypatch, capsys)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the reader's files; what the page imported from it is gone when it is over."""
    write_files(tmp_path)
    shorten_what_is_embedded(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = dict(MIXERS)
    yield
    MIXERS.clear()
    MIXERS.update(known)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def run_shell(block: Block, titans: Titans, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What its commands said; None where they are not run."""
    said = ""
    for words, target in commands(block.body):
        parse(words, monkeypatch)
        if block.why is not None:
            continue
        done = titans(*small(words))
        assert done.code == 0, f"titans {' '.join(words)}: {done.err}"
        if target is not None:
            target.write_text(done.out)
        said += done.out + done.err
    return said if block.why is None else None


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(DOCS / p))])
def test_the_blocks_of_a_page_run_in_their_order(
    page: str,
    reader: None,
    titans: Titans,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    said: str | None = None
    for block in blocks(DOCS / page):
        if block.kind == "python":
            capsys.readouterr()
            run_python(block, names, page)
            out, err = capsys.readouterr()
            assert err == ""
            said = out
        elif block.kind == "sh":
            said = run_shell(block, titans, monkeypatch)
        elif block.kind == "text" and block.follows and said is not None:
            # Numbers are those of the full settings; every word must be one that was said here too.
            assert block.why is not None or words_of(block.body) <= words_of(said), said
        elif block.title is not None:
            run_python(block, names, page)
        else:
            assert block.kind == "text", f"{page} has a block of {block.kind!r} that nobody runs"


def test_what_is_not_run_is_known_and_has_its_reason() -> None:
    reasons = {page: [b.why for b in blocks(DOCS / page) if b.why is not None] for page in PAGES}
    assert {page: len(found) for page, found in reasons.items() if found} == NOT_RUN
    assert all(len(why.split()) >= 3 for found in reasons.values() for why in found)


def test_the_commands_of_the_readme_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        words for b in blocks(ROOT / "README.md") if b.kind == "sh" for words, _ in commands(b.body)
    ]
    assert len(found) > 20
    for words in found:
        parse(words, monkeypatch)


def test_the_python_of_the_readme_runs(reader: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = [b for b in blocks(ROOT / "README.md") if b.kind == "python"]
    assert len(found) >= 4
    for block in found:
        run_python(block, {"__name__": "page"}, "README.md")
        out, err = capsys.readouterr()
        assert out
        assert not err


@pytest.mark.parametrize(
    "line", ["language train --dat book.txt", "language eval", "dna classify runs/x", "no-command"]
)
def test_a_command_that_is_wrong_does_not_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused):
        parse(line.split(), monkeypatch)


def test_pictures_in_the_docs_are_there_and_have_words_for_who_cannot_see_them() -> None:
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", (DOCS / page).read_text()):
            assert words, f"{page}: {target} has no description"
            assert ((DOCS / page).parent / target).is_file(), f"{page}: {target} is not there"


def rows_after(heading: str) -> list[list[str]]:
    lines = CHOICES[CHOICES.index(heading) :].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


def test_the_table_of_sizes_is_that_of_the_presets() -> None:
    (_, *mixers), _, *rows = rows_after("## Sizes")
    assert [name for name, *_ in rows] == list(PRESETS)
    for name, *sizes in rows:
        vocab = 257 if name in ("tiny", "small") else 32_001
        for mixer, size in zip(mixers, sizes, strict=True):
            with torch.device("meta"):
                model = LanguageModel(dataclasses.replace(PRESETS[name], mixer=mixer), vocab)
            assert f"{count_parameters(model) / 1e6:,.2f}M" == size, (name, mixer)
