"""Runs: folders that hold a configuration, a log, checkpoints and what the domain adds."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from titans_core.files import write_whole
from titans_core.mixers import RECURRENCES
from titans_domains import ranks
from titans_domains.checkpoints import SCHEMA, parse_json, read_json
from titans_domains.config import difference, from_dict, to_dict
from titans_domains.domain import Domain, Task
from titans_domains.launch import check_shares

CONFIG = "config.json"
STRATEGIES = ("ddp", "sharded")
"""What several processes share: the rows of a step, or weights, gradients and the optimiser's too."""
BEGUN = ".begun.tmp"
"""Stands in the folder of a run until it has its configuration: what was killed before is none yet."""


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; ValueError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N: got {name!r}.") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N: got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} is not here: there are {torch.cuda.device_count()} GPUs."
        )
    return device


def load_run_table(run: Path, domain: Domain) -> tuple[Any, dict[str, Any]]:
    """The configuration of a run and the rest of its table; ValueError where it is another domain's."""
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {str(run)!r}.")
    table = read_json(run / CONFIG)
    if table.get("domain") != domain.name:
        raise ValueError(
            f"{run} is a run of the domain {table.get('domain')!r}, not of {domain.name!r}."
        )
    if "data_sha256" not in table:
        raise ValueError(f"{run / CONFIG} is damaged: it has no 'data_sha256'.")
    return from_dict(domain.config_type, table.get("config")), table


def is_run(folder: Path) -> bool:
    """Whether titans made the folder, in whichever version and for whichever domain.

    Other programs' models have a `config.json` too.
    """
    try:
        table = parse_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return (
        isinstance(table, dict)
        and isinstance(table.get("schema"), int)
        and isinstance(table.get("domain"), str)
    )


def train_run(
    domain: Domain,
    config: Any,
    out: Path,
    *,
    device: torch.device,
    force: bool = False,
    show: Callable[[int, dict[str, Any]], None] = lambda step, row: None,
    talk: Callable[[str], None] = lambda line: None,
    strategy: str = "ddp",
    sequence_ranks: int = 1,
    loggers: Sequence[str] = (),
) -> None:
    """Trains a new run into `out`; nothing is written before configuration and data were accepted.

    Of several processes that torchrun or `launch` began, each is to call it; the first alone writes.
    """
    # Lightning takes seconds to import, which is too long for those that only read runs.
    from titans_domains.followers import check_loggers
    from titans_domains.training import train

    with ranks.meeting(device) as device:
        with ranks.agreed():
            check_loggers(loggers)
            if ranks.is_first():
                check_target(out, force)
            config = domain.absolute(config)
            task = domain.task(config, device)
            check_shared(config, strategy, sequence_ranks)
            task = over_time(task, sequence_ranks)
        check_same(config, task, strategy, sequence_ranks)
        with ranks.agreed():
            if ranks.is_first():
                write_run(domain, config, task, out, device)
        train(
            task, config.train, out,
            device=device, show=show, talk=talk, strategy=strategy, sequence_ranks=sequence_ranks,
            loggers=loggers,
        )  # fmt: skip


def check_target(out: Path, force: bool, *, resumes: bool = True) -> None:
    """FileExistsError where `out` holds something that is not to be replaced; a run may be gone on with."""
    if out.exists() and not (out / BEGUN).exists() and (not out.is_dir() or any(out.iterdir())):
        if not force:
            raise FileExistsError(
                f"{out} is there already: choose another --out{', go on with --resume,' if resumes else ''} "
                "or replace it with --force."
            )
        if not is_run(out):
            raise FileExistsError(f"{out} is not a run of titans, so --force does not replace it.")


def check_shared(config: Any, strategy: str, sequence_ranks: int) -> None:
    """ValueError where several processes cannot train this together."""
    check_shares(ranks.world(), sequence_ranks, config.train.batch_size)
    if sequence_ranks > 1 and strategy == "sharded":
        raise ValueError("--strategy sharded does not share time: leave --sequence-ranks out.")
    mixer = getattr(getattr(config, "model", None), "mixer", None)
    if strategy == "sharded" and mixer in RECURRENCES:
        raise ValueError(
            f"--strategy sharded needs a mixer of layers: got {mixer}, whose segments differ in number from "
            "process to process. Leave --strategy out."
        )
    if strategy not in STRATEGIES:
        raise ValueError(f"--strategy must be one of {', '.join(STRATEGIES)}: got {strategy!r}.")


