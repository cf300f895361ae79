"""What a newcomer asks the command itself: help with examples that work, settings, completion."""

import json
import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from console import Titans, assert_refused

from titans_cli.app import LazyGroup, app
from titans_cli.plugins import plugins
from titans_domains.config import override
from titans_domains.language import DOMAIN
from titans_domains.settings import comments_on, settings_of

OURS: Any = typer.main.get_command(app)
# Typer brings a click of its own.
USAGE_ERROR: Any = typer.BadParameter.__base__
SCRIPTS = Path(sysconfig.get_path("scripts"))


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below one, and itself."""
    yield path, command
    if isinstance(command, LazyGroup):
        for name in command.points:
            yield from commands(command.load_command(name), (*path, name))
    elif hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


EVERY = dict(commands(OURS))


def parsed(words: list[str]) -> tuple[str, ...]:
    """The path of the command that the words call, once all of them have been understood."""
    command, path, rest = OURS, (), words
    while hasattr(command, "commands"):
        context = command.make_context("titans", list(rest))
        rest = [*context._protected_args, *context.args]
        name, rest = rest[0], rest[1:]
        path = (*path, name)
        command = EVERY[path]
    command.make_context("titans", list(rest))
    return path


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    example = re.search(r"Example: (titans [^>|,]*)", command.epilog or "")
    assert example, f"titans {' '.join(path)} has no example in its epilog"
    _, *words = shlex.split(example[1])
    called = parsed(words)
    assert called[: len(path)] == path
    assert command.help or path == ()


@pytest.mark.parametrize("words", [["language", "train", "--dta", "x"], ["report"], ["lanugage"]])
def test_an_example_that_is_wrong_would_be_seen(words: list[str]) -> None:
    with pytest.raises((USAGE_ERROR, KeyError)):
        parsed(words)


def test_help_of_training_says_where_settings_are_listed(titans: Titans) -> None:
    for path in (
        ("language", "train"),
        ("timeseries", "train"),
        ("dna", "train"),
        ("dna", "pretrain"),
    ):
        done = titans(*path, "--help")
        assert done.code == 0
        text = " ".join(done.out.split())
        assert "titans settings DOMAIN lists all of them" in text
        assert f"Example: titans {' '.join(path)}" in text


@pytest.mark.parametrize("name", plugins("titans.domains"))
def test_every_setting_has_a_meaning(name: str) -> None:
    domain = plugins("titans.domains")[name].load()
    for preset in domain.presets.values():
        found = list(settings_of(preset))
        assert [one.key for one in found if not one.meaning] == []
        # What is listed can be given to --set, and changes nothing.
        assert override(preset, [f"{one.key}={one.value}" for one in found]) == preset


def test_settings_lists_what_set_takes(titans: Titans) -> None:
    done = titans("settings", "language", "--preset", "small")
    assert done.code == 0
    assert "train.steps=1000\n    whole number: of the optimiser\n" in done.out
    assert "model.memory.forget=initial\n    initial | zero | none: what" in done.out
    part = titans("settings", "language", "memory").out
    keys = [line.partition("=")[0] for line in part.splitlines() if line[0] != " "]
    assert keys
    assert all(key.startswith("model.memory.") for key in keys)
    assert titans("settings").out.split() == ["dna", "language", "timeseries"]


def test_settings_as_json_are_all_of_them(titans: Titans) -> None:
    found = json.loads(titans("settings", "language", "--json").out)
    tiny = DOMAIN.presets["tiny"]
    assert [one["key"] for one in found] == [one.key for one in settings_of(tiny)]
    assert found[0].keys() == {"key", "kind", "value", "meaning"}


def test_settings_names_what_there_is(titans: Titans) -> None:
    assert_refused(titans("settings", "music"), "DOMAIN must be one of dna, language, timeseries")
    assert_refused(titans("settings", "dna", "--preset", "big"), "--preset must be one of tiny")
    assert_refused(titans("settings", "dna", "voltage"), "No setting of dna begins with 'voltage'")


def test_the_meaning_of_a_setting_is_the_comment_at_its_field() -> None:
    source = '''class Config:
    """Words."""

    # Of all of them,
    # together.
    first: int = 1

    second: str = "# no comment"  # beside
    third: int = (
        3  # inside
    )
    fourth: int = 4

    def method(self) -> None:
        # not a field
        fifth: int = 5
'''
    assert comments_on(source) == {
        "first": "Of all of them, together.", "second": "beside", "third": "inside",
    }  # fmt: skip


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    """The script that --show-completion prints, in a bash of its own."""
    script = """
      complete_words() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        _titans_completion titans "${@: -1}" ""
        echo "${COMPREPLY[@]}"
      }
      eval "$(titans --show-completion bash)"
      complete -p titans
      complete_words titans langu
      complete_words titans language tr
      complete_words titans language train --resu
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": str(tmp_path),
             "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    registered, *completed = done.stdout.splitlines()
    assert "_titans_completion titans" in registered
    assert [line.strip() for line in completed] == ["language", "train", "--resume"]


def test_completion_is_installed_for_bash(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPTS / "titans"), "--install-completion", "bash"],
        env={**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    script = (tmp_path / ".bash_completions" / "titans.sh").read_text()
    assert "_TITANS_COMPLETE=complete_bash" in script
    assert "titans.sh" in (tmp_path / ".bashrc").read_text()


def test_version(titans: Titans) -> None:
    done = titans("--version")
    assert done.code == 0
    assert re.fullmatch(r"titans-toolkit \d+\.\d+\.\d+\S*\n", done.out)
