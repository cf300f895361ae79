"""A series that cannot be read costs one sentence, with its name and row, before anything is trained."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_timeseries import CONTEXT, HORIZON, entry, estimator, untrained

from titans_domains.timeseries.checks import check_all
from titans_domains.timeseries.series import SeriesSpec

NAN, INF = np.nan, np.inf
REAL = np.zeros((1, 60 + HORIZON))
PLAIN: dict[str, Any] = {}
DYNAMIC = {"num_feat_dynamic_real": 1}
CAT = {"num_feat_static_cat": 1, "cardinality": [3]}


def with_value(row: int, value: float) -> dict[str, Any]:
    target = entry()["target"].copy()
    target[row] = value
    return {"target": target}


BOTH: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "empty": ({"target": []}, PLAIN, "series 'a' is empty"),
    "all missing": ({"target": [NAN] * 60}, PLAIN, "'a' has no value: all of its 60 rows are missing"),
    "infinite": (with_value(17, -INF), PLAIN, "series 'a', row 18: its value is infinite"),
    "too large": (with_value(17, 1e39), PLAIN, "row 18: its value is infinite, or too large"),
    "text": ({"target": ["x"] * 60}, PLAIN, "series 'a' must hold numbers"),
    "channels": ({"target": np.zeros((2, 60))}, PLAIN, r"one channel, shape \[T\]: got shape \[2, 60\]"),
    "one channel": ({}, {"channels": 2}, r"must have 2 channels, shape \[2, T\]: got shape \[60\]"),
    "channel missing": (
        {"target": [[1.0] * 60, [NAN] * 60]}, {"channels": 2}, "no value in channel 1: all of its 60",
    ),
    "start": ({"start": pd.Timestamp("2024-01-01")}, PLAIN, "must have a pandas.Period in 'start'"),
    "freq": ({}, {"freq": "D"}, "has the frequency 'h', and the model reads freq='D'"),
    "absent": ({}, DYNAMIC, "no 'feat_dynamic_real', and the model was told of it by num_feat_dyn.* = 1"),
    "undeclared": (
        {"feat_dynamic_real": np.zeros((2, 66))}, PLAIN, "was not told: give num_feat_dynamic_real = 2",
    ),
    "count": ({"feat_dynamic_real": np.zeros((2, 66))}, DYNAMIC, r"of shape \[num_feat_dynamic_real = 1"),
    "hole": ({"feat_dynamic_real": [[0.0] * 9 + [NAN] * 60]}, DYNAMIC, "row 10: 'feat_dynamic_real' must"),
    "ends": ({"feat_dynamic_real": REAL[:, :50]}, DYNAMIC, "it ends after row 50"),
    "past ends": (
        {"past_feat_dynamic_real": REAL[:, :59]}, {"num_past_feat_dynamic_real": 1}, "ends after row 59",
    ),
    "static absent": ({}, {"num_feat_static_real": 1}, "no 'feat_static_real', and the model was told"),
    "static undeclared": ({"feat_static_cat": [1]}, PLAIN, "give num_feat_static_cat = 1"),
    "static": ({"feat_static_real": [NAN]}, {"num_feat_static_real": 1}, "1 finite numbers in"),
    "category": ({"feat_static_cat": [3]}, CAT, "from 0 to 2 as static category 1.*: got 3"),
    "half a category": ({"feat_static_cat": [0.5]}, CAT, "whole number from 0 to 2"),
    "unread": ({"feat_dynamic_cat": [[0] * 60]}, PLAIN, "'feat_dynamic_cat', which no model here reads"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "settings", "sentence"), BOTH.values(), ids=BOTH)
def test_training_and_forecasting_refuse_it(
    fields: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    wrong = entry(**fields)
    trained = estimator(**settings)
    with pytest.raises(ValueError, match=sentence):
        trained.train([wrong])
    predictor = trained.create_predictor(None, trained.create_lightning_module())
    with pytest.raises(ValueError, match=sentence):
        next(iter(predictor.predict([wrong])))


def test_a_series_without_a_name_is_called_by_its_number() -> None:
    nameless = {k: v for k, v in entry(target=[]).items() if k != "item_id"}
    with pytest.raises(ValueError, match="^series 2 is empty"):
        list(untrained().predict([entry(), nameless]))


def test_what_is_too_short_to_train_on_is_refused() -> None:
    with pytest.raises(
        ValueError, match=f"'a' has {HORIZON} rows, and training needs .* {HORIZON + 1}"
    ):
        estimator().train([entry(60, item_id="b"), entry(HORIZON)])
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="at least one series: got none"):
            estimator().train(nothing)
    with pytest.raises(ValueError, match="at least one series"):
        check_all([], SeriesSpec(prediction_length=1, context_length=1), train=False)


def test_a_future_that_ends_too_soon_is_refused() -> None:
    predictor = untrained(num_feat_dynamic_real=1)
    list(predictor.predict([entry(feat_dynamic_real=REAL)]))
    with pytest.raises(
        ValueError, match="60 rows of the past and 6 of the future, 66 in all: it ends"
    ):
        list(predictor.predict([entry(feat_dynamic_real=REAL[:, :65])]))


def test_nothing_is_forecast_from_missing_values_alone() -> None:
    late = entry()
    late["target"][-CONTEXT:] = np.nan
    with pytest.raises(ValueError, match=f"'a' has no value in its last {CONTEXT} rows"):
        list(untrained().predict([late]))
    several = {**entry(), "target": np.stack([entry()["target"], late["target"]])}
    with pytest.raises(
        ValueError, match=f"'a' has no value of channel 1 in its last {CONTEXT} rows"
    ):
        list(untrained(channels=2).predict([several]))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "horizon": ({"prediction_length": 0}, "prediction_length must be at least 1: got 0"),
    "context": ({"context_length": 0}, "context_length must be at least 1"),
    "patch": ({"patch_len": 21}, "patch_len must be at most context_length = 20"),
    "mixer": ({"mixer": "rnn"}, "mixer must be one of lmm, mac"),
    "output": ({"distr_output": "gamma"}, "distr_output must be one of student_t"),
    "lag": ({"lags_seq": [0]}, "lags_seq must hold numbers of 1 or more"),
    "lags and channels": ({"lags_seq": [1], "channels": 2}, "lags_seq must be empty"),
    "cardinality": (
        {"num_feat_static_cat": 2, "cardinality": [3]},
        "one number for each of num_feat_st",
    ),
    "freq": ({"freq": "often"}, "freq must be a pandas frequency"),
    "features": ({"time_features": ["hour_of_day"]}, "time_features need freq"),
    "feature": ({"freq": "h", "time_features": ["os.system"]}, "time_features must be among"),
    "mixing": ({"mixing": "some"}, "mixing must be one of none, channels"),
    "scaling": ({"scaling": "max"}, "scaling must be one of"),
    "lr": ({"lr": 0.0}, "lr must be positive"),
    "batch": ({"batch_size": 0}, "batch_size must be at least 1"),
    "seed": ({"seed": -1}, "seed must be at least 0"),
}


@pytest.mark.parametrize(("settings", "sentence"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        estimator(**settings)
