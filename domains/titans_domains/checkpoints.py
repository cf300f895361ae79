"""Checkpoints as safetensors and JSON: nothing in them is code, and none is ever half-written."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from titans_core.files import sha256_of, sync_folder, write_synced, write_tensors, write_whole
from titans_core.state import StateT, settings_of

SCHEMA = 1
WEIGHTS, TENSORS, REST = "model.safetensors", "training.safetensors", "training.json"
BEST = "best.json"
"""Names the checkpoint with the lowest first figure of validation, beside the checkpoints."""
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
    "skipped",
)


def save_checkpoint(checkpoint: dict[str, Any], path: Path, *, keep_last: int = 2) -> None:
    """Lightning's checkpoint as a folder: weights, other tensors, and everything else as JSON.

    Its `configuration` (see `configuration_of`) stands beside the weights, in the header of their file.
    All of it is on the disk before it bears its name. Of older ones the last few stay, and the best
    by the first of the figures under `valid`.
    """
    rest = dict(checkpoint)
    configuration = {CONFIGURATION: json.dumps(rest.pop("configuration", {}))}
    valid = rest.pop("valid", {})
    weights = {k.removeprefix("model."): v for k, v in rest.pop("state_dict").items()}
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(rest, tensors)
    draft = path.with_name(path.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        write_tensors(weights, draft / WEIGHTS, configuration)
        write_tensors(tensors, draft / TENSORS)
        sums = {name: sha256_of(draft / name) for name in (WEIGHTS, TENSORS)}
        write_synced(
            draft / REST, json.dumps({"schema": SCHEMA, "sha256": sums, "checkpoint": packed})
        )
        sync_folder(draft)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(path.parent)
    best = _best_of(path, valid)
    for old in complete(path.parent)[:-keep_last]:
        if old.name != best:
            shutil.rmtree(old)


def _best_of(path: Path, valid: dict[str, float]) -> str | None:
    """The name of the best checkpoint, which may be the one at `path` with figures `valid`."""
    file = path.parent / BEST
    best = read_json(file) if file.exists() else {}
    if valid:
        (name, value), *_ = valid.items()
        if math.isfinite(value) and (best.get("figure") != name or value < best["value"]):
            best = {"schema": SCHEMA, "checkpoint": path.name, "figure": name, "value": value}
            write_whole(file, json.dumps(best) + "\n")
    return best.get("checkpoint")


def check_sums(path: Path, names: tuple[str, ...] = (WEIGHTS, TENSORS)) -> dict[str, Any]:
    """The table of a checkpoint whose files are those that were written; ValueError where not."""
    table = read_json(path / REST)
    sums = table.get("sha256")
    for name in names:
        if not isinstance(sums, dict) or name not in sums:
            raise ValueError(f"{path / REST} is damaged: it has no checksum of {name}.")
        if sha256_of(path / name) != sums[name]:
            raise ValueError(
                f"{path / name} is damaged: it is not what was written. Take {path} away to go on from "
                "the checkpoint before it."
            )
    return table


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What was saved; ValueError where a file is damaged or does not belong to the others."""
    weights = load_tensors(path / WEIGHTS)
    tensors = load_tensors(path / TENSORS)
    table = check_sums(path)
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


def best(folder: Path) -> Path:
    """The checkpoint with the best validation; FileNotFoundError where none was validated."""
    if not (folder / BEST).exists():
        raise FileNotFoundError(
            f"There is no best checkpoint in {folder}: none was validated as it was saved. Set "
            "train.valid_every, or take the last."
        )
    name = read_json(folder / BEST).get("checkpoint")
    found = [path for path in complete(folder) if path.name == name]
    if not found:
        raise FileNotFoundError(
            f"{folder / BEST} names {name!r}, which is not there: take the last."
        )
    return found[0]


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
    if path.name == WEIGHTS and (path.parent / REST).exists():
        check_sums(path.parent, (WEIGHTS,))
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
