"""Tasks of lm-evaluation-harness, asked of a run in each way it can read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from titans_domains.language.lm_eval_adapter import TitansLM, modes_for
from titans_domains.language.task import load_run


def evaluate_run(
    run: Path,
    tasks: list[str],
    *,
    modes: Sequence[str] = (),
    include_path: Path | None = None,
    limit: int | None = None,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """lm-eval's figures on tasks, by mode; in every mode of the run where none is named."""
    if include_path is not None and not include_path.is_dir():
        raise FileNotFoundError(f"There is no folder of tasks {str(include_path)!r}.")
    model, tokenizer, config = load_run(run, device)
    models = {
        mode: TitansLM(model, tokenizer, mode=mode, window=config.data.seq_len)
        for mode in modes or modes_for(model)
    }
    manager = manager_of(tasks, include_path)
    return {
        mode: simple_evaluate(
            model=asked, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False,
            bootstrap_iters=1000,
        )["results"]
        for mode, asked in models.items()
    }  # fmt: skip


def manager_of(tasks: list[str], include_path: Path | None) -> TaskManager:
    """Knows all of the tasks, and lm-eval's own only where it must: to list them takes seconds."""
    folder = None if include_path is None else str(include_path)
    for own in (False, True) if folder else (True,):
        manager = TaskManager(include_path=folder, include_defaults=own)
        missing = [task for task in tasks if task not in manager.all_tasks]
        if not missing:
            return manager
    raise ValueError(
        f"lm-eval has no task {missing[0]!r}: give names that `lm-eval ls tasks` lists, or that stand in "
        "files of --include-path."
    )
