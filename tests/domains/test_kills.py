"""A training run that is killed at any moment goes on bit for bit."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import CPU, assert_same_runs, tiny_config, write_documents

from titans_domains.checkpoints import complete, load_checkpoint
from titans_domains.language import DOMAIN
from titans_domains.runs import resume_run, train_run

SETTINGS = (
    "train.steps=60", "train.checkpoint_every=2", "train.valid_every=7", "train.sample_every=9",
)  # fmt: skip


def train_until_killed(config: Any, out: Path, seconds: float) -> bool:
    """Trains on in a process of its own, which has so long to live; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            # Killed before it had a configuration, a run begins anew.
            if (out / "config.json").exists():
                resume_run(DOMAIN, out, device=CPU)
            else:
                train_run(DOMAIN, config, out, device=CPU, force=True)
        except BaseException:
            os._exit(1)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def kill_often(folder: Path, kills: int, seed: int = 0) -> int:
    """Runs that are killed until they are done, compared with one that was not; the number of runs."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    config = tiny_config(write_documents(folder / "text.jsonl"), *SETTINGS)
    began = time.perf_counter()
    train_run(DOMAIN, config, folder / "straight", device=CPU)
    longest = 0.8 * (time.perf_counter() - began)
    runs = 0
    while kills > 0:
        out = folder / f"run {runs}"
        while train_until_killed(config, out, chance.uniform(0, longest)):
            kills -= 1
            for checkpoint in complete(out / "checkpoints"):
                load_checkpoint(checkpoint)
        assert_same_runs(folder / "straight", out)
        runs += 1
    return runs


def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    assert kill_often(tmp_path, 3) >= 1


@pytest.mark.slow
def test_200_kills(tmp_path: Path) -> None:
    runs = kill_often(tmp_path, 200, seed=1)
    print(f"{runs} runs were killed 200 times")
