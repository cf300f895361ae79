"""The blocks of a page of the docs, and how each is run: what a reader would type, in their order."""

import configparser
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from page_files import SETTINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]*) -->\n)?^(?P<indent> *)```(?P<kind>\w+)(?P<attributes>[^\n]*)\n"
    r"(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
NOT_OURS = (
    "pip",
    "python",
    "python3",
    "make",
    ".venv/bin/mkdocs",
    ".venv/bin/pip",
    ".venv/bin/python",
    "curl",
    "cd",
    "head",
)
"""Commands in shell blocks that are no business of these tests."""


class Block(NamedTuple):
    kind: str
    title: str | None  # the file that the block is
    body: str
    why: str | None  # why it is not run
    follows: bool  # whether nothing but blank lines stands between it and the block before


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text(), -1
    for found in BLOCK.finditer(text):
        indent = found["indent"]
        lines = [line.removeprefix(indent) for line in found["body"].splitlines(keepends=True)]
        title = re.search(r'title="([^"]*)"', found["attributes"])
        follows = end >= 0 and not text[end : found.start()].strip()
        yield Block(found["kind"], title and title[1], "".join(lines), found["why"], follows)
        end = found.end()


def commands(body: str) -> Iterator[tuple[list[str], Path | None]]:
    """The words of each command, and the file that its output goes to."""
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        target = None
        if ">" in words:
            at = words.index(">")
            target, words = Path(words[at + 1]), words[:at]
        if words[0] in ("titans", ".venv/bin/titans"):
            yield words[1:], target
        else:
            assert words[0] in NOT_OURS, f"what is {words[0]!r} in the docs?"
            if words[:2] == ["pip", "install"] and "-e" in words:
                install(Path(words[-1]))


def small(words: list[str]) -> list[str]:
    """A command that trains, with settings under which it does so in a moment."""
    if words[:1] and words[0] in SETTINGS and words[1] in ("train", "pretrain"):
        return [*words, *(part for change in SETTINGS[words[0]] for part in ("--set", change))]
    if words[:1] == ["demo"]:
        return [*words, "--quick"]
    return words


def install(folder: Path) -> None:
    """What `pip install -e` leaves: the folder on the path, and its entry points beside it."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    about = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    (info / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in about.items()))
    points = configparser.ConfigParser(delimiters="=")
    points.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        points.write(file)
    sys.path.insert(0, str(folder.resolve()))


def run_python(block: Block, names: dict[str, Any], where: str) -> None:
    if block.title is not None:
        path = Path(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.body)
    elif block.why is None:
        exec(compile(block.body, where, "exec"), names)
    else:
        compile(block.body, where, "exec")


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]{3,}", text))


class Refused(Exception):  # noqa: N818
    """A command that the real command line does not take."""


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument and option by the command itself, which is then not carried out."""
    import typer
    from typer.core import TyperCommand

    from titans_cli.app import app

    with monkeypatch.context() as patch:
        patch.setattr(TyperCommand, "invoke", lambda self, context: None)
        try:
            typer.main.get_command(app).main(list(words), prog_name="titans", standalone_mode=False)
        # Of click, or of typer's own copy of it.
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            raise Refused(f"titans {shlex.join(words)}: {error.format_message()}") from None
