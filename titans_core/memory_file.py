"""Memory files: what a model has learned from what it read, kept for another day.

One safetensors file. Its tensors are those of a state that `restart_caches` lets go on: memory, running
and at the start of its chunk and segment, surprise, and position; with `caches=True` every tensor. What
made them stands in the header as JSON: a memory means nothing to another model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from titans_core.backbone import Backbone
from titans_core.checks import fingerprint
from titans_core.files import write_whole
from titans_core.state import cache_names, named_tensors, replace_tensors, settings_of

SCHEMA = 1
HEADER = "titans_memory"


class ModelIdentity(NamedTuple):
    """What tells a model from every other, as far as its memories go."""

    config: str
    dtype: str
    weights: str  # SHA-256 of every weight, which takes a while for a large model


def identity_of(model: Backbone) -> ModelIdentity:
    """Computed once, it saves many calls of `save_memory` and `load_memory` from reading all weights."""
    _check_model(model)
    return ModelIdentity(_config_hash(model), _dtype(model), _weights_hash(model))


@torch.no_grad()
def save_memory(
    path: str | os.PathLike[str],
    state: Any,
    model: Backbone,
    *,
    caches: bool = False,
    identity: ModelIdentity | None = None,
    notes: Mapping[str, str | int] | None = None,
) -> None:
    """Writes the state's memory to `path`, whole or not at all, and over what stands there.

    With `caches` a loaded state goes on bit for bit as this one would; without, convolutions and
    attention begin anew, so that MAC no longer sees its open segment, and the file does not grow with
    a window or a segment. The model must be the one that made the state: a state names the settings
    of its mixers, and not their weights. `identity` is the model's, whose weights have not changed since.
    `notes` stand in the header, for `notes_of`.
    """
    path = Path(path)
    _check_model(model)
    check_place(path)
    tensors = checked_tensors(state, model, caches=caches)
    tensors = {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    table = {
        "schema": SCHEMA,
        **(identity or identity_of(model))._asdict(),
        "rows": len(next(iter(tensors.values()))),
        "caches": caches,
        "content": content_hash(tensors),
        **({} if notes is None else {"notes": dict(notes)}),
    }
    write_whole(path, save(tensors, {HEADER: json.dumps(table)}))


def checked_tensors(state: Any, model: Backbone, *, caches: bool) -> dict[str, Tensor]:
    """The tensors of a state that are kept; ValueError for what is no state of the model, or not finite."""
    tensors = named_tensors(state)
    rows = len(next(iter(tensors.values()), ()))
    if odd := _misfit(tensors, model, rows, caches=True):
        raise ValueError(f"state must be one of this model: {odd}.")
    if settings_of(state) != settings_of(model.fresh_state(1)):
        raise ValueError(
            "state must be one of this model: it comes from one with other settings (chunk_size, "
            "window and the rest). Save it with the model that it comes from."
        )
    if not caches:
        tensors = {name: tensors[name] for name in _memory_names(model)}
    if not any(x.is_floating_point() for x in tensors.values()):
        raise ValueError(
            f"state holds no memory to save, since the mixer is {model.config.mixer!r}: give "
            "caches=True to keep what it has cached."
        )
    for name, x in tensors.items():
        if not x.isfinite().all():
            raise ValueError(
                f"state.{name} must be finite to be kept: got NaN or infinity. Something that was "
                "read or a weight was not finite; go on from an earlier state."
            )
    return tensors


@torch.no_grad()
def load_memory(
    path: str | os.PathLike[str], model: Backbone, *, identity: ModelIdentity | None = None
) -> Any:
    """The state that `save_memory` wrote, on the model's device.

    ValueError where the file is damaged, is no memory file, or is not of this very model. `identity` is
    the model's, whose weights have not changed since.
    """
    path = Path(path)
    _check_model(model)
    table, tensors = _read(path)
    _check_made_by(path, table, identity or identity_of(model))
    rows, caches = table["rows"], table["caches"]
    if odd := _misfit(tensors, model, rows, caches):
        raise ValueError(f"{path} does not hold a state of this model: {odd}.")
    if table["content"] != content_hash(tensors):
        raise ValueError(f"{path} is damaged: its numbers are not those that were saved.")
    device = next(model.parameters()).device
    state = replace_tensors(
        model.fresh_state(rows), {name: x.to(device) for name, x in tensors.items()}
    )
    return state if caches else model.restart_caches(state)


def _check_made_by(path: Path, table: Mapping[str, Any], ours: ModelIdentity) -> None:
    again = "Load it into the model that it was saved from, or read the text again"
    if table["config"] != ours.config:
        raise ValueError(
            f"{path} is the memory of a model with another configuration, or of one that another "
            f"version of titans made. {again}."
        )
    if table["dtype"] != ours.dtype:
        raise ValueError(
            f"{path} is the memory of a model in {table['dtype']}: this one is in {ours.dtype}. "
            "Convert the model, or read the text again."
        )
    if table["weights"] != ours.weights:
        raise ValueError(
            f"{path} is the memory of another model, or of this one at another point of its "
            f"training. {again}."
        )


def _check_model(model: Any) -> None:
    """A memory is that of a whole stack, whose configuration the file names."""
    if isinstance(model, Backbone):
        return
    inner = isinstance(getattr(model, "backbone", None), Backbone)
    raise TypeError(
        f"model must be a Backbone: got {type(model).__name__}. Pass "
        + ("its `backbone`." if inner else "the Backbone whose state this is.")
    )


def check_place(path: Path) -> None:
    """Raises where no file can be written to `path`."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file for the memory.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: make it first.")


