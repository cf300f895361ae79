"""A backtest scores what came against what was forecast from what was known."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from gluonts.model.forecast import QuantileForecast
from gluonts.torch import DLinearEstimator
from tiny_timeseries import CONTEXT, HORIZON, entry, table, untrained

from titans_domains.timeseries import baselines
from titans_domains.timeseries.backtesting import COLUMNS, backtest, carried, make_cases
from titans_domains.timeseries.frames import as_dataset
from titans_domains.timeseries.outputs import QUANTILES
from titans_domains.timeseries.plotting import plot, save_plot
from titans_domains.timeseries.quiet import quiet, trainer_settings


def test_figures_are_those_of_their_definitions() -> None:
    predictor = untrained(output="student_t")
    wide = table(60, 2)
    found = backtest(predictor, wide, windows=3, distance=4, with_baselines=False).loc["titans"]
    squares, sizes, scaled, inside, losses, labels = [], [], [], [], [], []
    for name, column in wide.items():
        for origin in (46, 50, 54):
            past, label = column.iloc[:origin], column.iloc[origin : origin + HORIZON].to_numpy()
            (forecast,) = predictor.predict(past.rename(name))
            seen = ~np.isnan(label)
            season = np.nanmean(np.abs(past.to_numpy()[24:] - past.to_numpy()[:-24]))
            squares += list(((forecast.mean - label) ** 2)[seen])
            sizes += list(np.abs(forecast.quantile(0.5) - label)[seen])
            scaled += list((np.abs(forecast.quantile(0.5) - label) / season)[seen])
            low, high = forecast.quantile(0.1), forecast.quantile(0.9)
            inside += list(((label > low) & (label <= high))[seen])
            labels += list(np.abs(label[seen]))
            losses.append(
                [
                    2 * np.sum(np.maximum(q * e, (q - 1) * e)[seen])
                    for q in QUANTILES
                    for e in [label - forecast.quantile(q)]
                ]
            )
    crps = np.mean(np.sum(losses, 0) / np.sum(labels))
    wanted = [np.mean(squares), np.mean(sizes), np.mean(scaled), crps, np.mean(inside)]
    assert list(found.index) == list(COLUMNS)
    np.testing.assert_allclose(found.to_numpy(), wanted, rtol=1e-4)


def test_the_carried_memory_reads_each_row_once() -> None:
    predictor = untrained(output="mse")
    wide = table(60, 2)
    frozen = predictor.carry()
    frozen.freeze()
    models = {"window": predictor, "carried": predictor.carry(), "frozen": frozen}
    found = backtest(models, wide, windows=3, with_baselines=False)
    assert list(found.index) == ["window", "carried", "frozen"]
    carrying, errors, end = predictor.carry(), [], 0
    for origin in (42, 48, 54):
        carrying.update(wide.iloc[end:origin])
        for forecast in carrying.predict():
            label = wide[forecast.item_id].iloc[origin : origin + HORIZON]
            errors += list(((forecast.mean - label) ** 2).dropna())
        end = origin
    assert found.loc["carried", "MSE"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert len({round(value, 6) for value in found["MSE"]}) == 3


def test_a_network_of_gluonts_stands_in_the_same_table() -> None:
    settings = {"prediction_length": HORIZON, "context_length": CONTEXT}
    with tempfile.TemporaryDirectory() as folder, quiet():
        other = DLinearEstimator(
            **settings,
            num_batches_per_epoch=2,
            trainer_kwargs=trainer_settings({"max_epochs": 1}, folder),
        ).train(list(as_dataset(table(60).interpolate())))
    models = {"titans": untrained(), "DLinear": other}
    found = backtest(models, table(60).interpolate(), windows=2, with_baselines=False)
    assert list(found.index) == ["titans", "DLinear"]
    assert np.isfinite(found.to_numpy()).all()


def test_baselines_stand_in_the_same_table() -> None:
    found = backtest(untrained(output="mse"), table(120), windows=2)
    assert list(found.index) == [
        "titans",
        "seasonal naive",
        "last value",
        f"linear ridge ({CONTEXT})",
    ]
    assert np.isfinite(found.drop(columns="coverage").to_numpy()).all()
    assert found["coverage"].isna().all()  # of points
    # A wave of 25 hours: the map has seen it, the season of 24 nearly fits, the last value does not.
    errors = found["MAE"]
    assert errors.iloc[3] < errors.iloc[2]


def test_baselines_repeat_what_was_observed() -> None:
    nan = float("nan")
    past = np.array([1.0, 2, 3, 10, 20, 30, 100, nan, 300, nan])[:, None]
    naive = baselines.seasonal_naive(5, 3).path(past)[:, 0]
    assert naive.tolist() == [20, 300, 100, 20, 300]
    assert baselines.last_value(2).path(past)[:, 0].tolist() == [300, 300]
    assert baselines.seasonal_naive(2, 30).path(past)[:, 0].tolist() == [300, 300]
    assert [baselines.season_of(f) for f in ("h", "15min", "D", "W-SUN", "ME", "QE-DEC", "2h", "YE")] == [
        24, 96, 7, 52, 12, 4, 12, 1,
    ]  # fmt: skip


def test_the_linear_baseline_learns_a_line() -> None:
    rows = np.arange(80.0)
    lines = [entry(target=5 * rows + 7), entry(target=300 - rows)]
    fitted = baselines.linear(lines, HORIZON, CONTEXT)
    assert fitted is not None
    (forecast,) = fitted.predict([entry(target=2 * rows)])
    np.testing.assert_allclose(forecast.mean, 2 * np.arange(80, 86), rtol=1e-3)
    assert baselines.linear([entry(HORIZON)], HORIZON, CONTEXT) is None


def test_constant_series_have_no_scaled_error() -> None:
    found = backtest(untrained(), [entry(target=np.full(60, 3.0))], windows=2)
    assert np.isnan(found["MASE"]).all()
    np.testing.assert_allclose(found["MAE"].iloc[1:], 0, atol=1e-6)


class Narrow:
    """Quantiles that are all the last value."""

    prediction_length = HORIZON

    def predict(self, entries: Any) -> Any:
        for one in entries:
            last = np.full(HORIZON, one["target"][-1])
            arrays = np.stack([last] * 3)
            start = one["start"] + len(one["target"])
            yield QuantileForecast(arrays, start, ["0.1", "0.5", "0.9"], item_id=one["item_id"])


def test_a_narrow_distribution_is_no_point() -> None:
    wide = table(60, 1).interpolate()
    narrow = backtest(Narrow(), wide, windows=2)
    assert narrow["coverage"].iloc[0] == 0
    assert narrow["coverage"].iloc[1:].isna().all()


def test_carried_series_need_not_come_one_after_the_other() -> None:
    predictor, wide = untrained(output="mse"), table(60, 3)
    cases = make_cases(as_dataset(wide).entries, HORIZON, 3, HORIZON)
    mixed = [cases[at] for at in (0, 3, 1, 6, 4, 2, 7, 5, 8)]
    found = {
        (c.series, c.origin): f
        for c, f in zip(mixed, carried(predictor.carry(), mixed), strict=True)
    }
    for case, forecast in zip(cases, carried(predictor.carry(), cases), strict=True):
        np.testing.assert_allclose(found[case.series, case.origin].mean, forecast.mean, rtol=1e-5)


def test_known_features_reach_over_the_horizon() -> None:
    feature = np.arange(60.0)[None]
    cases = make_cases([entry(feat_dynamic_real=feature)], HORIZON, 2, 3)
    assert [case.origin for case in cases] == [51, 54]
    assert cases[0].known["feat_dynamic_real"].shape == (1, 51 + HORIZON)
    assert cases[0].known["target"].shape == (51,)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "windows": ({"windows": 0}, "windows must be at least 1: got 0"),
    "distance": ({"distance": 0}, "distance must be at least 1"),
    "too short": ({"windows": 10}, "series 's0' has 60 rows, too few for a value before 10 windows"),
    "no model": ({"predictor": {}}, "at least one predictor"),
    "no data": ({"data": []}, "at least one series"),
    "all missing": (
        {"data": [entry(target=[1.0] * 40 + [np.nan] * 20)], "windows": 1}, "Every value to be forecast",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_scored_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        backtest(**{"predictor": untrained(), "data": table(60), "windows": 2, **changes})


def test_forecasts_are_drawn(tmp_path: Path) -> None:
    predictor, wide = untrained(), table(60, 4)
    figure = plot(predictor.predict(wide.iloc[:54]), wide)
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in axes] == ["s0", "s1", "s2", "s3"]
    observed, median = axes[0].lines
    assert len(median.get_xdata()) == HORIZON
    # Four horizons before, and what is known of the horizon itself.
    np.testing.assert_allclose(observed.get_ydata(), wide["s0"].iloc[54 - 4 * HORIZON :], rtol=1e-6)
    assert len(axes[0].collections) == 2
    save_plot(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_channels_are_drawn_apart(tmp_path: Path) -> None:
    data = table(60).to_numpy().T
    one = {"start": pd.Period("2024-01-01", freq="h"), "target": data, "item_id": "x"}
    figure = plot(untrained(channels=3).predict([one]), [one], history=10)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["x[0]", "x[1]", "x[2]"]
    with pytest.raises(ValueError, match=r"must be named \*\.png"):
        save_plot(figure, tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="no forecast to draw"):
        plot([])
    assert list(tmp_path.iterdir()) == []
