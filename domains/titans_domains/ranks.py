"""The processes of one training: how they meet, agree, and end together. Mostly there is one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from titans_core import map_state
from titans_domains.launch import LOST, is_launched, local_processes, local_rank, started

WAIT = timedelta(minutes=30)
"""How long a process waits for the others before it takes them for lost."""
CALLER_ERRORS = (ValueError, TypeError, OSError, MemoryError)
"""What a caller can mend; see the CLI's exit codes."""
LOSSES = ("closed by peer", "Connection reset", "Broken pipe", "Timed out", "timed out", "timeout")
"""What torch says, in errors without a class of their own, where another process is no longer there."""

SHARED = "shared_by_all"
"""Stands on an error that all processes raise: none is gone then."""
Raised = TypeVar("Raised", bound=BaseException)


def met() -> bool:
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if met() else 1


def rank() -> int:
    return dist.get_rank() if met() else 0


def is_first() -> bool:
    """Whether this process is the one that talks and writes."""
    return rank() == 0


@contextmanager
def meeting(device: torch.device) -> Iterator[torch.device]:
    """Meets the other processes where torchrun or `launch` began several; this one's device.

    Among several on GPUs each has the one with its number on its machine.
    """
    if not started() or met():
        yield device
        return
    if device.type == "cuda":
        device = _own_gpu(device)
        torch.cuda.set_device(device)
    # Figures, states and refusals go over the CPU, so that they take no memory of the GPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with answered():
        dist.init_process_group(backend, timeout=WAIT)
    try:
        yield device
    except BaseException as error:
        # After an error of its own another process may be gone, and would be waited for.
        if hasattr(error, SHARED):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    here = torch.cuda.device_count()
    if local_processes() > here:
        raise ValueError(
            f"--devices {local_processes()} is more than there is: {here} GPUs are here. Give at most as "
            "many, or --device cpu."
        )
    if device.index is not None and local_processes() > 1:
        raise ValueError(
            f"--device {device} is a single GPU: give --device cuda with several processes."
        )
    return torch.device("cuda", local_rank())


@contextmanager
def answered() -> Iterator[None]:
    """ConnectionError where another process has ended, or does not answer; silence under `launch`."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        if is_launched():
            raise SystemExit(LOST) from error
        raise ConnectionError(
            "Another process of this training has ended, or does not answer: look at what it said, and go "
            "on with --resume from the last checkpoint."
        ) from error


def is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or (
        met() and any(words in str(error) for words in LOSSES)
    )


def together(error: Exception) -> BaseException:
    """The error that all processes have come to, as each is to raise it: the first alone says it."""
    return shared(error if is_first() else SystemExit(code_of(error)))


def shared(error: Raised) -> Raised:
    """The error, marked as one that all processes raise at the same place."""
    setattr(error, SHARED, True)
    return error


def code_of(error: BaseException) -> int:
    return 2 if isinstance(error, CALLER_ERRORS) else 1


@contextmanager
def agreed() -> Iterator[None]:
    """Ends all processes where one of them has failed; what it found is said once, by the first.

    All of them must come here.
    """
    if world() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    ours = None if error is None else (str(error) or type(error).__name__, code_of(error))
    failed = [(number, said) for number, said in enumerate(_everyones(ours)) if said is not None]
    if not failed:
        return
    number, (text, code) = failed[0]
    if not is_first():
        raise shared(SystemExit(code)) from error
    if error is not None:
        raise shared(error)
    kind = ValueError if code == 2 else RuntimeError
    raise shared(kind(f"Process {number} of {world()}: {text}"))


def check_alike(facts: Mapping[str, Any]) -> None:
    """ValueError where processes have begun with different configurations, data or checkpoints.

    `facts` are plain values by their names; tables are compared setting by setting.
    """
    if world() == 1:
        return
    first, *others = _everyones(dict(facts))
    for number, theirs in enumerate(others, 1):
        if (odd := _odd(first, theirs)) is not None:
            name, a, b = odd
            raise together(
                ValueError(
                    f"All processes must train the same: {name} is {b!r} in process {number}, and {a!r} in "
                    "process 0. Begin all with the same command, on the same data."
                )
            )


def _odd(ours: Any, theirs: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place in which two tables differ."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return None if ours == theirs else (name, ours, theirs)
    for key in ours | theirs:
        inner = f"{name}.{key}" if name else key
        if (odd := _odd(ours.get(key), theirs.get(key), inner)) is not None:
            return odd
    return None


def _everyones(value: Any) -> list[Any]:
    """What each process has given, in their order."""
    values: list[Any] = [None] * world()
    with answered():
        dist.all_gather_object(values, value)
    return values


def total(values: Sequence[float]) -> list[float]:
    """The sums over all processes, the same in each of them to the last bit."""
    if world() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    with answered():
        dist.all_reduce(sums)
    return sums.tolist()


def gathered(state: Any) -> list[Any]:
    """The states of all processes on the CPU, for the first; nothing for the others."""
    states: list[Any] | None = [None] * world() if is_first() else None
    with answered():
        dist.gather_object(map_state(lambda x: x.cpu(), state), states)
    return states or []


def lines(length: int) -> dist.ProcessGroup:
    """The processes in groups of so many, each of neighbours; this one's."""
    groups = [
        dist.new_group(list(range(first, first + length)), timeout=WAIT)
        for first in range(0, world(), length)
    ]
    return groups[rank() // length]


def seed_of(seed: int, step: int) -> int:
    """A seed for what this process draws in a step, apart from those of all others."""
    import numpy as np

    return int(np.random.SeedSequence([seed, rank(), step]).generate_state(1, np.uint64)[0]) // 2
