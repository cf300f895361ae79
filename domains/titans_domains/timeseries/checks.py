"""What a series must be before a model reads it; a mistake is named by its series and its row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from titans_domains.timeseries.frequency import period_alias
from titans_domains.timeseries.series import SeriesSpec, as_float32

DYNAMIC = {
    "feat_dynamic_real": "num_feat_dynamic_real",
    "past_feat_dynamic_real": "num_past_feat_dynamic_real",
}
UNREAD = ("feat_dynamic_cat", "past_feat_dynamic_cat", "past_feat_dynamic")


def name_of(entry: Mapping[str, Any], number: int) -> str:
    """How messages call a series: by its item_id, and else by its place in the data."""
    item = entry.get("item_id")
    return f"series {number + 1}" if item is None else f"series {item!r}"


def check_all(entries: Iterable[Mapping[str, Any]], spec: SeriesSpec, *, train: bool) -> int:
    """Checks a whole data set; the number of its series."""
    number = -1
    for number, entry in enumerate(entries):
        check_entry(entry, spec, number, train=train)
    if number < 0:
        raise ValueError("The data must hold at least one series: got none.")
    return number + 1


def check_entry(
    entry: Mapping[str, Any], spec: SeriesSpec, number: int, *, train: bool, more: bool = False
) -> None:
    """ValueError for a series that cannot be trained on, or forecast.

    `more` is for rows that go on with a series: they may all be missing, and bring no future with them.
    """
    name = name_of(entry, number)
    steps = check_target(entry, spec, name, blank=more)
    if not train and not more:
        check_recent(entry, spec, name)
    check_start(entry, spec, name)
    if train and steps <= spec.prediction_length:
        raise ValueError(
            f"{name} has {steps} rows, and training needs at least prediction_length + 1 = "
            f"{spec.prediction_length + 1}: give more of it, or leave it out."
        )
    for field, argument in DYNAMIC.items():
        future = 0 if train or more or field != "feat_dynamic_real" else spec.prediction_length
        check_dynamic(entry, field, argument, spec, name, steps, future)
    check_static(entry, spec, name)
    for field in UNREAD:
        if entry.get(field) is not None and np.size(entry[field]):
            raise ValueError(f"{name} has {field!r}, which no model here reads: leave it out.")


def check_target(
    entry: Mapping[str, Any], spec: SeriesSpec, name: str, *, blank: bool = False
) -> int:
    """The number of rows of a target, in which something is observed unless it may be `blank`."""
    if "target" not in entry:
        raise ValueError(f"{name} has no field 'target'.")
    try:
        target = as_float32(entry["target"])
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers in 'target'.") from None
    shape = f"{spec.channels} channels, shape [{spec.channels}, T]"
    wanted = "one channel, shape [T]" if spec.channels == 1 else shape
    if target.ndim != (1 if spec.channels == 1 else 2) or (
        target.ndim == 2 and len(target) != spec.channels
    ):
        raise ValueError(f"{name} must have {wanted}: got shape {list(target.shape)}.")
    if not target.shape[-1]:
        raise ValueError(f"{name} is empty: give at least one row, or leave it out.")
    table = target.reshape(spec.channels, -1).T
    check_infinite(table, name, "its value")
    if not blank and np.isnan(table).all(0).any():
        channel = (
            "" if spec.channels == 1 else f" in channel {int(np.isnan(table).all(0).argmax())}"
        )
        raise ValueError(
            f"{name} has no value{channel}: all of its {len(table)} rows are missing. Leave it out."
        )
    return len(table)


def check_recent(entry: Mapping[str, Any], spec: SeriesSpec, name: str) -> None:
    """ValueError where nothing is observed of a channel in what a forecast is made from."""
    recent = as_float32(entry["target"])[..., -spec.context_length :]
    missing = np.atleast_1d(np.isnan(recent).all(-1))
    if missing.any():
        channel = "" if spec.channels == 1 else f" of channel {int(missing.argmax())}"
        raise ValueError(
            f"{name} has no value{channel} in its last {recent.shape[-1]} rows, the context that it would "
            "be forecast from: end it at its last value, or leave it out."
        )


def check_infinite(table: np.ndarray, name: str, what: str) -> None:
    """ValueError for the first row of [T, ...] in which something is infinite in float32."""
    infinite = np.isinf(table.reshape(len(table), -1)).any(1)
    if infinite.any():
        raise ValueError(
            f"{name}, row {int(infinite.argmax()) + 1}: {what} is infinite, or too large for float32 "
            "(3.4e38)."
        )


def check_start(entry: Mapping[str, Any], spec: SeriesSpec, name: str) -> None:
    import pandas as pd

    start = entry.get("start")
    if not isinstance(start, pd.Period):
        raise ValueError(
            f"{name} must have a pandas.Period in 'start': got {type(start).__name__}."
        )
    if spec.freq is not None:
        wanted = pd.Period(start.to_timestamp(), freq=period_alias(spec.freq)).freq
        if start.freq != wanted:
            raise ValueError(
                f"{name} has the frequency {start.freqstr!r}, and the model reads freq="
                f"{spec.freq!r}: resample it, or train another model."
            )


def check_dynamic(
    entry: Mapping[str, Any],
    field: str,
    argument: str,
    spec: SeriesSpec,
    name: str,
    steps: int,
    future: int,
) -> None:
    """A dynamic feature has its count of rows and reaches far enough, without a hole."""
    count = getattr(spec, argument)
    given = declared(entry, field, argument, count, name)
    if given is None:
        return
    try:
        values = as_float32(given)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers in {field!r}.") from None
    if values.ndim != 2 or len(values) != count:
        raise ValueError(
            f"{name} must have {field!r} of shape [{argument} = {count}, T]: got "
            f"{list(values.shape)}."
        )
    if values.shape[1] < steps + future:
        reach = f"{steps} rows of the past" + (f" and {future} of the future" if future else "")
        raise ValueError(
            f"{name} must have {field!r} for {reach}, {steps + future} in all: it ends after row "
            f"{values.shape[1]}."
        )
    used = values[:, : steps + future].T
    bad = ~np.isfinite(used).all(1)
    if bad.any():
        raise ValueError(
            f"{name}, row {int(bad.argmax()) + 1}: {field!r} must be finite there. Fill what is missing."
        )


def declared(entry: Mapping[str, Any], field: str, argument: str, count: int, name: str) -> Any:
    """The field, None where it is neither named nor there; ValueError where it is only one of both."""
    given = entry.get(field)
    if given is not None and not np.size(given):
        given = None
    if count and given is None:
        raise ValueError(
            f"{name} has no {field!r}, and the model was told of it by {argument} = {count}."
        )
    if not count and given is not None:
        raise ValueError(
            f"{name} has {field!r}, of which the model was not told: give {argument} = "
            f"{len(np.atleast_1d(given))} to the estimator, or leave the feature out."
        )
    return given


def check_static(entry: Mapping[str, Any], spec: SeriesSpec, name: str) -> None:
    count = spec.num_feat_static_real
    real = declared(entry, "feat_static_real", "num_feat_static_real", count, name)
    if real is not None:
        check_static_values(as_float32(real), count, "feat_static_real", name)
    count = len(spec.cardinality)
    cat = declared(entry, "feat_static_cat", "num_feat_static_cat", count, name)
    if cat is None:
        return
    values = as_float32(cat)
    check_static_values(values, count, "feat_static_cat", name)
    for place, (value, size) in enumerate(zip(values, spec.cardinality, strict=True)):
        if value != int(value) or not 0 <= value < size:
            raise ValueError(
                f"{name} must have a whole number from 0 to {size - 1} as static category "
                f"{place + 1}, since its cardinality is {size}: got {value:g}."
            )


def check_static_values(values: np.ndarray, count: int, field: str, name: str) -> None:
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(
            f"{name} must have {count} finite numbers in {field!r}: got {values.tolist()}."
        )
