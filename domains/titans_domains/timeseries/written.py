"""Files that the commands write: never over another without leave, and never half."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from titans_domains.targets import check_target
from titans_domains.timeseries import synthetic


def levels(text: str) -> list[float]:
    """Quantiles from text such as `0.1,0.5,0.9`, ascending."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < level < 1 for level in found):
        raise ValueError(
            f"Quantiles must be numbers between 0 and 1, like 0.1,0.5,0.9: got {text!r}."
        )
    return found


def numbers(name: str, text: str, kind: type) -> tuple[Any, ...]:
    """A list such as `96,192` for an option; ValueError where a part is none or not positive."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < (1 if name == "horizons" else 0):
        raise ValueError(f"--{name} must be numbers with commas between: got {text!r}.")
    return found


def result_files(out: Path | None, force: bool) -> list[Path]:
    """Where a benchmark's results are to be written, before the work is begun."""
    if out is None:
        return []
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} must be a folder: it is a file.")
    files = [out / "results.json", out / "results.md"]
    if out.is_dir():
        for file in files:
            check_target(file, force)
    return files


@contextmanager
def benchmark_data(path: Path | None) -> Iterator[Path]:
    """The file of a benchmark; without one, a generated set of a year without gaps."""
    if path is not None:
        yield path
        return
    with TemporaryDirectory() as folder:
        made = Path(folder) / "generated.csv"
        synthetic.generate(length=52 * synthetic.WEEK, missing=0.0).to_csv(made)
        yield made
