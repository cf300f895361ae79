"""Figures of trained runs, kept in a file and measured again where anything that made them has changed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import provenance

from titans_domains.checkpoints import WEIGHTS, latest


def cell(
    path: Path, run: Path, made_of: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A run's figures: those under its name in the results at `path` where they were made of the same
    weights and text by the same code, else measured now and written there, with what they are made of.
    """
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    weights = (latest(run / "checkpoints") / WEIGHTS).read_bytes()
    stamp = provenance() | made_of | {"weights": hashlib.sha256(weights).hexdigest()[:16]}
    old = results["runs"].get(run.name, {})
    if old.get("made of") == stamp:
        return dict(old)
    found = {"made of": stamp, **measure()}
    results["runs"][run.name] = found
    path.write_text(json.dumps(results, indent=1) + "\n")
    return found
