"""Commands that run in several processes: how they are begun, and which of them speaks."""

import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import typer

from titans_domains.launch import (
    check_shares,
    check_started,
    is_first,
    is_launched,
    launch,
    speaks,
    started,
)

P = ParamSpec("P")


class Start:
    """A training until its first step, where SIGTERM ends it without a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self.folder: Path | None = None

    def watch(self, folder: Path) -> None:
        """The folder of the run is known, and as yet untouched."""
        self.folder, self.config, self.saved = folder, *marks(folder)

    def ask(self, number: int, frame: Any) -> None:
        self.asked = True
        raise SystemExit(128 + number)

    def sentence(self) -> str | None:
        """What SIGTERM has stopped; None where there are new checkpoints."""
        start = "stopped before the first step; nothing was"
        if self.folder is None:
            return f"{start} changed"
        config, saved = marks(self.folder)
        if saved not in (None, self.saved):
            return None
        return f"{start} {'changed' if config == self.config else f'trained in {self.folder}'}"


def marks(folder: Path) -> tuple[int | None, int | None]:
    """When the configuration and the checkpoints of a run were last written."""
    paths = folder / "config.json", folder / "checkpoints"
    first, second = (path.stat().st_mtime_ns if path.exists() else None for path in paths)
    return first, second


start = Start()


def stoppable(command: Callable[P, None]) -> Callable[P, None]:
    """The command, which says so where SIGTERM ends it before its first step."""

    @wraps(command)
    def stopping(*args: P.args, **named: P.kwargs) -> None:
        # Of several processes what has begun them says it; other threads cannot be asked.
        if started() or threading.current_thread() is not threading.main_thread():
            return command(*args, **named)
        global start
        start = Start()
        before = signal.getsignal(signal.SIGTERM)
        if before != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, start.ask)
        try:
            command(*args, **named)
        finally:
            signal.signal(signal.SIGTERM, before)
            if start.asked and (line := start.sentence()):
                typer.echo(line, err=True)

    return stopping


def spread(devices: int, nodes: int, folder: Path, rows: int, sequence_ranks: int = 1) -> None:
    """Runs the command once for each device, and ends with it; nothing where that has been done."""
    start.watch(folder)
    if started():
        check_started(devices, nodes)
    elif devices * nodes > 1:
        check_shares(devices * nodes, sequence_ranks, rows)
        command = [sys.executable, "-m", "titans_cli.app", *sys.argv[1:]]
        code = launch(command, devices, nodes)
        start.asked = code < 0
        raise SystemExit(code if code >= 0 else 128 - code)


def say_folder(folder: Path) -> None:
    """The result of a training, on stdout."""
    if is_first():
        typer.echo(folder)


def is_said(error: BaseException, *, ours: bool) -> bool:
    """Whether this process is to say what ended it; `ours` is a fault of ours.

    What a caller did wrong all processes find, before they have met: one says it for its machine.
    """
    if speaks() or ours:
        return True
    if isinstance(error, ConnectionError):
        # Where another process is gone, the first one says so, or what has begun them all.
        return not is_launched()
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()
