"""One series as arrays: the target with NaN where it is missing, lags, time features, covariates.

C channels, T steps, H of the horizon, K lags, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from titans_domains.timeseries.frequency import old_names, period_alias

TIME_FEATURES = (
    "second_of_minute",
    "minute_of_hour",
    "hour_of_day",
    "day_of_week",
    "day_of_month",
    "day_of_year",
    "week_of_year",
    "month_of_year",
)
"""Names of functions of `gluonts.time_feature`, which map stamps to [-0.5, 0.5]."""


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """What a model reads of a series. Counts of features are those of the data."""

    prediction_length: int
    context_length: int
    channels: int = 1
    freq: str | None = None  # needed for time features only; then no other frequency is read
    lags_seq: tuple[int, ...] = ()
    time_features: tuple[str, ...] = ()
    num_feat_dynamic_real: int = 0
    num_past_feat_dynamic_real: int = 0
    num_feat_static_real: int = 0
    cardinality: tuple[int, ...] = ()  # of each static category

    def __post_init__(self) -> None:
        for name in ("prediction_length", "context_length", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        if any(lag < 1 for lag in self.lags_seq):
            raise ValueError(f"lags_seq must hold numbers of 1 or more: got {self.lags_seq}.")
        if self.lags_seq and self.channels > 1:
            raise ValueError("lags_seq must be empty where a series has several channels.")
        for name in self.time_features:
            if name not in TIME_FEATURES:
                raise ValueError(
                    f"time_features must be among {', '.join(TIME_FEATURES)}: got {name!r}."
                )
        if self.time_features and self.freq is None:
            raise ValueError("time_features need freq: give it, such as freq='h'.")
        if self.freq is not None:
            period_alias(self.freq)

    @property
    def known(self) -> int:
        """Features whose future is known: of time, and the data's own."""
        return len(self.time_features) + self.num_feat_dynamic_real

    @property
    def history(self) -> int:
        """Steps before a forecast that decide it."""
        return self.context_length + max(self.lags_seq, default=0)


class Arrays(NamedTuple):
    """A series as float32; `known` may reach beyond the target, into the future."""

    target: np.ndarray  # [T, C]
    lags: np.ndarray  # [T, K]
    known: np.ndarray  # [T + ahead, F]
    past_only: np.ndarray  # [T, Fp]
    static_real: np.ndarray  # [S]
    static_cat: np.ndarray  # [K], int64

    def followed(self, new: Arrays) -> Arrays:
        """These rows and then those of `new`; static features are those of the latter."""
        return new._replace(
            target=np.concatenate([self.target, new.target]),
            lags=np.concatenate([self.lags, new.lags]),
            known=np.concatenate([self.known, new.known]),
            past_only=np.concatenate([self.past_only, new.past_only]),
        )

    def last(self, count: int) -> Arrays:
        """The last rows alone."""
        return self._replace(
            target=self.target[-count:],
            lags=self.lags[-count:],
            known=self.known[-count:],
            past_only=self.past_only[-count:],
        )


def as_float32(values: Any) -> np.ndarray:
    """Numbers as the model reads them; what is too large becomes infinite, for `checks` to find."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def arrays(entry: Mapping[str, Any], spec: SeriesSpec, ahead: int = 0) -> Arrays:
    """The arrays of a checked entry, with known features of `ahead` steps beyond the target."""
    target = np.atleast_2d(as_float32(entry["target"])).T
    steps = len(target)
    own = rows(entry, "feat_dynamic_real", spec.num_feat_dynamic_real, steps + ahead)
    known = np.concatenate([time_features(entry["start"], steps + ahead, spec), own], 1)
    return Arrays(
        target=target,
        lags=lagged(target, spec.lags_seq),
        known=known,
        past_only=rows(entry, "past_feat_dynamic_real", spec.num_past_feat_dynamic_real, steps),
        static_real=np.asarray(
            entry["feat_static_real"] if spec.num_feat_static_real else [], np.float32
        ),
        static_cat=np.asarray(entry["feat_static_cat"] if spec.cardinality else [], np.int64),
    )


def rows(entry: Mapping[str, Any], field: str, count: int, steps: int) -> np.ndarray:
    """A dynamic feature [steps, count] of an entry that has it as [count, steps or more]."""
    if not count:
        return np.zeros((steps, 0), np.float32)
    return np.asarray(entry[field], np.float32).T[:steps]


def lagged(target: np.ndarray, lags: tuple[int, ...]) -> np.ndarray:
    """The target's first channel so many steps before; NaN where that is before its start."""
    out = np.full((len(target), len(lags)), np.nan, np.float32)
    for column, lag in enumerate(lags):
        out[lag:, column] = target[: max(0, len(target) - lag), 0]
    return out


def time_features(start: Any, steps: int, spec: SeriesSpec) -> np.ndarray:
    """Features of the stamps [steps, F]."""
    if not spec.time_features or not steps:
        return np.zeros((steps, len(spec.time_features)), np.float32)
    import gluonts.time_feature
    import pandas as pd

    with old_names():
        stamps = pd.period_range(start, periods=steps, freq=start.freq)
        columns = [getattr(gluonts.time_feature, name)(stamps) for name in spec.time_features]
    return np.stack(columns, 1).astype(np.float32)
