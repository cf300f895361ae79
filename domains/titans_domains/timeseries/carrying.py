"""A predictor that reads series as they grow, and remembers what it read.

L steps of a context, H of the horizon, C channels, F features.

A stream is read patch by patch from its first row on. Its scale is that of its first L rows, for good:
until they are there, forecasts are those of a window. Rows that are constant have no scale: a stream begins
with the first context of L rows in whose first half every channel varies. The last patch, whole or not,
waits as raw values: a forecast reads it on a copy of the state, so that it is seen but not yet written.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from titans_core import join, split, state_bytes
from titans_domains.timeseries.checks import check_entry, check_recent, name_of
from titans_domains.timeseries.frames import as_dataset, to_table
from titans_domains.timeseries.frequency import old_names
from titans_domains.timeseries.outputs import QUANTILES
from titans_domains.timeseries.scaling import has_scale
from titans_domains.timeseries.series import SeriesSpec, arrays, lagged, time_features
from titans_domains.timeseries.streams import Stream, alike, begun, is_table, joined_on
from titans_domains.timeseries.transform import window_inputs

if TYPE_CHECKING:
    import pandas as pd
    from gluonts.model.forecast import Forecast

    from titans_domains.timeseries.predictor import TitansPredictor

PIECE = 128
"""Patches that are read at a time. It changes no number: a stream may be cut anywhere."""


class CarryingPredictor:
    """`update` with new rows, `predict` what comes after the last ones; the weights stay as they are.

    Series are told apart by their item_id, and each may begin and grow on its own. One that is constant,
    or has a channel that is, is forecast from its last window alone until that varies. Train with
    `TitansEstimator(carry=True)`, so that the model knows streams longer than one context.
    """

    def __init__(self, predictor: TitansPredictor) -> None:
        config = predictor.module.model.config.model
        if not config.bounded:
            raise ValueError(
                "A carried state must not grow: train with a mixer that has a memory, or give "
                "attention.window."
            )
        self.predictor = predictor
        self.streams: dict[Hashable, Stream] = {}
        self.frozen = False

    @property
    def spec(self) -> SeriesSpec:
        return self.predictor.spec

    def freeze(self, frozen: bool = True) -> None:
        """Whether new rows leave the memory as it is; they are seen as the latest window all the same."""
        self.frozen = frozen

    def state_bytes(self) -> int:
        """Bytes of all that is carried, rows that wait among them."""
        tables = sum(x.nbytes for stream in self.streams.values() for x in stream.rows)
        return tables + sum(
            state_bytes(stream.state) for stream in self.streams.values() if stream.state
        )

    @torch.no_grad()
    def update(self, data: Any, **options: Any) -> None:
        """Reads the rows that come after those read so far; the first call begins the series.

        Takes what `TitansPredictor.forecast` takes, with new rows alone. Steps between the last row and
        the first new one count as missing. Where the model has `feat_dynamic_real`, it may reach beyond
        the target: `predict` needs it for all of its horizon.
        """
        if self.streams and "freq" not in options and is_table(data):
            # One row has no frequency of its own.
            options["freq"] = next(iter(self.streams.values())).following.freqstr
        entries = list(as_dataset(data, **options))
        if not entries:
            raise ValueError("update needs the rows of at least one series: got none.")
        grown: dict[Hashable, Stream] = {}
        for number, entry in enumerate(entries):
            item = entry.get("item_id", number)
            if item in grown:
                raise ValueError(f"{name_of(entry, number)} is there twice: give its rows once.")
            grown[item] = self._grown(self.streams.get(item), entry, number)
        self._write(list(grown.values()))
        # Kept only now, so that a mistake in one series leaves all as they were.
        self.streams |= grown

    def _grown(self, stream: Stream | None, entry: Any, number: int) -> Stream:
        """A copy of the stream, or a new one, with the rows of an entry."""
        spec, name = self.spec, name_of(entry, number)
        if stream is None:
            check_entry(entry, spec, number, train=False, more=True)
            stream, entry = begun(entry, number, name)
        entry = joined_on(stream, entry, name)
        check_entry(entry, spec, number, train=False, more=True)
        new = arrays(entry, spec)
        target = np.concatenate([stream.rows.target, new.target]) if stream.count else new.target
        new = new._replace(lags=lagged(target, spec.lags_seq)[-len(new.target) :])
        rows = stream.rows.followed(new) if stream.count else new
        own = entry.get("feat_dynamic_real")
        with old_names():
            following = stream.following + len(new.target)
        return replace(
            stream,
            rows=rows,
            count=stream.count + len(new.target),
            following=following,
            future=None if own is None else np.asarray(own, np.float32).T[len(new.target) :],
        )

    def _write(self, streams: Sequence[Stream]) -> None:
        """Reads all whole patches but the last; the streams are the caller's own copies."""
        config = self.predictor.module.model.config
        for stream in streams:
            if stream.loc is None and stream.waiting >= config.context_length:
                self._begin(stream)
        ready = [stream for stream in streams if stream.loc is not None]
        while ready := [s for s in ready if self._due(s)]:
            for group in alike(ready, lambda s: (self._due(s), s.state is None)):
                self._write_group(group, self._due(group[0]))
        for stream in streams:
            keep = config.context_length if stream.loc is None else config.patch_len
            stream.rows = stream.rows.last(keep + max(self.spec.lags_seq, default=0))

    def _begin(self, stream: Stream) -> None:
        """Fixes the scale by the first context that has one; rows before it are passed over."""
        config = self.predictor.module.model.config
        length = config.context_length
        rows = torch.from_numpy(stream.rows.target[-stream.waiting :])
        contexts = stream.waiting - length + 1
        # Half of it: a scale of one change at the end would be too small for what follows.
        found = has_scale(rows, max(min(2, length), length // 2), config.scaling)[:contexts]
        if found.any():
            first = int(found.int().argmax())
            past = rows[None, first : first + length]
            stream.loc, stream.scale = self._network.scale(past.nan_to_num(), ~past.isnan())
            stream.written += first
        else:
            # The last row waits, whatever the length.
            stream.written += min(contexts, stream.waiting - 1)

    def _due(self, stream: Stream) -> int:
        """Rows to write next: up to a boundary of the grid before the last row."""
        config = self.predictor.module.model.config
        size = config.patch_len
        first = (config.context_length - 1) % size + 1
        start = 0 if stream.state is not None else first
        patches = (stream.waiting - start - 1) // size
        if stream.state is None and stream.waiting <= first:
            return 0
        return start + size * min(max(0, patches), PIECE)

    @property
    def _network(self) -> Any:
        return self.predictor.module.model.network.eval()

    def _write_group(self, group: Sequence[Stream], steps: int) -> None:
        config = self.predictor.module.model.config
        patches = -(-steps // config.patch_len)
        ahead = (patches - 1) * config.patch_len + config.prediction_length
        # What the outputs would need of the future, and nothing reads them here.
        known = self._tensor([np.zeros((ahead, self.spec.known), np.float32) for _ in group])
        _, state = self._read(group, steps, known)
        for stream, part in zip(group, self._parted(state), strict=True):
            stream.state, stream.written = part, stream.written + steps

    def _read(self, group: Sequence[Stream], steps: int, known: Tensor) -> tuple[Tensor, Any]:
        """Reads the next rows of streams that are at the same stage."""
        parts = [stream.rows for stream in group]
        cuts = [slice(len(s.rows.target) - s.waiting, None) for s in group]
        past, lags, seen, only = (
            self._tensor([p[at][cut][:steps] for p, cut in zip(parts, cuts, strict=True)])
            for at in range(4)
        )
        features = torch.cat([lags, seen, only], -1)
        states = [stream.state for stream in group]
        static = {
            name: self._tensor([getattr(p, name) for p in parts])
            for name in ("static_real", "static_cat")
        }
        return self._network.read(
            past.nan_to_num(),
            ~past.isnan(),
            loc=torch.cat([s.loc for s in group]).to(past.device),
            scale=torch.cat([s.scale for s in group]).to(past.device),
            state=None if states[0] is None else join(states),
            past_features=features if features.shape[-1] else None,
            future_features=known if known.shape[-1] else None,
            **{name: x if x.shape[-1] else None for name, x in static.items()},
            write=not self.frozen,
        )

    def _tensor(self, tables: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(tables)).to(self.predictor.device)

    def _parted(self, state: Any) -> list[Any]:
        """The state of a group as one for each stream."""
        rows, channels = split(state), self.spec.channels
        return [join(rows[i : i + channels]) for i in range(0, len(rows), channels)]

    @torch.no_grad()
    def predict(self, items: Iterable[Hashable] | None = None) -> list[Forecast]:
        """GluonTS forecasts of the steps after the last row of each series, or of those named."""
        if not self.streams:
            raise ValueError("There is nothing to forecast yet: give rows to update first.")
        chosen = list(self.streams) if items is None else list(items)
        for item in chosen:
            if item not in self.streams:
                raise ValueError(f"There is no series {item!r}: update has seen none of its rows.")
        streams = [self.streams[item] for item in chosen]
        found: dict[int, Forecast] = {}
        for group in alike(streams, lambda s: (s.loc is None, s.waiting, s.state is None)):
            for stream, forecast in zip(group, self._forecasts(group), strict=True):
                found[id(stream)] = forecast
        return [found[id(stream)] for stream in streams]

    def forecast(self, *, quantiles: Sequence[float] = QUANTILES) -> pd.DataFrame:
        """What `predict` gives, as a table of item_id, timestamp, mean and quantiles."""
        return to_table(self.predict(), quantiles)

    def _forecasts(self, group: Sequence[Stream]) -> Iterator[Forecast]:
        model = self.predictor.module.model.eval()
        known = [self._known(stream) for stream in group]
        if group[0].loc is None:
            # Not yet a context: as any short series.
            for number, stream in enumerate(group):
                told = {"target": stream.rows.target.T, "item_id": stream.item_id}
                check_recent(told, self.spec, name_of(told, number))
            inputs = [
                window_inputs(s.rows._replace(known=np.concatenate([s.rows.known, k])), self.spec)
                for s, k in zip(group, known, strict=True)
            ]
            outputs = model(**{name: self._tensor([x[name] for x in inputs]) for name in inputs[0]})
        else:
            numbers, _ = self._read(group, group[0].waiting, self._tensor(known))
            loc, scale = (torch.cat([getattr(s, n) for s in group]) for n in ("loc", "scale"))
            device = numbers.device
            outputs = model.shaped(
                numbers[:, -1], loc.to(device), scale.to(device), self.spec.channels > 1
            )
        batch = {
            "forecast_start": [s.following for s in group],
            "item_id": [s.item_id for s in group],
            "info": [s.info for s in group],
        }
        return self.predictor.forecast_generator(
            inference_data_loader=[batch],
            prediction_net=lambda **_: outputs,
            input_names=[],
            output_transform=None,
            num_samples=None,
        )

    def _known(self, stream: Stream) -> np.ndarray:
        """The known features of the horizon [H, F]; ValueError where the data's own end too soon."""
        spec = self.spec
        stamps = time_features(stream.following, spec.prediction_length, spec)
        if not spec.num_feat_dynamic_real:
            return stamps
        have = 0 if stream.future is None else len(stream.future)
        if have < spec.prediction_length:
            raise ValueError(
                f"series {stream.item_id!r} needs 'feat_dynamic_real' for {spec.prediction_length} steps "
                f"after its last row, and has it for {have}: give it with the last update."
            )
        assert stream.future is not None
        return np.concatenate([stamps, stream.future[: spec.prediction_length]], 1)

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Writes the model and all that is carried into a folder, whole or not at all."""
        from titans_domains.timeseries.saved_streams import save_carrying

        save_carrying(self, Path(path), force=force)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str = "auto") -> CarryingPredictor:
        """What `save` wrote, going on bit for bit; nothing in the folder is run."""
        from titans_domains.timeseries.saved_streams import load_carrying

        return load_carrying(Path(path), device=device)
