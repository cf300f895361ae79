"""pandas in, pandas out: tables as data sets of series, and forecasts as a table.

A wide table has a column of stamps (or an index of them) and a column for each series. A long one has
the columns `item_id`, `timestamp` and `target`, under these names or others, and perhaps covariates.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titans_domains.timeseries.columns import Part, find_stamps, long_parts, numeric, wide_parts
from titans_domains.timeseries.frequency import infer_freq, old_names, on_grid, period_alias
from titans_domains.timeseries.series import as_float32

if TYPE_CHECKING:
    import pandas as pd


class SeriesSet:
    """A GluonTS data set with the frequency that its series have in common."""

    def __init__(self, entries: list[dict[str, Any]], freq: str) -> None:
        self.entries, self.freq = entries, freq

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def as_dataset(data: Any, **options: Any) -> Any:
    """A table or the path of a CSV file as a `SeriesSet`; a GluonTS data set as it is.

    `options` are those of `from_table`.
    """
    import pandas as pd

    if isinstance(data, str | Path):
        return from_table(read_csv(data), name=str(data), **options)
    if isinstance(data, pd.Series):
        data = data.to_frame(data.name if data.name is not None else "series-0")
    if isinstance(data, pd.DataFrame):
        return from_table(data, **options)
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"{given[0]} is for tables, and the data is a {type(data).__name__}.")
    return data


def read_csv(path: str | Path) -> pd.DataFrame:
    """The table of a CSV file; ValueError where it is none."""
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        # pandas fills all memory at a line that ends in a carriage return alone, before a blank.
        return pd.read_csv(
            io.StringIO(text_of(path), newline=None), float_precision="round_trip", low_memory=False
        )
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV table: {error}.") from None


def text_of(path: Path) -> str:
    """A file's text, perhaps compressed by gzip; ValueError where it is cut short or damaged."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is cut short or damaged: {error}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Weather stations write their degree signs in latin1, which takes any byte.
        return data.decode("latin1")


def from_table(
    table: pd.DataFrame,
    *,
    name: str = "The table",
    freq: str | None = None,
    usual_freq: str | None = None,
    item_id: str = "item_id",
    timestamp: str | None = None,
    target: str = "target",
    feat_dynamic_real: Sequence[str] = (),
    past_feat_dynamic_real: Sequence[str] = (),
    feat_static_real: Sequence[str] = (),
    feat_static_cat: Sequence[str] = (),
    future_length: int | None = None,
    ignored: Sequence[str] = (),
    channels: bool = False,
) -> SeriesSet:
    """The series of a table: a long one where it has a column `target`, and else a wide one.

    Stamps must ascend within a series; those that are missing become missing values. Covariates are
    columns of a long table, static ones in the first row of their series; a column that is neither named
    nor in `ignored` is refused. The last `future_length` rows of each series hold the future of
    `feat_dynamic_real` and nothing else: by default, where there is one, those after its last target.
    `usual_freq` is taken where no frequency can be inferred. `channels` takes a wide table as one series of
    several channels. Stamps with a time zone are read as UTC.
    """
    if table.empty:
        raise ValueError(f"{name} has no rows.")
    ignored = names_of(ignored)
    stamps, column = find_stamps(table, timestamp, name)
    if absent := [c for c in ignored if c not in table.columns]:
        raise ValueError(f"{name} has no column {absent[0]!r}, which was to be ignored.")
    table = table.drop(columns=[*([] if column is None else [column]), *ignored])
    fields = {
        "feat_dynamic_real": names_of(feat_dynamic_real),
        "past_feat_dynamic_real": names_of(past_feat_dynamic_real),
        "feat_static_real": names_of(feat_static_real),
        "feat_static_cat": names_of(feat_static_cat),
    }
    if target in table.columns:
        parts = long_parts(table, stamps, item_id, target, fields, name)
    else:
        parts = wide_parts(table, stamps, fields, channels, name)
    if freq is None:
        freq = common_freq(parts, usual_freq)
    freq = period_alias(freq)
    return SeriesSet([entry(*part, freq, fields, future_length) for part in parts], freq)


def common_freq(parts: list[Part], usual: str | None = None) -> str:
    """The frequency of the longest series; the others are held against it later."""
    item, stamps, *_ = max(parts, key=lambda part: len(part[1]))
    check_order(item, stamps)
    freq = infer_freq(stamps) or usual
    if freq is None:
        raise ValueError(
            f"No frequency can be inferred from the {len(stamps)} stamps of series {item!r}: give freq, "
            "such as freq='h'."
        )
    return freq


def check_order(item: str, stamps: pd.DatetimeIndex) -> None:
    """ValueError for the first row whose stamp does not come after the one before."""
    steps = np.diff(stamps.asi8)
    if (steps > 0).all():
        return
    row = int((steps <= 0).argmax()) + 1
    what = "has the stamp of the row before again" if steps[row - 1] == 0 else (
        f"comes before the row above it ({stamps[row - 1]})"
    )  # fmt: skip
    raise ValueError(
        f"series {item!r}, row {row + 1} ({stamps[row]}) {what}: sort the rows and keep one of each stamp."
    )


