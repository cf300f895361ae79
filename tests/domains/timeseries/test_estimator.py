"""The estimator is one of GluonTS's, without what goes wrong in others."""

import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.core import serde
from gluonts.dataset.common import ListDataset
from gluonts.dataset.pandas import PandasDataset
from gluonts.model.predictor import Predictor
from gluonts.torch.distributions import QuantileOutput
from gluonts.transform import ExpectedNumInstanceSampler, ValidationSplitSampler
from tiny_timeseries import (
    CONTEXT,
    HORIZON,
    PATCH,
    backbone,
    entry,
    estimator,
    numbers,
    table,
    untrained,
)

from titans_domains.timeseries.estimator import TitansEstimator
from titans_domains.timeseries.loaders import train_places, trained_ends, validation_places
from titans_domains.timeseries.outputs import NAMES
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.series import SeriesSpec, arrays
from titans_domains.timeseries.windows import Windows, parted


def assert_forecasts(forecasts: list[Any], entries: list[Any]) -> None:
    """GluonTS's checks of any predictor: item ids, start dates, lengths, finite numbers."""
    for forecast, one in zip(forecasts, entries, strict=True):
        target = np.asarray(one["target"])
        assert forecast.item_id == one.get("item_id")
        assert forecast.start_date == one["start"] + target.shape[-1]
        shape = (HORIZON, len(target)) if target.ndim == 2 else (HORIZON,)
        for values in (forecast.mean, forecast.quantile(0.1), forecast.quantile("0.9")):
            assert values.shape == shape
            assert np.isfinite(values).all()
        assert (forecast.quantile(0.1) <= forecast.quantile(0.9)).all()


def test_a_trained_predictor_forecasts_every_series(predictor: TitansPredictor) -> None:
    wide = table(60)
    dataset = PandasDataset(dict(wide.items()))
    assert_forecasts(list(predictor.predict(dataset)), list(dataset))
    assert wide["s0"].dtype == np.float64
    shuffled = list(dataset)[::-1]
    again = list(predictor.predict(shuffled))
    np.testing.assert_allclose(
        [f.mean for f in again[::-1]], [f.mean for f in predictor.predict(dataset)], rtol=1e-6
    )


def test_a_forecast_that_is_waited_for_leaves_gradients_on() -> None:
    forecasts = untrained().predict([entry(), entry()])
    next(forecasts)
    assert torch.is_grad_enabled()
    assert len(list(forecasts)) == 1


@pytest.mark.parametrize("output", [*NAMES, QuantileOutput([0.05, 0.5, 0.95])], ids=str)
def test_every_output_forecasts(output: Any) -> None:
    made = estimator(distr_output=output)
    built = made.create_predictor(None, made.create_lightning_module())
    assert_forecasts(list(built.predict([entry(), entry(seed=1)])), [entry(), entry(seed=1)])


def test_quantiles_do_not_cross() -> None:
    frame = untrained(output="quantiles").forecast(table())
    levels = frame.drop(columns=["item_id", "timestamp", "mean"]).to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all()
    assert (np.diff(levels, axis=1) > 0).any()


@pytest.mark.parametrize("mixing", ["none", "channels"])
def test_several_channels_are_trained_and_forecast(mixing: str) -> None:
    whole = table(40).interpolate().to_numpy().T
    many = {"start": pd.Period("2024-01-01", freq="h"), "target": whole, "item_id": "many"}
    made = estimator(channels=3, mixing=mixing, num_batches_per_epoch=2)
    trained = made.train([many])
    assert trained.module.model.config.mixing == mixing
    assert_forecasts(list(trained.predict([many])), [many])


def covariates(length: int, item: int) -> dict[str, Any]:
    random = np.random.default_rng(item)
    return entry(
        length,
        item_id=item,
        feat_dynamic_real=random.normal(size=(2, length + HORIZON)),
        past_feat_dynamic_real=random.normal(size=(1, length)),
        feat_static_real=[0.5 * item],
        feat_static_cat=[item % 3],
    )