def notes_of(path: Path) -> dict[str, Any]:
    """The notes in a memory file's header, read without its numbers; none where there are none to read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            # No more is made room for than the file holds.
            header = json.loads(file.read(min(size, os.fstat(file.fileno()).st_size)))
        notes = json.loads(header["__metadata__"][HEADER])["notes"]
    except (OSError, KeyError, RecursionError, TypeError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def is_memory_file(path: Path) -> bool:
    """Whether a file begins as a memory file does, be it cut short."""
    with path.open("rb") as file:
        begin = file.read(64)
    return begin[8:].startswith(f'{{"__metadata__":{{"{HEADER}"'.encode())


def _memory_names(model: Backbone) -> list[str]:
    """The tensors of a state that go on, as they are, when caches begin anew."""
    state = model.fresh_state(1)
    after = named_tensors(model.restart_caches(state))
    return [name for name, x in named_tensors(state).items() if after.get(name) is x]


def _misfit(tensors: Mapping[str, Tensor], model: Backbone, rows: int, caches: bool) -> str | None:
    """The first tensor that does not stand in a state of the model, in words."""
    fresh = model.fresh_state(1)
    like, memory, grows = named_tensors(fresh), _memory_names(model), cache_names(fresh)
    if not caches:
        like = {name: like[name] for name in memory}
    lengths: dict[str, int] = {}
    for name in sorted(like.keys() | tensors.keys()):
        ours, theirs = like.get(name), tensors.get(name)
        if ours is None or theirs is None:
            return f"{name} is {'missing' if theirs is None else 'not known'}"
        shape = [rows, *ours.shape[1:]]
        if name in grows and theirs.ndim > 1:
            shape[1] = lengths.setdefault(name.rpartition(".")[0], theirs.shape[1])
        if list(theirs.shape) != shape:
            return f"{name} must have shape {shape}: got {list(theirs.shape)}"
        # Under autocast what is cached has the dtype of the layers, and not of the weights.
        free = name not in memory and ours.is_floating_point() and theirs.is_floating_point()
        if theirs.dtype != ours.dtype and not free:
            return f"{name} must be {ours.dtype}: got {theirs.dtype}"
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The table in the header and the tensors; ValueError where they are not of our making."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a memory file.")
    if not path.exists():
        raise FileNotFoundError(f"There is no memory file {path}.")
    # Read here: safetensors takes a file that cannot be opened for one that is not there.
    content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError:
        raise ValueError(
            f"{path} is no memory file of titans, or is cut short: give a file that "
            "`titans language read` or save_memory wrote."
        ) from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return _table(path, header.get("__metadata__")), tensors


def _table(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        table = json.loads((metadata or {})[HEADER])
        schema = table["schema"]
    except (KeyError, RecursionError, TypeError, ValueError):
        raise ValueError(f"{path} is no memory file of titans.") from None
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema version {schema!r}: this titans reads {SCHEMA}. Use the version of "
            "titans that wrote it."
        )
    kinds = {
        "config": str,
        "dtype": str,
        "weights": str,
        "rows": int,
        "caches": bool,
        "content": str,
    }
    if any(type(table.get(key)) is not kind for key, kind in kinds.items()) or table["rows"] < 1:
        raise ValueError(f"{path} is no memory file of titans: its header is not complete.")
    return table


def _config_hash(model: Backbone) -> str:
    return fingerprint(model.config, settings_of(model.fresh_state(1)))


def _dtype(model: Backbone) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _weights_hash(model: nn.Module) -> str:
    # Every byte: two models of one training may differ in a few rows of an embedding alone.
    return content_hash(dict(model.named_parameters()))


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, dtypes and numbers."""
    digest: Any = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu()
        digest.update(f"{name} {list(x.shape)} {x.dtype}\n".encode())
        digest.update(x.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