def entry(
    item: str,
    stamps: pd.DatetimeIndex,
    columns: pd.DataFrame,
    targets: list[str],
    freq: str,
    fields: dict[str, list[str]],
    future_length: int | None,
) -> dict[str, Any]:
    """One series as GluonTS has it, from its first value on.

    In float32, whatever the table has: most of GluonTS's own networks fail on anything else.
    """
    import pandas as pd

    check_order(item, stamps)
    periods = on_grid(stamps, freq, f"series {item!r}")
    used = [*targets, *fields["feat_dynamic_real"], *fields["past_feat_dynamic_real"]]
    numbers = {c: numeric(columns[c], f"series {item!r}", stamps) for c in used}
    with old_names():
        whole = pd.period_range(periods[0], periods[-1], freq=periods.freq)
        table = pd.DataFrame(numbers, index=periods).reindex(whole)
    observed = table[targets].notna().any(axis=1).to_numpy()
    if future_length is None:
        future_length = int(observed[::-1].argmax()) if fields["feat_dynamic_real"] else 0
    steps = len(table) - future_length
    if steps < 1:
        raise ValueError(
            f"series {item!r} has {len(table)} rows, and the last future_length = {future_length} hold no "
            "target: give more of it."
        )
    first = int(observed[:steps].argmax())
    values = as_float32(table[targets]).T[:, first:steps]
    found: dict[str, Any] = {
        "start": whole[first],
        "target": values if len(targets) > 1 else values[0],
        "item_id": item,
        "info": {"channels": targets} if len(targets) > 1 else None,
    }
    if names := fields["feat_dynamic_real"]:
        found["feat_dynamic_real"] = as_float32(table[names]).T[:, first:]
    if names := fields["past_feat_dynamic_real"]:
        found["past_feat_dynamic_real"] = as_float32(table[names]).T[:, first:steps]
    for field in ("feat_static_real", "feat_static_cat"):
        if fields[field]:
            at = [numeric(columns[c].iloc[:1], f"series {item!r}", stamps) for c in fields[field]]
            found[field] = np.concatenate(at)
    return found


def names_of(columns: str | Sequence[str]) -> list[str]:
    """Column names; one alone may stand without a list."""
    return [columns] if isinstance(columns, str) else list(columns)


def checked_quantiles(quantiles: Any) -> list[float]:
    """Numbers between 0 and 1, each once; ValueError for anything else."""
    try:
        levels = [] if isinstance(quantiles, str) else [float(level) for level in quantiles]
    except (TypeError, ValueError):
        levels = []
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(
            f"quantiles must be a list of numbers between 0 and 1, like [0.1, 0.5, 0.9]: got {quantiles!r}."
        )
    if len(set(levels)) < len(levels):
        raise ValueError(f"quantiles must hold each number once: got {quantiles!r}.")
    return levels


def to_table(
    forecasts: Iterable[Any], quantiles: Sequence[float] = (0.1, 0.5, 0.9)
) -> pd.DataFrame:
    """Forecasts as a long table: item_id, timestamp (the start of its period), mean, quantiles.

    The mean is the median where a forecast knows quantiles alone.
    """
    import pandas as pd

    parts = []
    levels = checked_quantiles(quantiles)
    for number, forecast in enumerate(forecasts):
        with old_names():
            stamps = forecast.index.to_timestamp()
        item = forecast.item_id if forecast.item_id is not None else f"series-{number}"
        values, mean = quantiles_of(forecast, levels), mean_of(forecast)
        columns = {"mean": mean} | dict(zip(map(str, levels), values, strict=True))
        names = (forecast.info or {}).get("channels") if isinstance(forecast.info, dict) else None
        if mean.ndim == 1:
            parts.append(pd.DataFrame({"item_id": item, "timestamp": stamps, **columns}))
            continue
        for channel in range(mean.shape[1]):
            of = names[channel] if names else f"{item}[{channel}]"
            own = {key: value[:, channel] for key, value in columns.items()}
            parts.append(pd.DataFrame({"item_id": of, "timestamp": stamps, **own}))
    if not parts:
        return pd.DataFrame(columns=["item_id", "timestamp", "mean", *map(str, quantiles)])
    return pd.concat(parts, ignore_index=True)


def mean_of(forecast: Any) -> np.ndarray:
    """The mean [H] or [H, C]; of quantiles alone the median, which GluonTS would print a line about."""
    keys = getattr(forecast, "forecast_keys", ("mean",))
    return np.asarray(forecast.mean if "mean" in keys else forecast.quantile(0.5))


def quantiles_of(forecast: Any, levels: Sequence[float]) -> np.ndarray:
    """All quantiles at once [Q, H] or [Q, H, C]: GluonTS inverts a distribution for each of them."""
    distribution = getattr(forecast, "distribution", None)
    if distribution is None or not levels:
        return np.array([forecast.quantile(level) for level in levels])
    import torch

    at = torch.tensor(levels, device=distribution.mean.device)
    return distribution.icdf(at.reshape(-1, *[1] * distribution.mean.ndim)).cpu().numpy()