COVARIATES: dict[str, Any] = {
    "freq": "h",
    "lags_seq": [1, 24],
    "num_feat_dynamic_real": 2,
    "num_past_feat_dynamic_real": 1,
    "num_feat_static_real": 1,
    "num_feat_static_cat": 1,
    "cardinality": [3],
}


def test_covariates_are_trained_and_each_decides_the_forecast() -> None:
    trained = estimator(**COVARIATES).train([covariates(60, i) for i in range(4)])
    plain = covariates(60, 1)
    assert_forecasts(list(trained.predict([plain])), [plain])
    spec = SeriesSpec(
        prediction_length=HORIZON, context_length=CONTEXT, freq="h", lags_seq=(30,),
        time_features=("hour_of_day",), num_feat_dynamic_real=2, num_past_feat_dynamic_real=1,
        num_feat_static_real=1, cardinality=(3,),
    )  # fmt: skip
    rough = untrained(**{k: v for k, v in vars(spec).items() if "length" not in k})
    before = numbers(rough.forecast([plain]))
    other = plain["target"].copy()
    other[60 - CONTEXT - 25] += 50
    changes: dict[str, Any] = {
        "target": other,  # before the context: seen as a lag alone
        "start": plain["start"] + 5,
        "feat_static_real": [3.0],
        "feat_static_cat": [2],
        "past_feat_dynamic_real": plain["past_feat_dynamic_real"] + 1,
    }
    for rows in (slice(60 - CONTEXT, 60), slice(60, None)):
        feature = plain["feat_dynamic_real"].copy()
        feature[0, rows] += 1
        changes[f"feat_dynamic_real {rows}"] = feature
    for field, value in changes.items():
        after = numbers(rough.forecast([{**plain, field.split()[0]: value}]))
        assert not np.allclose(before, after), field


def test_time_features_are_those_of_the_frequency() -> None:
    assert estimator(freq="h").spec.time_features == (
        "hour_of_day", "day_of_week", "day_of_month", "day_of_year",
    )  # fmt: skip
    assert estimator(freq="ME").spec.time_features == ("month_of_year",)
    assert estimator(freq="h", time_features=[]).spec.time_features == ()
    assert estimator().spec.time_features == ()


def test_what_is_missing_is_missing_and_not_zero() -> None:
    """Wart 2: the forecast of a series with holes moves with its level, and stays near it."""
    rough = untrained()
    holes = entry()
    holes["target"][[3, 45, 50, 51, 58]] = np.nan
    base, moved = (
        list(rough.predict([{**holes, "target": holes["target"] + by}])) for by in (0, 1e4)
    )
    np.testing.assert_allclose(moved[0].mean - 1e4, base[0].mean, atol=0.05)


def test_what_is_missing_of_the_future_counts_nothing() -> None:
    model = untrained(output="mse").module.model
    target = torch.from_numpy(table(CONTEXT + HORIZON, 1).interpolate().to_numpy(np.float32))[None]
    past = target[:, :CONTEXT]
    points, loc, scale = model.network(past, torch.ones_like(past, dtype=torch.bool))
    errors = (target[:, CONTEXT:] - loc) / scale - points[..., 0]
    holes = target.clone()
    holes[:, -2:] = torch.nan
    unseen = target.clone()
    unseen[:, :CONTEXT] = torch.nan
    loss = model.loss({"target": torch.cat([holes, unseen])})
    torch.testing.assert_close(loss, errors[:, :-2].square().mean())


def test_short_and_constant_series_are_forecast_near_what_they_were(
    predictor: TitansPredictor,
) -> None:
    """Wart 3: three points near 100 do not become 139."""
    start = pd.Period("2024-01-01", freq="h")
    targets = {
        "one": [100.0], "three": [100.0, 101.0, 100.5], "short": entry(9)["target"],
        "constant": [100.0] * 50, "zero": [0.0] * 50, "large": [1e30] * 30,
        "jump": [100.0] * 49 + [120.0], "hole": [np.nan] * 49 + [100.0],
    }  # fmt: skip
    entries = [{"start": start, "target": np.array(t), "item_id": n} for n, t in targets.items()]
    forecasts = {f.item_id: f for f in predictor.predict(entries)}
    for name in ("one", "hole", "constant", "zero", "large"):
        level = targets[name][-1]
        wide = max(1e-3 * abs(level), 1e-3)
        for values in (forecasts[name].mean, forecasts[name].quantile(0.9)):
            np.testing.assert_allclose(values, level, atol=wide, err_msg=name)
    for name in ("three", "short", "jump"):
        target = np.array(targets[name])
        spread = max(np.nanmax(target) - np.nanmin(target), 1)
        middle = forecasts[name].median
        assert (np.abs(middle - np.nanmean(target)) < 3 * spread).all(), (name, middle)


