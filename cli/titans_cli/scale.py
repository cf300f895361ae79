"""Commands that run in several processes: how they are begun, and which of them speaks."""

import sys
from pathlib import Path

import typer

from titans_domains.launch import (
    check_started,
    is_first,
    is_launched,
    launch,
    local_rank,
    started,
)


def spread(devices: int, nodes: int) -> None:
    """Runs the command once for each device, and ends with it; nothing where that has been done."""
    if started():
        check_started(devices, nodes)
    elif devices * nodes > 1:
        command = [sys.executable, "-m", "titans_cli.app", *sys.argv[1:]]
        raise SystemExit(launch(command, devices, nodes))


def say_folder(folder: Path) -> None:
    """The result of a training, on stdout."""
    if is_first():
        typer.echo(folder)


def is_said(error: BaseException, *, ours: bool) -> bool:
    """Whether this process is to say what ended it; `ours` is a fault of ours.

    What a caller did wrong all processes find, before they have met: one says it for its machine.
    """
    if local_rank() == 0 or ours:
        return True
    if isinstance(error, ConnectionError):
        # Where another process is gone, the first one says so, or what has begun them all.
        return not is_launched()
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()
