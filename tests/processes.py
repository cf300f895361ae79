"""Processes that a test has begun, and those that they have."""

from pathlib import Path


def processes_with(environment: dict[str, str]) -> list[int]:
    """Those that began with these values in their environment, and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        table = dict(part.split("=", 1) for part in text if "=" in part)
        if all(table.get(name) == value for name, value in environment.items()):
            found.append(int(path.parent.name))
    return found
