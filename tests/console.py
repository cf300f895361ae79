"""Calls of the console entry in the test's own process, and what they leave."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_language import SETTINGS

from titans_cli.app import main

TINY = [part for setting in (*SETTINGS, "train.steps=4") for part in ("--set", setting)]


class Done(NamedTuple):
    code: object
    out: str
    err: str


Titans = Callable[..., Done]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Titans:
    def call(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["titans", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Done(end.value.code, *capsys.readouterr())

    return call


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def assert_refused(done: Done, sentence: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that holds the sentence."""
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sentence in done.err, done.err