def test_constant_series_can_be_trained_on(recwarn: pytest.WarningsRecorder) -> None:
    flat = [entry(target=np.full(60, 5.0), item_id="a"), entry(target=np.zeros(60), item_id="b")]
    first, second = estimator(num_batches_per_epoch=2).train(flat).predict(flat)
    np.testing.assert_allclose(first.mean, 5, atol=1e-2)
    np.testing.assert_allclose(second.mean, 0, atol=1e-2)
    assert not recwarn


def test_the_seed_decides_and_global_states_stay(predictor: TitansPredictor) -> None:
    """Wart 17."""
    wide = table(60)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = estimator(seed=3).train(wide.iloc[:48], wide)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    np.testing.assert_array_equal(numbers(again.forecast(wide)), numbers(predictor.forecast(wide)))
    other = estimator(seed=4).train(wide.iloc[:48], wide)
    assert not np.array_equal(numbers(other.forecast(wide)), numbers(predictor.forecast(wide)))


class Counting(pl.Callback):
    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.epochs += 1


def test_training_is_quiet_leaves_nothing_and_keeps_its_callbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warts 6 and 8."""
    monkeypatch.chdir(tmp_path)
    counting = Counting()
    made = estimator(num_batches_per_epoch=1, trainer_kwargs={"callbacks": [counting]})
    made.train(table(60))
    made.train(table(60))
    assert counting.epochs == 4
    assert made.trainer_kwargs["callbacks"] == [counting]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_validation_looks_at_the_region_after_training() -> None:
    """Wart 13."""
    spec = SeriesSpec(prediction_length=HORIZON, context_length=CONTEXT)
    entries = [entry(60, item_id="a"), entry(50, item_id="b"), entry(40, item_id="new")]
    windows = Windows([arrays(e, spec) for e in entries], CONTEXT, HORIZON)
    seen = trained_ends([entry(48, item_id="a"), entry(50, item_id="b")])
    places = validation_places(windows, entries, HORIZON, seen)
    ends = {n: places.ends[places.series == n].tolist() for n in range(3)}
    assert ends[0] == list(range(48, 55))
    # Nothing more than was trained on, or not trained on: all of it.
    assert ends[1] == list(range(CONTEXT, 45))
    assert ends[2] == list(range(CONTEXT, 35))


def loaders(made: TitansEstimator, training: Any, validation: Any) -> tuple[Any, Any]:
    module = made.create_lightning_module()
    prepare = made.create_transformation()
    return (
        made.create_training_data_loader(prepare.apply(training, is_train=True), module),
        made.create_validation_data_loader(prepare.apply(validation, is_train=True), module),
    )


@pytest.mark.parametrize("carry", [False, True])
def test_series_without_names_are_told_apart_by_their_place(carry: bool) -> None:
    lengths = [(48, 60), (60, 75), (54, 54)]
    training, validation = (
        ListDataset([{"start": "2024-01-01", "target": entry(n)["target"]} for n in part], freq="h")
        for part in zip(*lengths, strict=True)
    )
    _, spread = loaders(estimator(carry=carry, carry_length=8), training, validation)
    ends = {n: spread.places.ends[spread.places.series == n] for n in range(3)}
    assert [int(ends[n].min()) for n in range(2)] == [48, 60]
    assert [int(ends[n].max()) for n in range(2)] == [54, 69]


def test_a_validation_series_that_was_cut_is_aligned_by_its_stamps() -> None:
    whole = entry(60)
    late = {**whole, "start": whole["start"] + 25, "target": whole["target"][25:]}
    made = estimator()
    _, spread = loaders(made, [entry(48)], [late])
    assert spread.places.ends.tolist() == list(range(48 - 25, 35 - HORIZON + 1))
    after = {**whole, "start": whole["start"] + 50}
    _, spread = loaders(made, [entry(48)], [after])
    assert spread.places.ends.tolist() == list(range(CONTEXT, 60 - HORIZON + 1))
    other = {**whole, "start": pd.Period("2024-01-01", freq="D")}
    with pytest.raises(
        ValueError, match="series 'a' has the frequency 'D', and was trained on with 'h'"
    ):
        loaders(made, [entry(48)], [other])


def test_windows_are_cut_as_they_stand() -> None:
    spec = SeriesSpec(
        prediction_length=2, context_length=4, num_feat_dynamic_real=1, lags_seq=(3,),
        num_feat_static_real=1,
    )  # fmt: skip
    rows = [np.arange(9.0), np.arange(100.0, 107.0)]
    series = [
        arrays(entry(target=r, feat_dynamic_real=[-r], feat_static_real=[r[0]]), spec) for r in rows
    ]
    batch = Windows(series, 4, 2).take(torch.tensor([0, 1, 1]), torch.tensor([7, 5, 2]))
    nan = float("nan")
    wanted = [[3, 4, 5, 6, 7, 8], [101, 102, 103, 104, 105, 106], [nan, nan, 100, 101, 102, 103]]
    torch.testing.assert_close(batch["target"][..., 0], torch.tensor(wanted), equal_nan=True)
    torch.testing.assert_close(batch["known"][..., 0], -torch.tensor(wanted).nan_to_num())
    lags = [[0, 1, 2, 3, 4, 5], [nan, nan, 100, 101, 102, 103], [nan, nan, nan, nan, nan, 100]]
    torch.testing.assert_close(batch["lags"][..., 0], torch.tensor(lags), equal_nan=True)
    assert batch["static_real"][:, 0].tolist() == [0, 100, 100]


@pytest.mark.parametrize(("length", "border"), [(60, 48), (100, 80), (25, 19), (12, 6)])
def test_a_penalty_is_chosen_on_rows_that_its_fit_has_not_seen(length: int, border: int) -> None:
    spec = SeriesSpec(prediction_length=HORIZON, context_length=4)
    places = train_places(Windows([arrays(entry(length), spec)], 4, HORIZON), HORIZON, least=1)
    parts = [places.ends[part] for part in parted(places, torch.arange(len(places)))]
    assert torch.equal(torch.cat(parts).sort().values, places.ends)
    early, _, late = parts
    # The rows that a window foresees are those from its end on.
    assert not len(early) or early.max() + HORIZON == border
    assert late.min() == border
    assert len(early) == max(0, border - HORIZON)


def test_a_sampler_of_gluonts_chooses_the_windows() -> None:
    seen: list[int] = []

    class Watched(ExpectedNumInstanceSampler):
        def __call__(self, ts: Any) -> Any:
            seen.append(len(ts))
            return super().__call__(ts)

    sampler = Watched(num_instances=2.0, min_past=CONTEXT, min_future=HORIZON)
    made = estimator(
        train_sampler=sampler, validation_sampler=ValidationSplitSampler(min_future=HORIZON)
    )
    made.train(table(60), table(60))
    assert set(seen) == {60}
    beyond = ExpectedNumInstanceSampler(num_instances=2.0, min_past=CONTEXT)
    for name in ("train_sampler", "validation_sampler"):
        with pytest.raises(
            ValueError, match=f"{name} chooses row .* no 6 rows after it: give .* min_fu"
        ):
            estimator(**{name: beyond}, seed=1).train(table(60), table(60))
    never = ValidationSplitSampler(min_future=1000)
    with pytest.raises(ValueError, match="train_sampler chooses no window"):
        estimator(train_sampler=never).train(table(60))


def test_series_are_transformed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wart 14: windows are cut from tables, and not made anew from the data."""
    from titans_domains.timeseries import transform

    calls = []
    monkeypatch.setattr(transform, "arrays", lambda *a: calls.append(1) or arrays(*a))
    estimator(trainer_kwargs={"max_epochs": 3}).train(table(60))
    assert len(calls) == 3


