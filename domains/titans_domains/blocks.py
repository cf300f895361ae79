"""How the blocks of a model are gone through while it trains: checkpointed, or compiled."""

import os
import shlex
import shutil

from torch import nn

from titans_core import Backbone
from titans_domains.train_config import TrainConfig


def set_blocks(model: nn.Module, config: TrainConfig) -> None:
    """As the settings say; ValueError where the model has no blocks of ours, or nothing can be compiled."""
    stacks = [part for part in model.modules() if isinstance(part, Backbone)]
    for name in ("checkpoint_activations", "compile"):
        if getattr(config, name) and not stacks:
            raise ValueError(
                f"train.{name} is for models on a titans_core.Backbone: got {type(model).__name__} "
                "without one. Leave the setting out."
            )
    for stack in stacks:
        stack.checkpoint_activations = config.checkpoint_activations
    if not config.compile:
        return
    if next(model.parameters()).device.type == "cpu" and not has_compiler():
        raise ValueError(
            "train.compile needs a C++ compiler on a CPU, and there is no g++ or clang++: install one, name "
            "it in CXX, or leave the setting out."
        )
    for stack in stacks:
        stack.compile_blocks()


def has_compiler() -> bool:
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(shutil.which(name) for name in named or ("g++", "clang++"))
