"""A step that is left out leaves no document with another's memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import CPU, tiny_config, write_documents

from titans_core.state import named_tensors
from titans_domains.domain import Step
from titans_domains.language.task import LanguageTask
from titans_domains.training import train


class BreaksOnce(LanguageTask):
    """Its loss is no number in the batch of one number, from 0 on; keeps what it was given."""

    def begin(self, at: int) -> "BreaksOnce":
        self.at, self.seen = at, list[Any]()
        return self

    def step(self, batch: Any, state: Any) -> Step:
        self.seen.append((batch, state))
        done = super().step(batch, state)
        if len(self.seen) == self.at + 1:
            return done._replace(loss=done.loss * torch.nan)
        return done


@pytest.mark.parametrize("mixer", ["lmm", "mag"])
@pytest.mark.parametrize("at", range(1, 7))
def test_packed_documents_are_trained_on_after_it(tmp_path: Path, mixer: str, at: int) -> None:
    """Wherever it falls, no document begins inside a chunk of what is carried."""
    source = write_documents(tmp_path / "text.jsonl")
    config = tiny_config(source, f"model.mixer={mixer}", "train.batch_size=4")
    config = replace(
        config, train=replace(config.train, steps=8, valid_every=0, checkpoint_every=8)
    )
    task = BreaksOnce(config, CPU).begin(at)
    train(task, config.train, tmp_path, device=CPU)
    assert len(task.seen) == 8
    # Every row goes on as one that has read nothing.
    carried = named_tensors(task.seen[at + 1][1])
    places = [x for name, x in carried.items() if name.endswith("position")]
    assert places
    assert not any(x.any() for x in places)
