"""Files that are whole or not there, and rows that are written as they come."""

import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

Cells = dict[str, Any]


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
    """Lines of a stream; the header waits for the first one, or for the end."""

    def __init__(self, file: TextIO, as_json: bool = False, header: str = "") -> None:
        self.file, self.as_json, self.header, self.count = file, as_json, header, 0

    def row(self, cells: Cells) -> None:
        """A line of a table by column: TSV, or a JSON object per line."""
        if self.as_json:
            self.line(to_json(cells))
        else:
            self.header = self.header or "\t".join(cells)
            self.line("\t".join(map(figure, cells.values())))

    def line(self, text: str) -> None:
        self.begin()
        self.file.write(text + "\n")
        self.count += 1

    def begin(self) -> None:
        """Writes the header where nothing was written yet."""
        if self.header and not self.count and not self.as_json:
            self.file.write(self.header + "\n")

    def flush(self) -> None:
        self.file.flush()


def to_json(table: Cells) -> str:
    """JSON, which has no NaN: null stands for it."""
    return json.dumps(_without_nan(table), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def rows(
    path: Path | None, stream: TextIO, what: str, *, as_json: bool = False, header: str = ""
) -> Iterator[Rows]:
    """Rows to a file that is whole or not there, or to a stream without one, of which an error says so.

    `what` is what a row holds, for that sentence. `header` is there even where no row comes.
    """
    if path is not None:
        with draft(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            table = Rows(text, as_json, header)
            yield table
            if not table.count:
                table.begin()
        return
    table = Rows(stream, as_json, header)
    try:
        yield table
        if not table.count:
            table.begin()
    except (ValueError, OSError) as error:
        if not table.count or isinstance(error, BrokenPipeError):
            raise
        raise ValueError(f"{error} The {table.count} {what} written before it stand.") from error
