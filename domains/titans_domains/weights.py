"""The weights of models: refused, before memory is taken for them, where they are not the model's own."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from titans_core import count_parameters
from titans_core.files import load_tensors, shapes_in
from titans_domains.checkpoints import CONFIGURATION, REST, WEIGHTS, check_sums

ModelT = TypeVar("ModelT", bound=nn.Module)
COPIES = 4
"""Of every weight in training: itself, its gradient and two means of the optimiser."""


def check_shapes(
    ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    if ours != theirs:
        odd = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))[0]
        raise ValueError(
            f"{path} is of another model: {odd} is {theirs.get(odd, 'absent')} there, "
            f"{ours.get(odd, 'absent')} in the configuration."
        )


def configuration_of(model: nn.Module) -> dict[str, Any]:
    """Every setting of a model by its place, from the dataclasses that modules keep as `config`."""
    settings: dict[str, Any] = {}

    def visit(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            settings[place] = value
            return
        for key, inner in value.items():
            visit(inner, f"{place}.{key}" if place else key)

    def search(module: nn.Module, place: str) -> None:
        config = getattr(module, "config", None)
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            # What is inside was built from it.
            visit(dataclasses.asdict(config), place)
            return
        for name, child in module.named_children():
            search(child, f"{place}.{name}" if place else name)

    search(model, "")
    return dict(json.loads(json.dumps(settings)))


def header_of(model: nn.Module) -> dict[str, str]:
    """What stands beside weights in their file, so that they are read under the same settings."""
    return {CONFIGURATION: json.dumps(configuration_of(model))}


def _check_configuration(model: nn.Module, path: Path) -> None:
    """ValueError where the file says that its weights were trained under another configuration.

    A setting that came later is not in it, and stands for what was before.
    """
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(CONFIGURATION)
    if text is None:
        return
    theirs = _table(text, path)
    ours = configuration_of(model)
    for name, was in theirs.items():
        now = ours.get(name, "absent")
        if was != now:
            raise ValueError(
                f"{path} was trained with {name} = {was!r}, and the configuration has {now!r}: bring "
                "that setting back, or train anew."
            )


def _table(text: str, path: Path) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ValueError(f"{path} is damaged: its header has no table of settings.")
    return table


def check_weights(model: nn.Module, path: Path) -> None:
    """ValueError where the file is damaged or its weights are not this model's, which may be a planned one.

    Settings that leave every shape as it is are part of a trained model too: weights are refused under
    others. Files that say nothing of their configuration are not asked.
    """
    theirs = shapes_in(path)
    if path.name == WEIGHTS and (path.parent / REST).exists():
        check_sums(path.parent, (WEIGHTS,))
    _check_configuration(model, path)
    check_shapes({name: tuple(x.shape) for name, x in model.state_dict().items()}, theirs, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills the model; ValueError, and the model as it was, where `check_weights` refuses the file."""
    check_weights(model, path)
    _fill(model, path)


def read_model(make: Callable[[], ModelT], path: Path) -> ModelT:
    """The model with the file's weights, which takes no memory where they are not its own."""
    check_weights(planned(make), path)
    model = make()
    _fill(model, path)
    return model


def _fill(model: nn.Module, path: Path) -> None:
    tensors = load_tensors(path)
    for name, ours in model.state_dict().items():
        kind = tensors[name].dtype
        if kind.is_complex or kind.is_floating_point != ours.is_floating_point():
            raise ValueError(
                f"{path} is of another model: {name} is {kind} there, {ours.dtype} here."
            )
    model.load_state_dict(tensors)


def make_model(make: Callable[[], ModelT], device: torch.device) -> ModelT:
    """A model to train; MemoryError where the machine could never hold it."""
    count, room = count_parameters(planned(make)), memory_of(device)
    needed = COPIES * 4 * count
    if room is not None and needed > room:
        raise MemoryError(
            f"To train {count:,} parameters takes {needed / 2**30:,.0f} GiB, and {device} has "
            f"{room / 2**30:,.0f}: take a smaller model."
        )
    return make()


def planned(make: Callable[[], ModelT]) -> ModelT:
    """The model without memory for its numbers; ValueError where no machine can count them."""
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, OverflowError, TypeError) as error:
        if not isinstance(error, OverflowError) and "overflow" not in str(error).lower():
            raise
        raise ValueError(
            "The configuration asks for a model of more parameters than can be counted: take a "
            "smaller one."
        ) from None


def memory_of(device: torch.device) -> int | None:
    """All bytes of memory that a device has; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