def test_a_network_that_learns_nothing_good_is_not_kept() -> None:
    wide = table(60)
    made = estimator(lr=30.0, num_batches_per_epoch=2, weight_decay=0.0)
    trained = made.train_model(wide.iloc[:48], wide)
    head = trained.trained_net.model.network.head
    assert not head.weight.any()
    assert trained.trained_net.model.network.linear.weight.any()
    free = estimator(num_batches_per_epoch=2, lr=30.0).train(wide.iloc[:48])
    assert free.module.model.network.head.weight.any()


def test_training_goes_on_from_a_predictor(predictor: TitansPredictor) -> None:
    wide = table(60)
    more = estimator(lr=1e-12, weight_decay=0.0).train_from(predictor, wide)
    np.testing.assert_allclose(
        numbers(more.forecast(wide)), numbers(predictor.forecast(wide)), rtol=1e-5
    )


def test_gluonts_writes_and_reads_it_bit_for_bit(
    predictor: TitansPredictor, tmp_path: Path
) -> None:
    """Wart 7, and GluonTS's own check of a round trip."""
    wide = table(60)
    predictor.serialize(str(tmp_path / "new/folder"))
    again = Predictor.deserialize(tmp_path / "new/folder")
    assert type(again) is TitansPredictor
    assert again == predictor
    np.testing.assert_array_equal(numbers(again.forecast(wide)), numbers(predictor.forecast(wide)))
    assert sorted(os.listdir(tmp_path / "new/folder")) == [
        "gluonts-config.json", "prediction-net-state.pt", "predictor.json",
    ]  # fmt: skip


