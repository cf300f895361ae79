"""Checkpoints as safetensors and JSON: nothing in them is code, and none is ever half-written."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from titans_core.state import StateT, settings_of

SCHEMA = 1
WEIGHTS, TENSORS, REST = "model.safetensors", "training.safetensors", "training.json"
CONFIGURATION = "titans_configuration"
"""The key of the weights' header under which a checkpoint says what was trained."""
OTHER_STATE = (
    "The checkpoint's carried state is not one of this configuration: it was written under another."
)
NEEDED = (
    "global_step",
    "loops",
    "optimizer_states",
    "lr_schedulers",
    "carried",
    "cursor",
    "random",
)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Lightning's checkpoint as a folder: weights, other tensors, and everything else as JSON.

    Its `configuration` (see `configuration_of`) stands beside the weights, in the header of their file.
    """
    rest = dict(checkpoint)
    configuration = {CONFIGURATION: json.dumps(rest.pop("configuration", {}))}
    weights = {k.removeprefix("model."): v for k, v in rest.pop("state_dict").items()}
    tensors: dict[str, torch.Tensor] = {}
    table = json.dumps({"schema": SCHEMA, "checkpoint": pack(rest, tensors)})
    draft = path.with_name(path.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(weights, draft / WEIGHTS, configuration)
    save_file(tensors, draft / TENSORS)
    (draft / REST).write_text(table)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(draft, path)
    for old in complete(path.parent)[:-2]:
        shutil.rmtree(old)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What was saved; ValueError where a file is damaged or does not belong to the others."""
    weights = load_tensors(path / WEIGHTS)
    tensors = load_tensors(path / TENSORS)
    table = read_json(path / REST)
    try:
        checkpoint = unpack(table["checkpoint"], tensors)
        missing = [name for name in NEEDED if name not in checkpoint]
    except (KeyError, TypeError, ValueError):
        missing = ["checkpoint"]
    if missing:
        raise ValueError(
            f"{path / REST} is damaged: its {missing[0]!r} is absent or does not fit {TENSORS}."
        )
    checkpoint["state_dict"] = {f"model.{k}": v for k, v in weights.items()}
    return checkpoint


def complete(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")


def step_name(step: int) -> str:
    return f"step-{step:07d}"


def latest(folder: Path) -> Path:
    """The newest checkpoint; FileNotFoundError where there is none."""
    found = complete(folder)
    if not found:
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}: the run was stopped before its first. Train on "
            "with --resume."
        )
    return found[-1]


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; ValueError where it is cut short or something else."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; is this a run of titans?")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or is no safetensors file: {error}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of this schema; ValueError where it is cut short, or of another version."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; is this a run of titans?")
    try:
        table = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is cut short or is no JSON.") from None
    if not isinstance(table, dict) or "schema" not in table:
        raise ValueError(f"{path} was not written by titans: it has no schema version.")
    if table["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema version {table['schema']!r}: this titans reads {SCHEMA}. Use the "
            "version of titans that wrote it."
        )
    return table


def configuration_of(model: torch.nn.Module) -> dict[str, Any]:
    """Every setting of a model by its place, from the dataclasses that modules keep as `config`."""
    settings: dict[str, Any] = {}

    def visit(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            settings[place] = value
            return
        for key, inner in value.items():
            visit(inner, f"{place}.{key}" if place else key)

    def search(module: torch.nn.Module, place: str) -> None:
        config = getattr(module, "config", None)
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            # What is inside was built from it.
            visit(dataclasses.asdict(config), place)
            return
        for name, child in module.named_children():
            search(child, f"{place}.{name}" if place else name)

    search(model, "")
    return dict(json.loads(json.dumps(settings)))


def _check_configuration(model: torch.nn.Module, path: Path) -> None:
    """ValueError where the file says that its weights were trained under another configuration."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(CONFIGURATION)
    if text is None:
        return
    ours, theirs = configuration_of(model), json.loads(text)
    for name in {**theirs, **ours}:
        was, now = theirs.get(name, "absent"), ours.get(name, "absent")
        if was != now:
            raise ValueError(
                f"{path} was trained with {name} = {was!r}, and the configuration has {now!r}: bring "
                "that setting back, or train anew."
            )


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fills the model; ValueError where the file's weights are not this model's.

    Settings that leave every shape as it is are part of a trained model too: a checkpoint's weights
    are refused under others. Files that say nothing of their configuration are not asked.
    """
    weights = load_tensors(path)
    _check_configuration(model, path)
    ours = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    theirs = {name: tuple(x.shape) for name, x in weights.items()}
    if ours != theirs:
        odd = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))[0]
        raise ValueError(
            f"{path} is of another model: {odd} is {theirs.get(odd, 'absent')} there, "
            f"{ours.get(odd, 'absent')} in the configuration."
        )
    model.load_state_dict(weights)


def pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under a number each."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[k, pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [pack(v, tensors) for v in value]}
    if isinstance(value, list):
        return [pack(v, tensors) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"A checkpoint holds tensors and plain values: got {type(value).__name__}.")


def unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpack(v, tensors) for v in content)
    return {k: unpack(v, tensors) for k, v in content}


def rebuild(state: Any, like: StateT) -> StateT:
    """Plain nested tuples with the named tuples of `like` put back, whose settings must be theirs."""
    rebuilt = _renamed(state, like)
    if settings_of(rebuilt) != settings_of(like):
        raise ValueError(OTHER_STATE)
    return rebuilt


def _renamed(state: Any, like: StateT) -> StateT:
    if not isinstance(like, tuple):
        return state
    if not isinstance(state, tuple) or len(state) != len(like):
        raise ValueError(OTHER_STATE)
    children = [_renamed(a, b) for a, b in zip(state, like, strict=True)]
    return type(like)(*children) if hasattr(like, "_fields") else tuple(children)  # type: ignore[return-value]
