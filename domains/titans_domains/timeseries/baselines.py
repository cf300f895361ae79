"""What a forecaster must beat: the last value, the last season, and one linear map for all series."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gluonts.model.forecast import SampleForecast

from titans_domains.timeseries.frequency import old_names, period_alias
from titans_domains.timeseries.linear import predict as predict_linear
from titans_domains.timeseries.loaders import train_places
from titans_domains.timeseries.protocol import SEASONS
from titans_domains.timeseries.scaling import fill_gaps, normalise, window_scale
from titans_domains.timeseries.series import SeriesSpec, arrays
from titans_domains.timeseries.transform import last_rows
from titans_domains.timeseries.windows import Windows, linear_map

MORE_SEASONS = {"M": 12, "Q": 4, "min": 1440, "s": 3600}


def season_of(freq: str) -> int:
    """Steps of the season that a frequency usually has: a day, a week or a year."""
    from gluonts.time_feature import get_seasonality

    alias = period_alias(freq).split("-")[0]
    known = SEASONS | MORE_SEASONS
    with old_names():
        return known[alias] if alias in known else get_seasonality(freq)


class Baseline:
    """A predictor from a function of the past [T, C], which has a value in it, to the future [H, C].

    Its forecast is a point: mean and every quantile are the same, so its CRPS is a normalised error.
    """

    def __init__(self, path: Callable[[np.ndarray], np.ndarray], prediction_length: int) -> None:
        self.path, self.prediction_length = path, prediction_length

    def predict(self, dataset: Any, **_: Any) -> Iterator[SampleForecast]:
        for entry in dataset:
            target = np.asarray(entry["target"], float)
            past = target[:, None] if target.ndim == 1 else target.T
            ahead = self.path(past)
            with old_names():
                start = entry["start"] + len(past)
            yield SampleForecast(
                ahead[None, :, 0] if target.ndim == 1 else ahead[None],
                start_date=start,
                item_id=entry.get("item_id"),
                info=entry.get("info"),
            )


def filled(past: np.ndarray) -> np.ndarray:
    """The last value before each gap, and the first one before all."""
    seen = ~np.isnan(past)
    at = np.maximum.accumulate(np.where(seen, np.arange(len(past))[:, None], -1))
    at = np.where(at < 0, seen.argmax(0), at)
    return np.take_along_axis(past, at, 0)


def last_value(prediction_length: int) -> Baseline:
    def path(past: np.ndarray) -> np.ndarray:
        return np.repeat(filled(past)[-1:], prediction_length, 0)

    return Baseline(path, prediction_length)


def seasonal_naive(prediction_length: int, season: int) -> Baseline:
    """The last season again and again; a missing hour is that of the season before it."""

    def path(past: np.ndarray) -> np.ndarray:
        whole = len(past) // season
        if not whole:
            return np.repeat(filled(past)[-1:], prediction_length, 0)
        seasons = past[len(past) - whole * season :].reshape(whole, season, -1)
        latest = filled(seasons.reshape(whole, -1))[-1].reshape(season, -1)
        latest = np.where(np.isnan(latest), filled(past)[-1:], latest)
        return latest[np.arange(prediction_length) % season]

    return Baseline(path, prediction_length)


def linear(
    entries: Sequence[dict[str, Any]],
    prediction_length: int,
    context_length: int,
    channels: int = 1,
) -> Baseline | None:
    """The ridge fitted on these series; None where no window of theirs is whole."""
    spec = SeriesSpec(
        prediction_length=prediction_length, context_length=context_length, channels=channels
    )
    long = [e for e in entries if np.shape(e["target"])[-1] > prediction_length]
    if not long:
        return None
    windows = Windows([arrays(e, spec) for e in long], context_length, prediction_length)
    places = train_places(windows, prediction_length, least=context_length)
    ridge = linear_map(places, "std", context_length)
    if ridge is None:
        return None
    weight = ridge.weight

    def path(past: np.ndarray) -> np.ndarray:
        window = torch.from_numpy(last_rows(past, context_length, np.nan))[None]
        seen = ~window.isnan()
        loc, scale = window_scale(window.nan_to_num(), seen, "std")
        rows = fill_gaps(normalise(window.nan_to_num(), seen, loc, scale)[0].mT, seen[0].mT)
        return (predict_linear(weight, rows).mT * scale[0] + loc[0]).numpy()

    return Baseline(path, prediction_length)
