"""What a carrying predictor holds besides its model, in the same folder.

streams.json           each series: its name, the stamp of its next row, how far it was read
streams.safetensors    rows that wait, scales, last windows
streams.memory         the backbone's states, joined: a memory file of this very model
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from titans_core import join, load_memory, save_memory, split
from titans_core.files import load_tensors, write_tensors
from titans_domains.checkpoints import SCHEMA
from titans_domains.timeseries.carrying import CarryingPredictor
from titans_domains.timeseries.frequency import old_names, period_alias
from titans_domains.timeseries.network import ForecastState
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.saved import load_predictor, settings, write_folder, write_predictor
from titans_domains.timeseries.series import Arrays, SeriesSpec
from titans_domains.timeseries.streams import Stream

STREAMS, TABLES, MEMORY = "streams.json", "streams.safetensors", "streams.memory"


def save_carrying(carrying: CarryingPredictor, path: Path, *, force: bool) -> None:
    def fill(folder: Path) -> None:
        write_predictor(carrying.predictor, folder)
        write_streams(carrying, folder)

    write_folder(path, fill, force=force)


def write_streams(carrying: CarryingPredictor, folder: Path) -> None:
    streams = list(carrying.streams.values())
    table = {
        "schema": SCHEMA, "frozen": carrying.frozen, "streams": [described(s) for s in streams],
    }  # fmt: skip
    (folder / STREAMS).write_text(json.dumps(table, indent=1) + "\n")
    tensors = {
        f"{number}.{name}": x for number, s in enumerate(streams) for name, x in stored(s).items()
    }
    write_tensors(tensors, folder / TABLES)
    read = [stream.state for stream in streams if stream.state is not None]
    if read:
        backbone = carrying.predictor.module.model.network.backbone
        save_memory(folder / MEMORY, join(read).backbone, backbone, caches=True)


def described(stream: Stream) -> dict[str, Any]:
    if not isinstance(stream.item_id, str | int):
        raise ValueError(
            f"A series must be called by text or a whole number to be saved: got {stream.item_id!r}."
        )
    channels = (stream.info or {}).get("channels")
    return {
        "item_id": stream.item_id,
        "following": str(stream.following.to_timestamp()),
        "freq": period_alias(stream.following.freqstr),
        "count": stream.count,
        "written": stream.written,
        "begun": stream.loc is not None,
        "read": stream.state is not None,
        "channels": channels,
    }


def stored(stream: Stream) -> dict[str, torch.Tensor]:
    """The tensors of a stream but for the backbone's state."""
    found = {name: torch.from_numpy(x.copy()) for name, x in stream.rows._asdict().items()}
    if stream.future is not None:
        found["future"] = torch.from_numpy(stream.future.copy())
    if stream.loc is not None and stream.scale is not None:
        found |= {"loc": stream.loc.cpu().contiguous(), "scale": stream.scale.cpu().contiguous()}
    if stream.state is not None:
        found["values"] = stream.state.values.cpu().contiguous()
        found["observed"] = stream.state.observed.cpu().contiguous()
    return found


def load_carrying(path: Path, *, device: str) -> CarryingPredictor:
    predictor = load_predictor(path, device=device)
    table = settings(path, STREAMS)
    carrying = CarryingPredictor(predictor)
    carrying.frozen = table.get("frozen") is True
    told = table.get("streams")
    if not isinstance(told, list):
        raise ValueError(f"{path / STREAMS} is damaged: it has no list of streams.")
    tensors = load_tensors(path / TABLES)
    states = load_states(predictor, path, told)
    for number, one in enumerate(told):
        parts = {
            name.split(".", 1)[1]: x
            for name, x in tensors.items()
            if name.split(".")[0] == str(number)
        }
        try:
            stream = restored(one, parts, states, predictor)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise ValueError(
                f"{path / STREAMS} is damaged at stream {number + 1}: {type(error).__name__}: {error}."
            ) from None
        carrying.streams[stream.item_id] = stream
    return carrying


def load_states(predictor: TitansPredictor, path: Path, told: list[Any]) -> Any:
    """The backbone's state of each stream that has one, in their order."""
    count = sum(isinstance(one, dict) and one.get("read") is True for one in told)
    if not count:
        return iter(())
    rows = split(load_memory(path / MEMORY, predictor.module.model.network.backbone))
    channels = predictor.spec.channels
    if len(rows) != count * channels:
        raise ValueError(
            f"{path / MEMORY} has {len(rows)} rows for {count} streams: it is another's."
        )
    return iter([join(rows[i : i + channels]) for i in range(0, len(rows), channels)])


def restored(
    told: Mapping[str, Any],
    parts: Mapping[str, torch.Tensor],
    states: Any,
    predictor: TitansPredictor,
) -> Stream:
    """A stream from its description and tensors; an exception where one does not fit."""
    device = predictor.device
    with old_names():
        following = pd.Period(told["following"], freq=period_alias(told["freq"]))
    item, begun, read = told["item_id"], told["begun"], told["read"]
    if type(item) not in (str, int) or (begun, read) not in (
        (False, False),
        (True, False),
        (True, True),
    ):
        raise ValueError(f"item_id, begun and read are {item!r}, {begun!r} and {read!r}")
    check_parts(parts, predictor.spec, begun=begun, read=read)
    rows = Arrays(*(parts[name].numpy() for name in Arrays._fields))
    count, written = told["count"], told["written"]
    if (
        type(count) is not int
        or type(written) is not int
        or written < 0
        or not 1 <= count - written <= len(rows.target)
    ):
        raise ValueError(f"count and written are {count!r} and {written!r}")
    state = None
    if read:
        state = ForecastState(
            next(states), parts["values"].to(device), parts["observed"].to(device)
        )
    channels = told["channels"]
    return Stream(
        item_id=item, following=following, rows=rows, count=count, written=written,
        future=parts["future"].numpy() if "future" in parts else None,
        loc=parts["loc"] if begun else None,
        scale=parts["scale"] if begun else None,
        state=state,
        info=None if channels is None else {"channels": [str(c) for c in channels]},
    )  # fmt: skip


def check_parts(
    parts: Mapping[str, torch.Tensor], spec: SeriesSpec, *, begun: bool, read: bool
) -> None:
    """ValueError for a tensor of a stream that is absent, or not as this model has it."""
    length = len(parts["target"])
    known, real = spec.num_feat_dynamic_real, torch.float32
    window = (spec.channels, spec.context_length)
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "target": ((length, spec.channels), real),
        "lags": ((length, len(spec.lags_seq)), real),
        "known": ((length, spec.known), real),
        "past_only": ((length, spec.num_past_feat_dynamic_real), real),
        "static_real": ((spec.num_feat_static_real,), real),
        "static_cat": ((len(spec.cardinality),), torch.int64),
    }
    if "future" in parts:
        wanted["future"] = ((len(parts["future"]), known), real)
    if begun:
        wanted |= dict.fromkeys(("loc", "scale"), ((1, 1, spec.channels), real))
    if read:
        wanted |= {"values": (window, real), "observed": (window, torch.bool)}
    for name, (shape, kind) in wanted.items():
        found = parts[name]
        if tuple(found.shape) != shape or found.dtype != kind:
            raise ValueError(
                f"{name} must have shape {list(shape)} in {kind}, got {list(found.shape)} in "
                f"{found.dtype}"
            )
    for value, size in zip(parts["static_cat"].tolist(), spec.cardinality, strict=True):
        if not 0 <= value < size:
            raise ValueError(f"a static category must be below {size}, got {value}")
