"""The command as a shell sees it: what it imports, prints and exits with, and how plugins fare."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from titans_cli.app import fail, message, take_debug

PLUGIN = '''"""Counts words, for the tests."""

import typer

app = typer.Typer()

RAISED = {
    "value": ValueError("width must be even:\\n  got 3."),
    "type": TypeError("a path, please"),
    "file": FileNotFoundError(2, "No such file or directory", "book.txt"),
    "connection": ConnectionError("no network for the hub"),
    "fault": KeyError("lost"),
    "cut": EOFError("ran out"),
    "interrupt": KeyboardInterrupt(),
    "silent": ValueError(),
}


@app.command()
def count(words: list[str], error: str = "") -> None:
    """Count words."""
    if error:
        raise RAISED[error]
    print(len(words))
'''
FILES = {
    # The parent package must not be imported to list what is in it.
    "acme_titans/__init__.py": "import sys\nsys.acme_was_imported = True\n",
    "acme_titans/words.py": PLUGIN,
    "acme_titans/broken.py": '"""Cannot be imported."""\nimport acme_is_not_there\n',
    "acme_titans/leaves.py": '"""Exits when imported."""\nraise SystemExit(0)\n',
    "acme_titans/garbled.py": "def (:\n",
    "acme_titans/domain.py": '"""Words as a domain."""\nDOMAIN = object()\napp = "not an app"\n',
}
ENTRY_POINTS = """[titans.domains]
words = acme_titans.domain:DOMAIN
[titans.commands]
acme-words = acme_titans.words:app
acme-broken = acme_titans.broken:app
acme-leaves = acme_titans.leaves:app
acme-garbled = acme_titans.garbled:app
acme-gone = acme_titans.gone:app
acme-object = acme_titans.domain:app
info = acme_titans.words:app
"""
SPEC_VERSION = "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def titans(*args: str, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TITANS_", "_TITANS"))}
    script = Path(sysconfig.get_path("scripts"), "titans")
    return subprocess.run(
        [str(script), *args],
        env=clean | {"COLUMNS": "100", "PYTHONPATH": str(path or "")} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def listing(text: str) -> dict[str, str]:
    """The commands of a help text with their descriptions, the wrapped ones joined again."""
    listed: dict[str, str] = {}
    name = ""
    for line in text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines():
        if line[:3].strip():
            name, _, line = line.strip().partition(" ")
        listed[name] = f"{listed.get(name, '')} {line.strip()}".strip()
    return listed


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third party's package with commands and a domain, built as a wheel and really installed."""
    folder = tmp_path_factory.mktemp("acme")
    wheel, target = folder / "acme_titans-1.5-py3-none-any.whl", folder / "site"
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: acme-titans\nVersion: 1.5\n",
        "WHEEL": SPEC_VERSION,
        "entry_points.txt": ENTRY_POINTS,
    }
    files = FILES | {f"acme_titans-1.5.dist-info/{name}": text for name, text in info.items()}
    record = "acme_titans-1.5.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--disable-pip-version-check", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, timeout=120)
    return target


def test_help_lists_commands_with_their_docstrings_and_imports_none_of_them(acme: Path) -> None:
    code = (
        "import sys; from titans_cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: print('\\n', sys.modules.keys(), file=sys.stderr); sys.exit(end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(acme)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    listed = listing(done.stdout)
    assert {"demo", "info", "language"} <= listed.keys()
    assert listed["info"] == "Versions, devices and kernel backends, and why one cannot run here."
    assert listed["acme-words"] == "Counts words, for the tests. (acme-titans 1.5)"
    heavy = ("torch", "lightning", "numpy", "triton", "datasets", "pandas", "rich", "asyncio")
    heavy += ("titans_core", "titans_domains", "titans_kernels", "titans_cli.info", "acme_titans")
    assert "'titans_cli.app'" in done.stderr
    assert [name for name in heavy if f"'{name}'" in done.stderr] == []


def test_a_plugin_runs(acme: Path) -> None:
    done = titans("acme-words", "a", "b", path=acme)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_a_command_does_not_offer_the_completion_of_the_root(acme: Path) -> None:
    assert "--install-completion" not in titans("acme-words", "--help", path=acme).stdout
    assert "--install-completion" in titans("--help", path=acme).stdout


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("acme-broken", "ModuleNotFoundError: No module named 'acme_is_not_there'"),
        ("acme-leaves", "SystemExit: 0"),
        ("acme-garbled", "SyntaxError"),
        ("acme-gone", "No module named 'acme_titans.gone'"),
        ("acme-object", "must be a typer.Typer: got str"),
    ],
)
def test_a_broken_plugin_is_named_and_leaves_the_others_alone(
    acme: Path, command: str, reason: str
) -> None:
    done = titans(command, path=acme)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "acme-titans 1.5" in done.stderr
    assert reason in done.stderr