def check_same(config: Any, task: Task, strategy: str, sequence_ranks: int) -> None:
    """ValueError where processes have begun to train different things."""
    ranks.check_alike(
        {
            "config": to_dict(config),
            "data's SHA-256": task.data_sha256,
            "strategy": [strategy, sequence_ranks],
        }
    )


def over_time(task: Task, sequence_ranks: int) -> Task:
    """The task with the time of every row shared among so many processes."""
    if sequence_ranks == 1:
        return task
    share = getattr(task, "over_time", None)
    if share is None:
        raise ValueError(
            "--sequence-ranks is for language models: share rows with --devices alone."
        )
    shared: Task = share(ranks.lines(sequence_ranks))
    return shared


def write_run(domain: Domain, config: Any, task: Task, out: Path, device: torch.device) -> None:
    """A new run's folder, with its configuration; none is left where it cannot be written."""
    # Which reads runs.
    from titans_domains.report import write_facts

    table = {
        "schema": SCHEMA,
        "domain": domain.name,
        "config": to_dict(config),
        "data_sha256": task.data_sha256,
        "made_with": made_with(device),
    }
    try:
        clear(out)
        task.save_extras(out)
        write_facts(out, task)
        write_whole(out / CONFIG, json.dumps(table, indent=2) + "\n")
        (out / BEGUN).unlink()
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def clear(out: Path) -> None:
    """An empty folder but for `BEGUN`, which is there before anything is taken away."""
    out.mkdir(parents=True, exist_ok=True)
    (out / BEGUN).touch()
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != BEGUN:
            path.unlink()


def made_with(device: torch.device) -> dict[str, Any]:
    """Versions, and where titans is a git checkout its commit: what a figure depends on."""
    versions = {}
    for name in ("titans-toolkit", "torch", "lightning", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(), **versions,
        "commit": commit_of(Path(__file__).parent), "device": str(device),
        "processes": ranks.world(), "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def commit_of(folder: Path) -> str | None:
    """The git commit of a folder, `-dirty` where files differ from it; None outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def peak_memory_mib(device: torch.device) -> float | None:
    """Most memory that this process has held, or of a GPU allocated; None where the system does not say.

    Not getrusage's: a process started by another inherits that one's peak as its own.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def resume_run(
    domain: Domain,
    out: Path,
    *,
    asked: Any = None,
    device: torch.device,
    show: Callable[[int, dict[str, Any]], None] = lambda step, row: None,
    talk: Callable[[str], None] = lambda line: None,
    strategy: str = "ddp",
    sequence_ranks: int = 1,
    loggers: Sequence[str] = (),
) -> None:
    """Goes on with a run, bit for bit; `asked` is a configuration that must be the run's own.

    Several processes go on with what one began, and one with what several did.
    """
    from titans_domains.followers import check_loggers
    from titans_domains.training import train

    with ranks.meeting(device) as device:
        with ranks.agreed():
            check_loggers(loggers)
            config, task = taken_up(domain, out, asked, device)
            check_shared(config, strategy, sequence_ranks)
            task = over_time(task, sequence_ranks)
        check_same(config, task, strategy, sequence_ranks)
        train(
            task, config.train, out, device=device, resume=True, show=show, talk=talk,
            strategy=strategy, sequence_ranks=sequence_ranks, loggers=loggers,
        )  # fmt: skip


def taken_up(domain: Domain, out: Path, asked: Any, device: torch.device) -> tuple[Any, Task]:
    """The configuration and the task of a run, whose data must be what it was."""
    config, table = load_run_table(out, domain)
    if asked is not None and (odd := difference(domain.absolute(asked), domain.absolute(config))):
        raise ValueError(
            f"A run goes on with its own configuration, and this one differs in {odd} in {out}. "
            "Leave the setting out, or train into another --out."
        )
    task = domain.task(config, device, folder=out)
    if task.data_sha256 != table["data_sha256"]:
        raise ValueError(
            f"The data is not what it was when {out} began: its SHA-256 is {task.data_sha256}, it was "
            f"{table['data_sha256']}. Bring back the data, or train into another --out."
        )
    return config, task
