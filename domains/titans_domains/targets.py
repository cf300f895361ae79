"""What a command needs, found out before anything is read: places to write to, and packages."""

from importlib.util import find_spec
from pathlib import Path


def check_target(path: Path, force: bool, option: str = "--out") -> None:
    """Raises where a file must not or cannot be written."""
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
    check_installed(option, "matplotlib", "plot")


def check_installed(what: str, package: str, extra: str) -> None:
    """ValueError where a package of an extra is not there; nothing is imported."""
    if find_spec(package) is None:
        raise ValueError(f"{what} needs {package}: pip install 'titans-toolkit[{extra}]'.")
