"""Attached memories in a file beside the host's, without the host's weights.

One safetensors file, so that it is written whole or not at all. Configuration, layers and what is said
of the host stand in its header as JSON.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from titans_core.attached.attaching import (
    Train,
    attachment_of,
    build,
    check_free,
    check_layers,
    insert,
)
from titans_core.attached.host import Host, host_of
from titans_core.attached.layer import AttachedMemory
from titans_core.attention import AttentionConfig
from titans_core.files import write_whole
from titans_core.hybrids import HybridConfig
from titans_core.memory import MemoryConfig
from titans_core.memory_file import content_hash
from titans_core.mixers import BackboneConfig
from titans_core.segment_memory import SegmentConfig
from titans_core.systems import SystemConfig

FILE = "titans_memory.safetensors"
HEADER = "titans_attached"
SCHEMA = 1
PARTS = {
    "memory": MemoryConfig,
    "attention": AttentionConfig,
    "hybrid": HybridConfig,
    "system": SystemConfig,
    "segments": SegmentConfig,
}


def save_attached(model: Any, folder: str | os.PathLike[str]) -> None:
    """Writes what was added to a file in the folder, over what an earlier call wrote there."""
    ours, folder = attachment_of(model), Path(folder)
    tensors = _tensors(ours.memories)
    for name, x in tensors.items():
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite to be saved: got NaN or infinity.")
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "schema": SCHEMA,
        "host": _described(ours.host),
        "layers": ours.layers,
        "config": dataclasses.asdict(ours.config),
        "content": content_hash(tensors),
    }
    write_whole(folder / FILE, save(tensors, {HEADER: json.dumps(table)}))


def load_attached(model: Any, folder: str | os.PathLike[str], *, train: Train = "added") -> Any:
    """The model, with what `save_attached` wrote attached to it.

    ValueError, and the model as it was, where the file is damaged or of another host.
    """
    path = Path(folder) / FILE
    host = host_of(model)
    check_free(model)
    if train not in ("added", "all"):
        raise ValueError(f"train must be 'added' or 'all': got {train!r}.")
    table, tensors = _read(path)
    if (theirs := table["host"]) != (ours := _described(host)):
        raise ValueError(
            f"{path} belongs to another host, {_words(theirs)}: this model is {_words(ours)}."
        )
    config, layers = _configuration(path, table, host)
    with torch.device("meta"):
        planned = nn.ModuleList(AttachedMemory(config.layer(n)) for n in range(len(layers)))
    _check_tensors(path, tensors, dict(planned.state_dict()))
    if table["content"] != content_hash(tensors):
        raise ValueError(f"{path} is damaged: its numbers are not those that were saved.")
    memories = build(host, config, layers)
    nn.ModuleList(memories).load_state_dict(tensors)
    insert(model, host, config, layers, memories, train)
    return model


def _tensors(memories: list[AttachedMemory]) -> dict[str, Tensor]:
    state = nn.ModuleList(memories).state_dict()
    return {name: x.detach().cpu().contiguous() for name, x in state.items()}


def _described(host: Host) -> dict[str, Any]:
    return {"kind": host.kind, "width": host.dim, "layers": len(host.layers)}


def _words(host: Any) -> str:
    table = host if isinstance(host, dict) else {}
    return f"{table.get('kind')} of width {table.get('width')} with {table.get('layers')} layers"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The table in the header and the tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: give a folder that save_attached wrote to.")
    # Read here: safetensors takes a file that cannot be opened for one that is not there.
    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        table = json.loads(header["__metadata__"][HEADER])
        schema = table["schema"]
    except (SafetensorError, KeyError, RecursionError, TypeError, ValueError):
        raise ValueError(
            f"{path} is cut short or is no file of save_attached: save the memory again."
        ) from None
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema version {schema!r}: this titans reads {SCHEMA}. Use the version of "
            "titans that wrote it."
        )
    kinds = {"host": dict, "layers": list, "config": dict, "content": str}
    if any(type(table.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"{path} is damaged: its header is not complete.")
    return table, tensors


def _configuration(
    path: Path, table: dict[str, Any], host: Host
) -> tuple[BackboneConfig, tuple[int, ...]]:
    try:
        parts = {name: kind(**table["config"][name]) for name, kind in PARTS.items()}
        config = BackboneConfig(**{**table["config"], **parts})
        layers = check_layers(host, table["layers"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has settings that this titans does not know: {error}. Use the version of titans "
            "that wrote it."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if (config.dim, config.num_layers) != (host.dim, len(layers)):
        raise ValueError(
            f"{path} is damaged: its memory is {config.dim} wide in {config.num_layers} layers, and "
            f"the host {host.dim} in {len(layers)}."
        )
    return config, layers


def _check_tensors(path: Path, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape:
            there, here = (None if x is None else list(x.shape) for x in (b, a))
            raise ValueError(
                f"{path} is damaged: {name} is {there or 'absent'} there, {here or 'absent'} in its "
                "configuration."
            )
        if not b.is_floating_point():
            raise ValueError(f"{path} is damaged: {name} is {b.dtype} there.")
