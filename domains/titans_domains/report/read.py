"""The files of a run's folder, as a report needs them; of a run that goes on or was killed, what is whole."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from titans_domains.checkpoints import read_json
from titans_domains.report.facts import FACTS, Floors
from titans_domains.runs import CONFIG

METRICS, SAMPLES = "metrics.csv", "samples.txt"


class Column(NamedTuple):
    """The figures of a column that are there, with their steps; NaN where one was not finite."""

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
    if not isinstance(table.get("domain"), str) or not isinstance(table.get("config"), dict):
        raise ValueError(f"{run / CONFIG} is damaged: it has no 'domain' and 'config'.")
    facts: Mapping[str, Any] = read_json(run / FACTS) if (run / FACTS).exists() else {}
    return RunFiles(
        name=run.resolve().name,
        table=table,
        columns=read_metrics(run / METRICS),
        samples=read_samples(run / SAMPLES),
        describe=str(facts.get("describe", "")),
        floors=facts.get("floors", {}),
    )


def read_metrics(path: Path) -> dict[str, Column]:
    """The log by column. A last row that is not whole, because it was being written, is left out."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        header, *rows = rows or [[]]
        if rows and len(rows[-1]) < len(header):
            rows.pop()
        columns = {name: Column([], []) for name in header[1:]}
        for step, *cells in rows:
            for column, cell in zip(columns.values(), cells, strict=True):
                if cell:
                    column.steps.append(int(step))
                    column.values.append(number(cell))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    return columns


def number(cell: str) -> float:
    value = float(cell)
    return value if math.isfinite(value) else math.nan


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