@pytest.mark.parametrize("mixer", ["mac", backbone("mag")], ids=["name", "config"])
def test_the_estimator_can_be_written_down(mixer: Any) -> None:
    made = estimator(mixer=mixer, **COVARIATES, distr_output=QuantileOutput([0.1, 0.9]))
    text = serde.dump_json(made)
    again = serde.load_json(text)
    assert type(again) is TitansEstimator
    assert (again.network, again.spec) == (made.network, made.spec)
    assert json.loads(serde.dump_json(again)) == json.loads(text)


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal", "attention"])
def test_every_mixer_trains(mixer: str) -> None:
    trained = estimator(mixer=backbone(mixer), num_batches_per_epoch=1).train(table(60))
    assert_forecasts(list(trained.predict([entry()])), [entry()])


def test_patches_need_not_divide_the_context() -> None:
    assert CONTEXT % PATCH == 0
    for size in (1, 3, CONTEXT):
        trained = estimator(patch_len=size, num_batches_per_epoch=1).train(table(60))
        assert_forecasts(list(trained.predict([entry()])), [entry()])


def test_a_table_with_covariates_is_trained_on_by_their_names() -> None:
    stamps = pd.date_range("2026-01-01", periods=60 + HORIZON, freq="h")
    priced = pd.DataFrame(
        {
            "timestamp": stamps,
            "target": np.sin(np.arange(60.0 + HORIZON)),
            "promo": np.arange(60.0 + HORIZON),
        }
    )
    priced.loc[60:, "target"] = np.nan
    model = estimator(num_feat_dynamic_real=1)
    predictor = model.train(priced, validation_data=priced, feat_dynamic_real="promo")
    found = predictor.forecast(priced, feat_dynamic_real="promo")
    assert found["timestamp"].tolist() == stamps[60:].tolist()
    with pytest.raises(TypeError, match="validaton_data"):
        model.train(priced, validaton_data=priced)


def test_twenty_steps_in_all_are_trained() -> None:
    """Of which the scheduler's warm-up would be one, and last no time."""
    made = estimator(num_batches_per_epoch=10, trainer_kwargs={"max_epochs": 2})
    assert np.isfinite(numbers(made.train(table(60)).forecast(table(60)))).all()
