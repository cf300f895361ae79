"""The columns of a table: where its stamps are, which series it holds, and their numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

STAMPS = ("timestamp", "date", "datetime", "time", "ds")
"""Names of a column of stamps, in any case; else it is the first one."""


class UnknownColumnError(ValueError):
    """A long table has a column of which nothing says what it is."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


Part = tuple[str, "pd.DatetimeIndex", "pd.DataFrame", list[str]]
"""item_id, stamps, columns and the names of those that are the target."""


def find_stamps(
    table: pd.DataFrame, column: str | None, name: str
) -> tuple[pd.DatetimeIndex, str | None]:
    """The stamps of all rows, and the column that they stand in (None: the index)."""
    import pandas as pd

    if column is None and isinstance(table.index, pd.PeriodIndex):
        return table.index.to_timestamp(), None
    if column is None and isinstance(table.index, pd.DatetimeIndex):
        return naive(table.index), None
    if column is None:
        known = [c for c in table.columns if str(c).lower() in STAMPS]
        column = known[0] if known else table.columns[0]
    if column not in table.columns:
        raise ValueError(
            f"{name} has no column {column!r}: there are {', '.join(map(str, table.columns[:20]))}."
        )
    values = table[column]
    if pd.api.types.is_numeric_dtype(values):
        raise ValueError(
            f"{name} must have stamps such as 2024-01-31 13:00 in column {column!r}: got the number "
            f"{values.iloc[0]}."
        )
    with warnings.catch_warnings():
        # That stamps are of several formats, or of none, is found out below.
        warnings.filterwarnings("ignore", "Could not infer format", UserWarning)
        warnings.filterwarnings("ignore", ".*mixed time zones", FutureWarning)
        stamps = pd.to_datetime(values, errors="coerce", utc=has_zone(values))
    if stamps.dtype == object:
        raise ValueError(
            f"{name} must have stamps of one time zone in column {column!r}, or of none: it has several."
        )
    if stamps.isna().any():
        row = int(stamps.isna().to_numpy().argmax())
        raise ValueError(
            f"{name}, row {row + 1}: column {column!r} must hold a stamp such as 2024-01-31 13:00: got "
            f"{values.iloc[row]!r}."
        )
    return naive(pd.DatetimeIndex(stamps)), str(column)


def has_zone(values: pd.Series) -> bool:
    text = str(values.iloc[0])
    return text.endswith("Z") or "+" in text[10:] or "-" in text[10:]


def naive(stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
    return stamps if stamps.tz is None else stamps.tz_convert("UTC").tz_localize(None)


def long_parts(
    table: pd.DataFrame,
    stamps: pd.DatetimeIndex,
    item_id: str,
    target: str,
    fields: dict[str, list[str]],
    name: str,
) -> list[Part]:
    wanted = [column for columns in fields.values() for column in columns]
    if missing := [column for column in wanted if column not in table.columns]:
        raise ValueError(f"{name} has no column {missing[0]!r}, which was named as a covariate.")
    if extra := [str(c) for c in table.columns if c not in (item_id, target, *wanted)]:
        raise UnknownColumnError(
            f"{name} is a long table, since it has a column {target!r}, and nothing says what its column "
            f"{extra[0]!r} is: name it as a covariate or as ignored, or rename {target!r} where every "
            "column is a series.",
            extra[0],
        )
    if item_id not in table.columns:
        return [("series-0", stamps, table[[target, *wanted]], [target])]
    items = table[item_id].to_numpy()
    if table[item_id].isna().any():
        row = int(table[item_id].isna().to_numpy().argmax())
        raise ValueError(f"{name}, row {row + 1}: column {item_id!r} is empty.")
    places = table.groupby(item_id, sort=False, observed=True).indices
    order = dict.fromkeys(items)
    columns = table[[target, *wanted]]
    return [(str(i), stamps[places[i]], columns.iloc[places[i]], [target]) for i in order]


def wide_parts(
    table: pd.DataFrame,
    stamps: pd.DatetimeIndex,
    fields: dict[str, list[str]],
    channels: bool,
    name: str,
) -> list[Part]:
    if any(fields.values()):
        raise ValueError(
            f"{name} is a wide table, a column for each series, and covariates need a long one: with "
            "the columns item_id, timestamp, target and the covariates."
        )
    if not len(table.columns):
        raise ValueError(f"{name} has a column of stamps and no other: there is no series in it.")
    if twice := [c for c in table.columns if list(table.columns).count(c) > 1]:
        raise ValueError(
            f"{name} has two columns {str(twice[0])!r}: give each series its own name."
        )
    names = [str(c) for c in table.columns]
    table = table.set_axis(names, axis=1)
    if channels:
        return [(Path(name).stem if name != "The table" else "series-0", stamps, table, names)]
    return [(column, stamps, table[[column]], [column]) for column in names]


def numeric(column: pd.Series, name: str, stamps: pd.DatetimeIndex) -> np.ndarray:
    """A column as float64; ValueError for the first row that holds something else, or infinity."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    bad = (np.isnan(values) & column.notna().to_numpy()) | np.isinf(values)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{name}, row {row + 1} ({stamps[row]}): column {str(column.name)!r} must hold a finite number "
            f"or nothing: got {column.iloc[row]!r}."
        )
    return values
