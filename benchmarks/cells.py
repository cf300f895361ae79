"""Figures kept in a file, and measured again where anything that made them has changed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import provenance

from titans_domains.checkpoints import WEIGHTS, latest


def kept(
    path: Path, part: str, name: str, stamp: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The figures of `name` in a part of the results at `path`, where they were made of what `stamp` says
    (as JSON has it); else measured now and written there.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    old = results.setdefault(part, {}).get(name, {})
    if old.get("made of") == stamp:
        return dict(old)
    found = {"made of": stamp, **measure()}
    results[part][name] = found
    write_results(path, results)
    return found


def write_results(path: Path, results: dict[str, Any], indent: int | None = 1) -> None:
    """Writes a file of results whole: whoever stops it leaves the one that was there."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(results, indent=indent) + "\n")
    beside.replace(path)


def weights_of(run: Path) -> str:
    """A fingerprint of a run's newest weights."""
    return hashlib.sha256((latest(run / "checkpoints") / WEIGHTS).read_bytes()).hexdigest()[:16]


def cell(
    path: Path, run: Path, made_of: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A run's figures: those under its name in the results at `path` where they were made of the same
    weights and text by the same code, else measured now and written there, with what they are made of.
    """
    stamp = provenance() | made_of | {"weights": weights_of(run)}
    return kept(path, "runs", run.name, stamp, measure)
