"""What a report says of a run and only its task knows: written once, when the training begins."""

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from titans_core.files import write_whole
from titans_domains.checkpoints import SCHEMA

FACTS = "facts.json"

Floors = dict[str, dict[str, float]]
"""By column of the log, what simple models reach of the same figure, by their names."""


@runtime_checkable
class HasFloors(Protocol):
    """A task that knows what its validation figures must beat."""

    def floors(self) -> Floors:
        """Quick ones only: they are computed before the first step."""
        ...


def write_facts(out: Path, task: Any) -> None:
    """The task's line on itself and its floors, into the folder of a run that has none yet."""
    path = out / FACTS
    if path.exists():
        return
    floors = task.floors() if isinstance(task, HasFloors) else {}
    table = {"schema": SCHEMA, "describe": task.describe(), "floors": floors}
    write_whole(path, json.dumps(table, indent=2) + "\n")
