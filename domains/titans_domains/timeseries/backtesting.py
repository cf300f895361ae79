"""Rolling backtests: forecasts from several origins before each series' end, scored together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from titans_domains.timeseries import baselines
from titans_domains.timeseries.carrying import CarryingPredictor
from titans_domains.timeseries.checks import name_of
from titans_domains.timeseries.frames import as_dataset, mean_of, quantiles_of
from titans_domains.timeseries.outputs import QUANTILES
from titans_domains.timeseries.series import as_float32

if TYPE_CHECKING:
    import pandas as pd
    from gluonts.model.forecast import Forecast

INTERVAL = (0.1, 0.9)
BATCH = 64
"""Forecasts scored at a time."""
COLUMNS = ("MSE", "MAE", "MASE", "CRPS", "coverage")


class Case(NamedTuple):
    """A forecast to be made: what is known, and what came."""

    series: int
    origin: int  # rows before it
    known: dict[str, Any]
    label: np.ndarray  # [H] or [C, H]


def backtest(
    predictor: Any,
    data: Any,
    *,
    windows: int = 4,
    distance: int | None = None,
    with_baselines: bool = True,
    progress: Callable[[int], None] = lambda forecasts: None,
    **options: Any,
) -> pd.DataFrame:
    """A row of figures for each predictor, over the last `windows` origins of every series.

    `predictor` is one, or several by name: ours, GluonTS's, or a `CarryingPredictor`, which is begun
    anew and reads on from origin to origin, its rows before the first one first. Origins are `distance`
    steps apart (the horizon where not given), and the last forecast ends with the series.

    MSE of the mean (of the median, where a model foresees quantiles alone) and MAE of the median, over all
    observed steps; MASE over the season's error before
    the origin; CRPS as the mean weighted quantile loss at .1 to .9; coverage, the share of values between
    the quantiles .1 and .9 (.8 is right). The baselines are points, whose CRPS is a normalised error;
    the linear one is fitted on what lies before every origin. `options` say how to read a table.
    """
    models = dict(predictor) if isinstance(predictor, Mapping) else {"titans": predictor}
    if not models:
        raise ValueError("backtest needs at least one predictor: got none.")
    horizons = {name: length_of(model) for name, model in models.items()}
    horizon = next(iter(horizons.values()))
    if len(set(horizons.values())) > 1:
        raise ValueError(f"The predictors must have one horizon: got {horizons}.")
    entries = list(as_dataset(data, **options))
    cases = make_cases(entries, horizon, windows, horizon if distance is None else distance)
    season = baselines.season_of(entries[0]["start"].freqstr)
    if with_baselines:
        models |= make_baselines(models, entries, cases, horizon, season)
    return score_all(models, cases, season, progress)


def score_all(
    models: Mapping[str, Any], cases: Sequence[Case], season: int, progress: Callable[[int], None]
) -> pd.DataFrame:
    import pandas as pd

    rows = {}
    for name, model in models.items():
        forecasts = carried(model, cases) if isinstance(model, CarryingPredictor) else (
            model.predict([case.known for case in cases])
        )  # fmt: skip
        rows[name] = score(forecasts, cases, season, progress)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS)).rename_axis("model")


def length_of(model: Any) -> int:
    return (model.predictor if isinstance(model, CarryingPredictor) else model).prediction_length


def make_cases(
    entries: Sequence[Mapping[str, Any]], horizon: int, windows: int, distance: int
) -> list[Case]:
    """The forecasts of a backtest, origin after origin of one series after the other."""
    for name, value in (("windows", windows), ("distance", distance)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}.")
    if not entries:
        raise ValueError("The data must hold at least one series: got none.")
    cases = []
    for number, entry in enumerate(entries):
        target = np.asarray(entry["target"], float)
        first = target.shape[-1] - horizon - (windows - 1) * distance
        if first < 1 or np.isnan(target[..., :first]).all():
            raise ValueError(
                f"{name_of(entry, number)} has {target.shape[-1]} rows, too few for a value before "
                f"{windows} windows of prediction_length = {horizon}, {distance} apart: ask for fewer "
                "windows, or leave it out."
            )
        cases += [
            Case(
                number,
                origin,
                until(entry, origin, horizon),
                target[..., origin : origin + horizon],
            )
            for origin in range(first, target.shape[-1] - horizon + 1, distance)
        ]
    return cases


def until(entry: Mapping[str, Any], origin: int, horizon: int) -> dict[str, Any]:
    """The entry as it was known at a row, in float32: known features reach a horizon further."""
    ends = {
        "target": origin, "past_feat_dynamic_real": origin, "feat_dynamic_real": origin + horizon,
    }  # fmt: skip
    cut = {
        field: as_float32(entry[field])[..., :end]
        for field, end in ends.items()
        if entry.get(field) is not None and np.size(entry[field])
    }
    return {**entry, **cut}


def make_baselines(
    models: Mapping[str, Any],
    entries: Sequence[dict[str, Any]],
    cases: Sequence[Case],
    horizon: int,
    season: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "seasonal naive": baselines.seasonal_naive(horizon, season),
        "last value": baselines.last_value(horizon),
    }
    first: dict[int, int] = {}
    for case in cases:
        first.setdefault(case.series, case.origin)
    before = [until(entry, first[number], 0) for number, entry in enumerate(entries)]
    length = next((n for model in models.values() if (n := context_of(model))), 2 * season)
    channels = 1 if np.ndim(entries[0]["target"]) == 1 else len(entries[0]["target"])
    fitted = baselines.linear(before, horizon, length, channels)
    return found if fitted is None else found | {f"linear ridge ({length})": fitted}


def context_of(model: Any) -> int | None:
    model = model.predictor if isinstance(model, CarryingPredictor) else model
    spec = getattr(model, "spec", None)
    return None if spec is None else spec.context_length


def carried(model: CarryingPredictor, cases: Sequence[Case]) -> Iterable[Forecast]:
    """Forecasts of a stream: its rows up to each origin are read once, in the order of origins."""
    again = model.predictor.carry()
    again.freeze(model.frozen)
    found: dict[int, Forecast] = {}
    turns: dict[int, list[int]] = {}
    before: Counter[int] = Counter()
    for place, case in enumerate(cases):
        turns.setdefault(before[case.series], []).append(place)
        before[case.series] += 1
    read: dict[int, int] = {}
    for places in turns.values():
        again.update([grown(cases[at], read.get(cases[at].series, 0)) for at in places])
        for at, forecast in zip(
            places, again.predict([cases[at].series for at in places]), strict=True
        ):
            forecast.item_id = cases[at].known.get("item_id")
            found[at], read[cases[at].series] = forecast, cases[at].origin
    return [found[at] for at in range(len(cases))]


def grown(case: Case, first: int) -> dict[str, Any]:
    """The rows of a case from `first` on, under the number of its series."""
    fields = ("target", "feat_dynamic_real", "past_feat_dynamic_real")
    cut = {
        field: np.asarray(case.known[field])[..., first:]
        for field in fields
        if case.known.get(field) is not None and np.size(case.known[field])
    }
    return {**case.known, **cut, "start": case.known["start"] + first, "item_id": case.series}


def score(
    forecasts: Iterable[Forecast],
    cases: Sequence[Case],
    season: int,
    progress: Callable[[int], None] = lambda forecasts: None,
) -> dict[str, float]:
    """The figures of one predictor, by gluonts.ev."""
    from gluonts.ev.metrics import MAE, MASE, MSE, Coverage, MeanWeightedSumQuantileLoss

    low, high = INTERVAL
    metrics = {
        "MSE": MSE()(axis=None),
        "MAE": MAE()(axis=None),
        "MASE": MASE()(axis=None),
        "CRPS": MeanWeightedSumQuantileLoss(QUANTILES)(axis=None),
        "low": Coverage(low)(axis=None),
        "high": Coverage(high)(axis=None),
    }
    pairs = zip(cases, forecasts, strict=True)
    counted, interval = 0, False
    while batch := list(islice(pairs, BATCH)):
        data = stacked(batch, season)
        counted += data["label"].count()
        interval |= not all(is_point(forecast) for _, forecast in batch)
        for name, metric in metrics.items():
            if np.ma.count(
                data["label"] / data["seasonal_error"] if name == "MASE" else data["label"]
            ):
                metric.update(data)
        progress(len(batch))
    if not counted:
        raise ValueError("Every value to be forecast is missing: there is nothing to score.")
    found = {name: figure(metric) for name, metric in metrics.items()}
    share = found.pop("high") - found.pop("low")
    found["coverage"] = share if interval else float("nan")  # a point covers nothing
    return {name: found[name] for name in COLUMNS}


def is_point(forecast: Forecast) -> bool:
    """Whether it is one path, and no distribution, however narrow."""
    from gluonts.model.forecast import SampleForecast

    return isinstance(forecast, SampleForecast) and forecast.num_samples == 1


def stacked(batch: Sequence[tuple[Case, Forecast]], season: int) -> dict[str, Any]:
    """What gluonts.ev reads of several forecasts: labels [n, H, ...], quantiles by their names."""
    levels = np.stack([quantiles_of(forecast, QUANTILES) for _, forecast in batch], 1)
    return {
        "label": np.ma.masked_invalid(np.stack([case.label.T for case, _ in batch])),
        "seasonal_error": np.ma.stack([season_error(case, season) for case, _ in batch]),
        "mean": np.stack([mean_of(forecast) for _, forecast in batch]),
        **dict(zip(map(str, QUANTILES), levels, strict=True)),
    }


def figure(metric: Any) -> float:
    """NaN where nothing was counted: all series constant, say, for MASE."""
    try:
        with np.errstate(all="ignore"):
            return float(metric.get())
    except AssertionError:
        return float("nan")


def season_error(case: Case, season: int) -> np.ma.MaskedArray:
    """Mean error of the season before, over what is known [1] or [1, C]; masked where that is 0."""
    past = np.asarray(case.known["target"], float).T
    step = season if season < len(past) else 1
    errors = np.ma.masked_invalid(np.abs(past[step:] - past[:-step]))
    return np.ma.masked_equal(errors.mean(axis=0, keepdims=True), 0)
