"""Starts a command once for each device of a machine, and watches over what it started.

Free of torch, which takes a second to import.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER = "TITANS_LAUNCHER"
"""The number of the process that began this one: it is gone where it is no longer the parent."""
FORWARDED = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 30.0
"""Seconds for the others to end by themselves after one of them has failed."""
LOST = 75
"""Exit code of a process that lost another: it says nothing, since `launch` says which was ended."""
SHORT = 5.0
"""The same after one was killed: on GPUs the others would wait for it, and cannot save without it."""


def number(name: str, default: int) -> int:
    """A whole number of the environment; ValueError for what is none."""
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"{name} in the environment must be a whole number: got {value!r}.")
    return int(value)


def started() -> bool:
    """Whether this is one of several processes that torchrun, or `launch`, has begun."""
    return all(name in os.environ for name in NEEDED) and number("WORLD_SIZE", 1) > 1


def local_rank() -> int:
    """The number of this process on its machine."""
    return number("LOCAL_RANK", 0) if started() else 0


def speaks() -> bool:
    """Whether this process is the one of its machine that talks, whatever else the environment says."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def local_processes() -> int:
    """How many processes this machine has."""
    return number("LOCAL_WORLD_SIZE", number("WORLD_SIZE", 1)) if started() else 1


def is_first() -> bool:
    """Whether this process is the one that talks, before it has met the others too."""
    return not started() or number("RANK", 0) == 0


def is_launched() -> bool:
    """Whether `launch` has begun this process, and watches over it."""
    return LAUNCHER in os.environ


def is_orphan() -> bool:
    """Whether the process that began this one has gone."""
    parent = os.environ.get(LAUNCHER)
    return parent is not None and os.getppid() != int(parent)


def check_started(devices: int, nodes: int) -> None:
    """ValueError where the options ask for other processes than torchrun has begun."""
    here, whole = local_processes(), number("WORLD_SIZE", 1)
    if devices not in (1, here) or nodes not in (1, whole // here):
        raise ValueError(
            f"--devices {devices} --nodes {nodes} is not what was begun, {here} processes on each of "
            f"{whole // here} machines: leave them out under torchrun."
        )


def check_shares(processes: int, sequence_ranks: int, rows: int) -> None:
    """ValueError where so many processes cannot share the time and the rows of a step."""
    if sequence_ranks < 1 or processes % sequence_ranks:
        raise ValueError(
            f"--sequence-ranks must divide the number of processes, {processes}: got {sequence_ranks}."
        )
    sharing = processes // sequence_ranks
    if rows % sharing:
        raise ValueError(
            f"train.batch_size must be a multiple of the {sharing} processes that share it: got {rows}."
        )


def launch(command: Sequence[str], devices: int, nodes: int = 1) -> int:
    """Runs the command in as many processes; their exit code, once all have ended.

    SIGTERM and Ctrl-C are passed on; the code is minus the signal where it came before they heed it.
    ConnectionError where one of them was killed: the others are ended.
    """
    ranks = Ranks()
    before = {number: signal.signal(number, ranks.forward) for number in FORWARDED}
    try:
        for environment in environments(devices, nodes):
            # In a session of its own a process hears of Ctrl-C from us alone, and so once.
            child = subprocess.Popen(command, env=environment, start_new_session=True)
            ranks.children.append(child)
        return ranks.wait()
    finally:
        ranks.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def environments(devices: int, nodes: int) -> list[dict[str, str]]:
    """What tells each process on this machine which it is, in torchrun's words."""
    node, address, port = 0, "127.0.0.1", ""
    if nodes > 1:
        missing = [n for n in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if n not in os.environ]
        if missing:
            raise ValueError(
                f"--nodes {nodes} needs {', '.join(missing)} in the environment of each machine: the "
                "address and a free port of the first, and the machine's number from 0; or use torchrun."
            )
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        node = number("NODE_RANK", 0)
        if not 0 <= node < nodes:
            raise ValueError(f"NODE_RANK must be from 0 to {nodes - 1}: got {node}.")
    common = {
        **os.environ,
        "WORLD_SIZE": str(devices * nodes), "LOCAL_WORLD_SIZE": str(devices), "GROUP_RANK": str(node),
        "MASTER_ADDR": address, "MASTER_PORT": port or str(_free_port()), LAUNCHER: str(os.getpid()),
    }  # fmt: skip
    # Each would take all cores for itself.
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    return [
        {**common, "RANK": str(node * devices + local), "LOCAL_RANK": str(local)}
        for local in range(devices)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """The processes that were started here."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.asked = 0

    def forward(self, number: int, frame: Any) -> None:
        self.asked = number
        for child in self.children:
            child.send_signal(number)

    def kill(self) -> None:
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()

    def wait(self) -> int:
        """The exit code of the first process that failed; 0 where none did."""
        failed: list[int] = []  # in the order of their ends
        until = float("inf")
        while any(child.poll() is None for child in self.children) and time.monotonic() < until:
            for number, child in enumerate(self.children):
                if number not in failed and child.poll():
                    failed.append(number)
                    patience = SHORT if child.returncode < 0 else PATIENCE
                    until = min(until, time.monotonic() + patience)
            time.sleep(0.02)
        failed += [n for n, child in enumerate(self.children) if child.poll() and n not in failed]
        if not failed:
            return 0
        if self.children[0].returncode == 2:
            # It has said why, and however the others ended came of it.
            return 2
        causes = [n for n in failed if self.children[n].returncode != LOST]
        if not causes:
            raise ConnectionError(
                "Another process of this training has ended, or does not answer: look at what it said, and "
                "go on with --resume from the last checkpoint."
            )
        code = self.children[causes[0]].returncode
        if code >= 0 or -code == self.asked:
            return code
        raise ConnectionError(
            f"Process {causes[0]} of {len(self.children)} was ended by {signal.Signals(-code).name}, and "
            "the training with it: go on with --resume from the last checkpoint."
        )
