"""Activations made twice, and compiled blocks, as settings of a training."""

import functools
from pathlib import Path
from typing import Any

import pytest
from tiny_language import CPU, assert_same_runs, tiny_config, write_documents
from torch import nn

from titans_core import Backbone
from titans_core.files import load_tensors
from titans_domains.blocks import set_blocks
from titans_domains.checkpoints import WEIGHTS, latest
from titans_domains.language import DOMAIN, load_run
from titans_domains.runs import resume_run, train_run
from titans_domains.train_config import TrainConfig


class StoppedError(Exception):
    pass


def stop(step: int, row: dict[str, Any]) -> None:
    if step == 3:
        raise StoppedError


@pytest.mark.parametrize("mixer", ["lmm", "mac"])
def test_a_run_with_checkpointed_activations_is_the_same_run(tmp_path: Path, mixer: str) -> None:
    text = write_documents(tmp_path / "text.jsonl")
    settings = [f"model.mixer={mixer}", "train.accumulate=2", "model.hybrid.segment_len=16"]
    train_run(DOMAIN, tiny_config(text, *settings), tmp_path / "plain", device=CPU)
    config = tiny_config(text, *settings, "train.checkpoint_activations=true")
    train_run(DOMAIN, config, tmp_path / "saving", device=CPU)
    assert_same_runs(tmp_path / "plain", tmp_path / "saving")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's
def test_a_compiled_run_has_ordinary_checkpoints_and_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dynamo alone: what stands behind it is torch's."""
    plain = Backbone.compile_blocks
    eager = functools.partialmethod(plain, backend="eager")
    monkeypatch.setattr(Backbone, "compile_blocks", eager)
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), "train.compile=true")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train_run(DOMAIN, config, straight, device=CPU)
    with pytest.raises(StoppedError):
        train_run(DOMAIN, config, stopped, device=CPU, show=stop)
    resume_run(DOMAIN, stopped, device=CPU)
    assert_same_runs(straight, stopped)
    model, *_ = load_run(straight, CPU)
    names = load_tensors(latest(straight / "checkpoints") / WEIGHTS).keys()
    assert names == model.state_dict().keys()


def test_a_model_without_our_blocks_has_none_to_set() -> None:
    model = nn.Linear(2, 2)
    set_blocks(model, TrainConfig())
    for name in ("checkpoint_activations", "compile"):
        with pytest.raises(
            ValueError, match=f"train.{name} is for models on a titans_core.Backbone"
        ):
            set_blocks(model, TrainConfig(**{name: True}))


def test_without_a_compiler_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), "train.compile=true")
    with pytest.raises(ValueError, match="train.compile needs a C.. compiler"):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU)
