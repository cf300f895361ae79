"""Files that are whole or not there, and rows that are written as they come."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TextIO

Cells = dict[str, Any]


def check_target(path: Path, force: bool, option: str = "--out") -> None:
    """Raises where a file must not or cannot be written, before anything is read for it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file for {option}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: make it first.")
    if path.exists() and not force:
        raise FileExistsError(
            f"{path} is there already: choose another {option}, or replace it with --force."
        )


def check_plots(option: str) -> None:
    """ValueError where pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise ValueError(f"{option} needs matplotlib: pip install 'titans-toolkit[plot]'.")


@contextmanager
def draft(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is written, and is gone when something fails."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Rows:
    """Lines of a stream; the first line's header waits for it."""

    def __init__(self, file: TextIO, as_json: bool = False) -> None:
        self.file, self.as_json, self.count = file, as_json, 0

    def row(self, cells: Cells) -> None:
        """A line of a table by column: TSV, or a JSON object per line."""
        if self.as_json:
            self.line(json.dumps(cells))
        else:
            self.line("\t".join(map(figure, cells.values())), "\t".join(cells))

    def line(self, text: str, header: str = "") -> None:
        if header and not self.count:
            self.file.write(header + "\n")
        self.file.write(text + "\n")
        self.count += 1

    def flush(self) -> None:
        self.file.flush()


def figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def rows(path: Path | None, stream: TextIO, what: str, *, as_json: bool = False) -> Iterator[Rows]:
    """Rows to a file that is whole or not there, or to a stream without one, of which an error says so.

    `what` is what a row holds, for that sentence.
    """
    if path is not None:
        with draft(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            yield Rows(text, as_json)
        return
    table = Rows(stream, as_json)
    try:
        yield table
    except (ValueError, OSError) as error:
        if not table.count or isinstance(error, BrokenPipeError):
            raise
        raise ValueError(f"{error} The {table.count} {what} written before it stand.") from error
