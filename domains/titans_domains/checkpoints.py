"""Checkpoints as safetensors and JSON: nothing in them is code, and none is ever half-written."""

import json
import math
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from titans_core.files import (
    load_tensors,
    sha256_of,
    sync_folder,
    write_synced,
    write_tensors,
    write_whole,
)
from titans_core.state import StateT, settings_of

SCHEMA = 1
WEIGHTS, TENSORS, REST = "model.safetensors", "training.safetensors", "training.json"
BEST = "best.json"
"""Names the checkpoint with the lowest first figure of validation, beside the checkpoints."""
CONFIGURATION = "titans_configuration"
"""The key of the weights' header under which a checkpoint says what was trained."""
LARGEST_JSON = 2**24
"""Bytes of a file of settings; ours are some thousands."""
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

    Its `configuration` (see `weights.configuration_of`) stands beside the weights, in their file's
    header. All of it is on the disk before it bears its name. Of older ones the last few stay, and the
    best by the first of the figures under `valid`: see `settle`.
    """
    rest = dict(checkpoint)
    configuration = {CONFIGURATION: json.dumps(rest.pop("configuration", {}))}
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
        sums["checkpoint"] = _sum(packed)
        write_synced(
            draft / REST, json.dumps({"schema": SCHEMA, "sha256": sums, "checkpoint": packed})
        )
        sync_folder(draft)
        if path.exists():
            remove_checkpoint(path)
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(path.parent)
    settle(path, checkpoint.get("valid", {}), keep_last=keep_last)


def _sum(packed: Any) -> str:
    return sha256(json.dumps(packed).encode()).hexdigest()


def settle(path: Path, valid: dict[str, float], *, keep_last: int) -> None:
    """What follows the newest checkpoint: the best is named anew, and those that have had their time go.

    A process that was killed before it came to this is made up for when the run goes on.
    """
    best = _best_of(path, valid)
    for old in complete(path.parent)[:-keep_last]:
        if old.name != best:
            remove_checkpoint(old)


def remove_checkpoint(path: Path) -> None:
    """Takes a checkpoint away at once: one that is half removed does not bear its name."""
    gone = path.with_name(path.name + ".old.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)


def _best_of(path: Path, valid: dict[str, float]) -> str | None:
    """The name of the best checkpoint, which may be the one at `path` with figures `valid`."""
    file = path.parent / BEST
    best = read_json(file) if file.exists() else {}
    if valid:
        (name, value), *_ = valid.items()
        if math.isfinite(value) and (best.get("figure") != name or value < _value(best, file)):
            best = {"schema": SCHEMA, "checkpoint": path.name, "figure": name, "value": value}
            write_whole(file, json.dumps(best) + "\n")
    return best.get("checkpoint")


def _value(best: dict[str, Any], file: Path) -> float:
    value = best.get("value")
    if not isinstance(value, int | float):
        raise ValueError(f"{file} is damaged: it has no value. Take it away to begin it anew.")
    return value


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
    except (KeyError, TypeError, ValueError, RecursionError):
        missing = ["checkpoint"]
    if missing:
        raise ValueError(
            f"{path / REST} is damaged: its {missing[0]!r} is absent or does not fit {TENSORS}."
        )
    # Checkpoints had no checksum of it once.
    if table["sha256"].get("checkpoint", _sum(table["checkpoint"])) != _sum(table["checkpoint"]):
        raise ValueError(
            f"{path / REST} is damaged: it is not what was written. Take {path} away to go on from the "
            "checkpoint before it."
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


def chosen(folder: Path, which: str) -> Path:
    """The checkpoint that is asked for, `last` or `best`."""
    choose = {"last": latest, "best": best}.get(which)
    if choose is None:
        raise ValueError(f"A checkpoint is 'last' or 'best': got {which!r}.")
    return choose(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of this schema; ValueError where it is cut short, or of another version."""
    table = parse_json(path)
    if not isinstance(table, dict) or "schema" not in table:
        raise ValueError(f"{path} was not written by titans: it has no schema version.")
    if table["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema version {table['schema']!r}: this titans reads {SCHEMA}. Use the "
            "version of titans that wrote it."
        )
    return table


def parse_json(path: Path) -> Any:
    """What a file of settings holds; ValueError where it is no JSON, or too large to be settings."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; is this a run of titans?")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} is larger than {LARGEST_JSON:,} bytes: titans did not write it.")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is cut short or is no JSON.") from None


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
