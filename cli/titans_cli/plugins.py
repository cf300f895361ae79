"""What installed packages offer through entry points, described without importing any of it."""

import ast
import importlib.util
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

DISTRIBUTION = "titans-toolkit"


def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, ours first.

    A name that two packages claim goes to this toolkit, and otherwise to the one found first.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda p: (not is_ours(p), p.name)):
        found.setdefault(point.name, point)
    return found


def is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == DISTRIBUTION


def provider(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"


def summary(point: EntryPoint) -> str:
    """First line of the module's docstring, or the reason why there is none to read."""
    try:
        source = find_source(point.module)
        docstring = ast.get_docstring(ast.parse(source.read_bytes()))
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        return f"(cannot be loaded: {error})"
    return docstring.splitlines()[0] if docstring else "(no description)"


def find_source(module: str) -> Path:
    """The file of a module. `find_spec` alone would import the packages that the module is in."""
    name, *rest = module.split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None:
            break
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    if spec is None or spec.origin is None:
        raise ImportError(f"no module {name}")
    return Path(spec.origin)


def load(point: EntryPoint) -> Any:
    """Imports a command. Raises ValueError that says whose it is and what failed."""
    try:
        return point.load()
    # Importing somebody's package can fail in any way, sys.exit() included.
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the command {point.name!r} of {provider(point)} cannot be loaded "
            f"({type(error).__name__}: {error}): reinstall or remove that package."
        ) from error
