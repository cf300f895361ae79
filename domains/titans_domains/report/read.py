"""The files of a run's folder, as a report needs them; of a run that goes on or was killed, what is whole."""

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from titans_domains.checkpoints import read_json
from titans_domains.report.facts import FACTS, Floors
from titans_domains.runs import CONFIG

METRICS, SAMPLES = "metrics.csv", "samples.txt"
LARGEST = 1e100
"""Far above what float32 holds; the sums and powers that an axis needs are finite up to here."""


class Column(NamedTuple):
    """The figures of a column that are there, with their steps; NaN where one is not finite or too large."""

    steps: list[int]
    values: list[float]

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]


class RunFiles(NamedTuple):
    name: str
    table: dict[str, Any]  # config.json
    columns: dict[str, Column]  # of metrics.csv, without the steps
    samples: list[tuple[int, str]]
    describe: str
    floors: Floors

    @property
    def step(self) -> int:
        """The last step of the log."""
        return max(
            (column.steps[-1] for column in self.columns.values() if column.steps), default=0
        )

    @property
    def validation(self) -> str | None:
        """The column that training minimises on held-out data."""
        return next((name for name in self.columns if name.startswith("valid_")), None)


def read_run(run: Path) -> RunFiles:
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {str(run)!r}.")
    table = read_json(run / CONFIG)
    _check_table(run / CONFIG, table)
    facts: Mapping[str, Any] = read_json(run / FACTS) if (run / FACTS).exists() else {}
    return RunFiles(
        name=run.resolve().name,
        table=table,
        columns=read_metrics(run / METRICS),
        samples=read_samples(run / SAMPLES),
        describe=str(facts.get("describe", "")),
        floors=_floors(run / FACTS, facts.get("floors", {})),
    )


def _check_table(path: Path, table: dict[str, Any]) -> None:
    if not isinstance(table.get("domain"), str) or not isinstance(table.get("config"), dict):
        raise ValueError(f"{path} is damaged: it has no 'domain' and 'config'.")
    train = table["config"].get("train", {})
    if not isinstance(train, dict):
        raise ValueError(f"{path} is damaged: config.train must be a table, and is {train!r}.")
    steps = train.get("steps")
    if steps is not None and not _is_number(steps):
        raise ValueError(f"{path} is damaged: train.steps must be a number, and is {steps!r}.")
    if not isinstance(made := table.get("made_with", {}), dict):
        raise ValueError(f"{path} is damaged: made_with must be a table, and is {made!r}.")


def _floors(path: Path, floors: Any) -> Floors:
    tables = isinstance(floors, dict) and all(isinstance(of, dict) for of in floors.values())
    if not tables or not all(_is_number(v) for of in floors.values() for v in of.values()):
        raise ValueError(f"{path} is damaged: floors must be tables of numbers, by column.")
    return {
        column: {name: number(value) for name, value in of.items()} for column, of in floors.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_metrics(path: Path) -> dict[str, Column]:
    """The log by column. A last line without an end, because it was being written, is left out."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        # A number that is cut short is a number too: only a line's end says that it is whole.
        whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
        header, *rows = [row for row in csv.reader(whole) if row] or [[]]
        columns = {name: Column([], []) for name in header[1:]}
        for step, *cells in rows:
            for column, cell in zip(columns.values(), cells, strict=True):
                if cell:
                    column.steps.append(_step(step))
                    column.values.append(number(cell))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    return columns


def _step(cell: str) -> int:
    step = int(cell)
    if not 0 <= step <= LARGEST:
        raise ValueError(f"it has a step {cell}")
    return step


def number(cell: str | float) -> float:
    """NaN for what cannot be drawn."""
    try:
        value = float(cell)
    except OverflowError:
        return math.nan
    return value if abs(value) <= LARGEST else math.nan


def read_samples(path: Path) -> list[tuple[int, str]]:
    """Steps and samples. A model may write lines like the titles: a title's step is after the last's."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    samples: list[tuple[int, str]] = []
    begins = 0
    for title in re.finditer(r"^--- step (\d+)\n", text, re.MULTILINE):
        if samples and int(title[1]) <= samples[-1][0]:
            continue
        if samples:
            samples[-1] = (samples[-1][0], text[begins : title.start()].removesuffix("\n"))
        samples.append((int(title[1]), ""))
        begins = title.end()
    if samples:
        samples[-1] = (samples[-1][0], text[begins:].removesuffix("\n"))
    return samples
