"""Trainings in several processes: what each of them is told to do, and what it leaves."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from titans_domains.launch import LAUNCHER, environments

ROOT = Path(__file__).parent
LANGUAGE = (
    "data.seq_len=32", "model.hybrid.segment_len=16", "train.steps=20", "train.checkpoint_every=20",
    "train.valid_every=10", "train.precision=float64", "train.clip=0.3",
)  # fmt: skip


def job(out: str, *settings: str, **more: Any) -> dict[str, Any]:
    """One training into FOLDER/out: `mine` are settings of some processes, by their number; the
    last process is asked to end so that step `stop` is the last."""
    plain = {"strategy": "ddp", "sequence_ranks": 1, "mine": {}}
    return {"out": out, "settings": settings, **plain, **more}


def run_together(folder: Path, jobs: list[dict[str, Any]], processes: int) -> None:
    """Does the jobs, one after the other, in processes that meet once."""
    context = multiprocessing.get_context("forkserver")
    # Imported once for all that follow.
    context.set_forkserver_preload(["titans_domains.training", "titans_domains.language.task"])
    members = [
        context.Process(target=member, args=(folder, jobs, own))
        for own in environments(processes, 1)
    ]
    for process in members:
        process.start()
    for process in members:
        process.join(240)
        process.kill()
    assert [process.exitcode for process in members] == [0] * processes


def member(folder: Path, jobs: list[dict[str, Any]], own: dict[str, str]) -> None:
    import torch
    from tiny_language import CPU

    from titans_domains import ranks

    os.environ.update(own)
    # Nobody watches over it.
    del os.environ[LAUNCHER]
    torch.set_num_threads(1)
    with ranks.meeting(CPU):
        for work in jobs:
            do(folder, {"name": work["out"], **work})


def environment() -> dict[str, str]:
    paths = [str(ROOT.parent / part) for part in (".", "kernels", "domains", "cli", "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def start(*command: str, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def do(folder: Path, work: dict[str, Any]) -> None:
    import torch
    from tiny_language import CPU, tiny_config

    from titans_domains import ranks
    from titans_domains.language import DOMAIN
    from titans_domains.language.task import LanguageTask
    from titans_domains.log import Log
    from titans_domains.runs import resume_run, train_run

    rank = ranks.rank()
    source = folder / work["mine"].get("source", {}).get(str(rank), "text.jsonl")
    own = work["mine"].get("settings", {}).get(str(rank), [])
    config = tiny_config(source, *LANGUAGE, *work["settings"], *own)
    notes: dict[str, Any] = {"rows": [], "drawn": []}
    read, end = LanguageTask.step, Log.on_train_batch_end

    def step(task: Any, batch: Any, state: Any) -> Any:
        notes["rows"] += batch.inputs.tolist()
        notes["drawn"].append(torch.rand(()).item())
        return read(task, batch, state)

    def on_train_batch_end(log: Any, trainer: Any, *args: Any) -> None:
        end(log, trainer, *args)
        # All hear of it in the next step, and end after it.
        if trainer.global_step + 1 == work.get("stop") and rank == ranks.world() - 1:
            signal.raise_signal(signal.SIGTERM)

    LanguageTask.step, Log.on_train_batch_end = step, on_train_batch_end  # type: ignore[method-assign, assignment]
    try:
        common = {name: work[name] for name in ("strategy", "sequence_ranks")} | {"device": CPU}
        if work.get("resume"):
            resume_run(DOMAIN, folder / work["out"], **common)
        else:
            train_run(DOMAIN, config, folder / work["out"], **common)
    except (ValueError, OSError) as error:
        notes["error"] = str(error)
    except SystemExit as error:
        notes["code"] = error.code
    finally:
        LanguageTask.step, Log.on_train_batch_end = read, end  # type: ignore[method-assign]
    (folder / f"{work['name']}.{rank}.json").write_text(json.dumps(notes))
