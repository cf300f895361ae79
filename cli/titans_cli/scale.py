"""Commands that train, in one process or several: how they are begun, and which of them speaks."""

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

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

if TYPE_CHECKING:
    from titans_domains.domain import Domain

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


def train(
    domain: "Domain",
    config: Any,
    folder: Path,
    *,
    device: str,
    devices: int,
    nodes: int,
    strategy: str,
    sequence_ranks: int = 1,
    loggers: Sequence[str] | None,
    resume: bool,
    force: bool,
    remarks: Callable[[Any], Sequence[str]] = lambda config: (),
) -> None:
    """A new run, or with `resume` the one in the folder gone on with; its remarks follow what is said."""
    spread(devices, nodes, folder, config.train.batch_size, sequence_ranks)
    from titans_cli.progress import Bar, show_training
    from titans_domains.runs import choose_device, resume_run, train_run

    where = choose_device(device)
    with Bar("training", config.train.steps) as bar:

        def talk(line: str) -> None:
            for text in (line, *remarks(config)):
                bar.say(text)

        common: dict[str, Any] = {
            "device": where, "show": show_training(bar), "talk": talk, "strategy": strategy,
            "sequence_ranks": sequence_ranks, "loggers": loggers or (),
        }  # fmt: skip
        if resume:
            resume_run(domain, folder, asked=config, **common)
        else:
            train_run(domain, config, folder, force=force, **common)
    say_folder(folder)


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