def test_help_says_what_is_wrong_with_a_plugin_that_cannot_be_read(acme: Path) -> None:
    listed = listing(titans("--help", path=acme).stdout)
    assert listed["acme-gone"] == "(cannot be loaded: no module acme_titans.gone) (acme-titans 1.5)"
    assert listed["acme-garbled"].startswith("(cannot be loaded: ")


def test_a_plugin_cannot_take_the_name_of_a_command_of_ours(acme: Path) -> None:
    assert "Count words" not in titans("info", "--help", path=acme).stdout


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("value", 2, "error: width must be even: got 3."),
        ("type", 2, "error: a path, please"),
        ("file", 2, "error: book.txt: No such file or directory"),
        ("connection", 2, "error: no network for the hub"),
        ("silent", 2, "error: ValueError"),
        ("fault", 1, "internal error: KeyError: 'lost'; run again with --debug to see where"),
        ("cut", 1, "internal error: EOFError: ran out; run again with --debug to see where"),
        ("interrupt", 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    acme: Path, error: str, code: int, line: str
) -> None:
    done = titans("acme-words", "a", "--error", error, path=acme)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line + "\n")


@pytest.mark.parametrize("args", [("--debug", "acme-words"), ("acme-words", "--debug"), ()])
def test_debug_shows_the_traceback_and_keeps_the_line_and_the_code(
    acme: Path, args: tuple[str, ...]
) -> None:
    args, env = (args, {}) if args else (("acme-words",), {"TITANS_DEBUG": "1"})
    done = titans(*args, "a", "--error", "fault", path=acme, **env)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "words.py" in done.stderr
    assert done.stderr.splitlines()[-1] == "internal error: KeyError: 'lost'"


def test_debug_after_two_dashes_is_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TITANS_DEBUG", raising=False)
    assert take_debug(["count", "--", "--debug"]) == (["count", "--", "--debug"], False)
    assert take_debug(["count", "--debug", "--", "x"]) == (["count", "--", "x"], True)
    monkeypatch.setenv("TITANS_DEBUG", "0")
    assert take_debug(["count"]) == (["count"], False)


@pytest.mark.parametrize(
    ("args", "near"),
    [(("inof",), "'info'"), (("--verison",), "--version"), (("info", "--jsn"), "--json")],
)
def test_an_unknown_name_exits_with_2_and_suggests_a_near_one(
    args: tuple[str, ...], near: str
) -> None:
    done = titans(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: titans")
    assert near in done.stderr.splitlines()[-1]


def test_version_and_no_command() -> None:
    done = titans("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "titans-toolkit")
    done = titans()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_shell_completion_lists_commands_and_survives_a_broken_one(acme: Path) -> None:
    def complete(words: str) -> list[str]:
        env = {"_TITANS_COMPLETE": "complete_bash", "COMP_WORDS": words}
        done = titans(path=acme, COMP_CWORD=str(words.count(" ")), **env)
        assert done.stderr == ""
        return done.stdout.split()

    assert {"info", "language", "acme-broken"} <= set(complete("titans "))
    assert complete("titans acme-w") == ["acme-words"]
    assert complete("titans info --j") == ["--json"]
    complete("titans acme-broken --")


def test_a_reader_that_goes_away_is_no_error_of_ours(acme: Path) -> None:
    script = Path(sysconfig.get_path("scripts"), "titans")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [str(script), "acme-words", "a"],
        env={**os.environ, "PYTHONPATH": str(acme)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_message_of_an_error_without_a_file_has_no_number() -> None:
    assert message(OSError(28, "No space left on device")) == "No space left on device"


def test_a_caller_error_caught_by_hand_exits_by_systemexit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        fail(json.JSONDecodeError("no value", "x", 0), debug=False)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no value: line 1 column 1 (char 0)\n"
