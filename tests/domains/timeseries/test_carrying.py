"""A predictor that reads on: pieces equal the whole, and what is carried does not grow."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_timeseries import CONTEXT, HORIZON, PATCH, entry, estimator, numbers, table, untrained

from titans_core.state import named_tensors
from titans_domains.timeseries.carrying import CarryingPredictor
from titans_domains.timeseries.predictor import TitansPredictor

CLOSE = {"rtol": 1e-5, "atol": 1e-4}
CUTS = {
    "one by one at the start": [0, 1, 2, 3, 4, 5, 60],
    "before, at and after the context": [0, 19, 20, 21, 60],
    "inside patches": [0, 7, 26, 27, 43, 59, 60],
    "on the grid": [0, 20, 24, 40, 60],
    "sevens": [*range(0, 60, 7), 60],
}
MIXERS = ["lmm", "mac", "mag", "mal", "mac+mal"]


def fed(predictor: TitansPredictor, data: pd.DataFrame, cuts: Sequence[int]) -> CarryingPredictor:
    carrying = predictor.carry()
    for first, last in pairwise(cuts):
        carrying.update(data.iloc[first:last], freq="h")
    return carrying


def of_context(length: int) -> TitansPredictor:
    made = estimator(context_length=length, patch_len=PATCH)
    predictor = made.create_predictor(None, made.create_lightning_module())
    torch.nn.init.normal_(predictor.module.model.network.head.weight, std=0.1)
    return predictor


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("context", [20, 23])
def test_pieces_are_read_as_the_whole(cuts: list[int], context: int) -> None:
    predictor = untrained(lags_seq=(1, 26), freq="h", time_features=("hour_of_day",))
    if context != CONTEXT:
        predictor = of_context(context)
    whole = fed(predictor, table(60), [0, 60]).forecast()
    np.testing.assert_allclose(
        numbers(fed(predictor, table(60), cuts).forecast()), numbers(whole), **CLOSE
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_reads_on(mixer: str) -> None:
    predictor = untrained(mixer=mixer)
    pieces = fed(predictor, table(60), [0, 25, 26, 41, 60])
    np.testing.assert_allclose(
        numbers(pieces.forecast()), numbers(fed(predictor, table(60), [0, 60]).forecast()), **CLOSE
    )


@pytest.mark.parametrize("mixing", ["none", "channels"])
def test_channels_are_carried_together(mixing: str) -> None:
    predictor = untrained(channels=3, mixing=mixing)
    whole, pieces = predictor.carry(), predictor.carry()
    whole.update(table(60), channels=True)
    for first, last in ((0, 31), (31, 60)):
        pieces.update(table(60).iloc[first:last], channels=True)
    assert list(pieces.forecast()["item_id"].unique()) == ["s0", "s1", "s2"]
    np.testing.assert_allclose(numbers(pieces.forecast()), numbers(whole.forecast()), **CLOSE)


def test_the_first_context_is_forecast_as_a_window() -> None:
    predictor = untrained()
    for rows in (1, 13, CONTEXT):
        carried = fed(predictor, table(60), [0, rows]).forecast()
        window = predictor.forecast(table(60).iloc[:rows], freq="h")
        pd.testing.assert_frame_equal(carried, window, rtol=1e-5)
    later = fed(predictor, table(60), [0, 60]).forecast()
    assert not np.allclose(numbers(later), numbers(predictor.forecast(table(60))), atol=0.01)


def constant_at_first(rows: int, missing: slice = slice(0)) -> pd.DataFrame:
    wide = table(120, 2)
    wide.iloc[:rows, 0] = 100.0
    wide.iloc[missing, 0] = np.nan
    return wide


@pytest.mark.parametrize(
    "wide",
    [constant_at_first(CONTEXT), constant_at_first(55), constant_at_first(47, slice(20, 45))],
    ids=["a context", "more", "missing then"],
)
@pytest.mark.parametrize("context", [20, 23])
def test_a_stream_begins_when_it_has_a_scale(wide: pd.DataFrame, context: int) -> None:
    predictor = untrained() if context == CONTEXT else of_context(context)
    whole = fed(predictor, wide, [0, 120])
    for cuts in ([0, *range(16, 64, 3), 120], [0, 31, 47, 66, 120], [0, 20, 21, 60, 120]):
        pieces = fed(predictor, wide, cuts)
        assert [s.written for s in pieces.streams.values()] == [
            s.written for s in whole.streams.values()
        ]
        np.testing.assert_allclose(numbers(pieces.forecast()), numbers(whole.forecast()), **CLOSE)
    carried, window = (
        f[f["item_id"] == "s0"] for f in (whole.forecast(), predictor.forecast(wide))
    )
    assert (carried["0.9"] - carried["0.1"]).mean() > 0.3 * (window["0.9"] - window["0.1"]).mean()
    scale = whole.streams["s0"].scale.item()
    assert 0.5 < scale / wide["s0"].iloc[60:].std() < 2
    # Another series does not wait for it.
    alone = fed(predictor, wide[["s1"]], [0, 120]).forecast()
    both = whole.forecast()
    np.testing.assert_allclose(numbers(both[both["item_id"] == "s1"]), numbers(alone), **CLOSE)


@pytest.mark.parametrize("context", [20, 23])
def test_a_stream_that_begins_late_is_as_one_begun_there(context: int) -> None:
    predictor = untrained() if context == CONTEXT else of_context(context)
    wide = constant_at_first(55)[["s0"]]
    # The first row that varies is the last one of half a context.
    begun = predictor.carry()
    begun.update(wide.iloc[55 - context // 2 + 1 :])
    np.testing.assert_allclose(
        numbers(fed(predictor, wide, [0, 120]).forecast()), numbers(begun.forecast()), **CLOSE
    )


def test_until_then_it_is_a_window_and_does_not_grow() -> None:
    predictor = untrained(lags_seq=(3,))
    flat = table(300, 1).assign(s0=7.0)
    carrying = fed(predictor, flat, [0, 60])
    size = carrying.state_bytes()
    carrying.update(flat.iloc[60:300])
    assert carrying.state_bytes() == size
    pd.testing.assert_frame_equal(carrying.forecast(), predictor.forecast(flat), rtol=1e-5)
    silent = flat.assign(s0=np.nan).iloc[:CONTEXT].shift(300, freq="h")
    carrying.update(silent)
    with pytest.raises(ValueError, match=f"series 's0' has no value in its last {CONTEXT} rows"):
        carrying.predict()


def test_a_stream_of_channels_waits_for_each_of_them() -> None:
    predictor = untrained(channels=2)
    carrying = predictor.carry()
    carrying.update(constant_at_first(55), channels=True)
    (stream,) = carrying.streams.values()
    assert (stream.scale > 0.5).all()
    early = predictor.carry()
    early.update(constant_at_first(55).iloc[:50], channels=True)
    window = predictor.forecast(constant_at_first(55).iloc[:50], channels=True)
    pd.testing.assert_frame_equal(early.forecast(), window, rtol=1e-5)


def test_without_scaling_nothing_waits() -> None:
    made = estimator(scaling=None)
    predictor = made.create_predictor(None, made.create_lightning_module())
    carrying = fed(predictor, constant_at_first(55), [0, CONTEXT])
    assert all(stream.loc is not None for stream in carrying.streams.values())


def test_what_is_read_changes_the_forecast_and_stays() -> None:
    predictor = untrained()
    wild = table(60)
    wild.iloc[22:30] += 20
    calm, stirred = (fed(predictor, t, [0, 60]).forecast() for t in (table(60), wild))
    # Those rows left the last window long ago; the memory alone knows of them.
    assert 60 - CONTEXT > 30
    assert not np.allclose(numbers(calm), numbers(stirred), atol=1e-3)


def test_a_frozen_memory_stays_and_the_window_goes_on() -> None:
    predictor = untrained()
    carrying = fed(predictor, table(90), [0, 40])
    before = {k: v.clone() for k, v in memory_of(carrying).items()}
    carrying.freeze()
    carrying.update(table(90).iloc[40:70])
    after = memory_of(carrying)
    assert all(torch.equal(before[name], after[name]) for name in before)
    one = numbers(carrying.forecast())
    other = table(90)
    other.iloc[60:70] += 3
    moved = fed(predictor, other, [0, 40])
    moved.freeze()
    moved.update(other.iloc[40:70])
    assert not np.allclose(one, numbers(moved.forecast()), atol=0.1)
    carrying.freeze(False)
    carrying.update(table(90).iloc[70:90])
    assert any(not torch.equal(before[k], v) for k, v in memory_of(carrying).items())


def memory_of(carrying: CarryingPredictor) -> dict[str, torch.Tensor]:
    found = {}
    for item, stream in carrying.streams.items():
        states = named_tensors(stream.state.backbone)
        found |= {f"{item}.{k}": v for k, v in states.items() if "memory" in k and v.ndim > 1}
    assert found
    return found


def test_what_is_carried_does_not_grow() -> None:
    carrying = fed(untrained(lags_seq=(3,)), table(400), [0, 60])
    size = carrying.state_bytes()
    carrying.update(table(400).iloc[60:200])
    carrying.update(table(400).iloc[200:400])
    assert carrying.state_bytes() == size
    assert all(1 <= stream.waiting <= PATCH for stream in carrying.streams.values())


def test_predicting_writes_nothing() -> None:
    carrying = fed(untrained(), table(60), [0, 50])
    first = numbers(carrying.forecast())
    np.testing.assert_array_equal(numbers(carrying.forecast()), first)
    carrying.update(table(60).iloc[50:])
    other = fed(untrained(), table(60), [0, 50, 60])
    np.testing.assert_allclose(numbers(carrying.forecast()), numbers(other.forecast()), **CLOSE)


def test_series_begin_and_grow_on_their_own() -> None:
    predictor = untrained()
    wide = table(60)
    together = predictor.carry()
    together.update(wide[["s0"]].iloc[:33])
    together.update(wide[["s1"]].iloc[10:47])
    together.update(wide[["s0"]].iloc[33:60])
    together.update(wide[["s2"]].iloc[:5])
    found = {f.item_id: f.mean for f in together.predict()}
    for name, rows in (("s0", slice(60)), ("s1", slice(10, 47)), ("s2", slice(5))):
        alone = predictor.carry()
        alone.update(wide[[name]].iloc[rows])
        np.testing.assert_allclose(found[name], alone.predict()[0].mean, **CLOSE)
    (only,) = together.predict(["s1"])
    np.testing.assert_allclose(only.mean, found["s1"], **CLOSE)


def test_steps_that_were_not_given_are_missing() -> None:
    wide = table(60)
    wide.iloc[40:44] = np.nan
    explicit = fed(untrained(), wide, [0, 60])
    skipped = untrained().carry()
    skipped.update(wide.iloc[:40])
    skipped.update(wide.iloc[44:])
    np.testing.assert_allclose(numbers(skipped.forecast()), numbers(explicit.forecast()), **CLOSE)
    silent = fed(untrained(), wide, [0, 40, 44, 60])
    np.testing.assert_allclose(numbers(silent.forecast()), numbers(explicit.forecast()), **CLOSE)


def known(first: int, last: int, ahead: int) -> dict[str, Any]:
    feature = np.sin(np.arange(200.0) / 3)[None]
    whole = entry(100)
    return {
        **whole,
        "start": whole["start"] + first,
        "target": whole["target"][first:last],
        "feat_dynamic_real": feature[:, first : last + ahead],
    }


def test_known_features_are_read_with_their_rows() -> None:
    predictor = untrained(num_feat_dynamic_real=1)
    whole, pieces = predictor.carry(), predictor.carry()
    whole.update([known(0, 60, HORIZON)])
    pieces.update([known(0, 25, 0)])
    with pytest.raises(
        ValueError, match="'feat_dynamic_real' for 6 steps .* has it for 0: give it"
    ):
        pieces.predict()
    pieces.update([known(25, 60, HORIZON + 3)])
    np.testing.assert_allclose(whole.predict()[0].mean, pieces.predict()[0].mean, **CLOSE)
    (window,) = predictor.predict([known(0, 60, HORIZON)])
    short = predictor.carry()
    short.update([known(60 - CONTEXT, 60, HORIZON)])
    np.testing.assert_allclose(short.predict()[0].mean, window.mean, **CLOSE)


@pytest.mark.parametrize("mixer", ["lmm", "mag"])
def test_it_is_saved_and_goes_on_bit_for_bit(tmp_path: Path, mixer: str) -> None:
    carrying = fed(untrained(mixer=mixer, lags_seq=(2,)), table(90), [0, 50])
    carrying.update(table(90)[["s0"]].iloc[50:63])
    late = table(90)[["s1"]].iloc[:9].set_axis(["late"], axis=1)
    carrying.update(late)
    carrying.save(tmp_path / "kept")
    again = CarryingPredictor.load(tmp_path / "kept")
    for _ in range(2):
        np.testing.assert_array_equal(numbers(again.forecast()), numbers(carrying.forecast()))
        for one in (again, carrying):
            one.update(table(90)[["s0"]].iloc[63:90] if _ == 0 else late.shift(9, freq="h"))
    np.testing.assert_array_equal(numbers(again.forecast()), numbers(carrying.forecast()))
    carrying.freeze()
    carrying.save(tmp_path / "kept", force=True)
    assert CarryingPredictor.load(tmp_path / "kept").frozen
    window = TitansPredictor.load(tmp_path / "kept")
    np.testing.assert_array_equal(
        numbers(window.forecast(table())), numbers(carrying.predictor.forecast(table()))
    )
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_training_on_streams_knows_their_losses() -> None:
    """The loss of a stream is that of the forecasts which a carrying predictor makes along it."""
    predictor = untrained(output="mse")
    whole = table(20 + 3 * PATCH + HORIZON, 1).interpolate()
    model = predictor.module.model
    target = torch.from_numpy(whole.to_numpy(np.float32))[None]
    with torch.no_grad():
        loss = model.stream_loss({"target": target})
    carrying, errors = predictor.carry(), []
    end = 0
    for origin in range(CONTEXT, len(whole) - HORIZON + 1, PATCH):
        carrying.update(whole.iloc[end:origin])
        (forecast,) = carrying.predict()
        scale = next(iter(carrying.streams.values())).scale.item()
        errors.append(
            np.mean(((forecast.mean - whole["s0"][origin : origin + HORIZON]) / scale) ** 2)
        )
        end = origin
    assert len(errors) == 4
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_carrying_predictor_is_trained_on_streams() -> None:
    made = estimator(carry=True, carry_length=10)
    trained = made.train(table(60).iloc[:48], table(60))
    assert trained.module.carry
    assert made._windows([entry_arrays(60)]).past == CONTEXT + 8
    assert made._windows([entry_arrays(CONTEXT + HORIZON + 5)]).past == CONTEXT + 4
    assert np.isfinite(numbers(fed(trained, table(60), [0, 60]).forecast())).all()


def test_short_series_are_trained_on_streams_too() -> None:
    lengths = {"long": 120, "middle": 40, "short": CONTEXT + 3, "late": 60}
    entries = [entry(n, item_id=item, seed=n) for item, n in lengths.items()]
    entries[3]["target"][: CONTEXT + 5] = np.nan
    made = estimator(carry=True, num_validation_windows=1000)
    module = made.create_lightning_module()
    prepared = list(made.create_transformation().apply(entries, is_train=True))
    training = made.create_training_data_loader(prepared, module)
    validation = made.create_validation_data_loader(prepared, module)
    for places in (training.places, validation.places):
        assert set(places.series.tolist()) == {0, 1, 2, 3}
        for number, one in enumerate(entries):
            for place in (places.series == number).nonzero()[:, 0]:
                target = places.batch(place[None])["target"]
                assert module.model.stream_loss({"target": target}) > 0
            if number == 0:
                continue
            # All of the series from its first value on, then nothing; before it, if it has no context.
            whole = torch.from_numpy(one["target"][~np.isnan(one["target"]).cumprod().astype(bool)])
            missing = max(0, CONTEXT + HORIZON - len(whole))
            assert target[0, :missing].isnan().all()
            rows = target[0, missing : missing + len(whole), 0]
            torch.testing.assert_close(rows, whole.float(), equal_nan=True)
            assert target[0, missing + len(whole) :].isnan().all()


def entry_arrays(length: int) -> Any:
    from titans_domains.timeseries.series import SeriesSpec, arrays

    return arrays(entry(length), SeriesSpec(prediction_length=HORIZON, context_length=CONTEXT))


def test_mistakes_leave_all_as_it_was() -> None:
    carrying = fed(untrained(), table(60), [0, 50])
    before = numbers(carrying.forecast())
    wide = table(60)
    infinite = wide.iloc[50:].assign(s2=np.inf)
    mistakes: dict[str, Any] = {
        "begins at 2024-01-03 00:00, and the next row is that of 2024-01-03 02:00": wide.iloc[48:],
        "series 's2', row 1": infinite,
        "at least one series: got none": [],
        "is there twice": [entry(5, item_id="new"), entry(5, item_id="new")],
        "begins without a value": [entry(target=[np.nan] * 5, item_id="new")],
        "has the frequency 'D', and was begun with 'h'": [
            entry(item_id="s0", start=pd.Period("2024-01-05", freq="D"))
        ],
        "was not told": [entry(item_id="new", feat_static_real=[1.0])],
    }
    for sentence, data in mistakes.items():
        with pytest.raises(ValueError, match=sentence):
            carrying.update(data)
        assert len(carrying.streams) == 3
        np.testing.assert_array_equal(numbers(carrying.forecast()), before)
    with pytest.raises(ValueError, match="There is no series 'x'"):
        carrying.predict(["x"])
    with pytest.raises(ValueError, match="nothing to forecast yet"):
        untrained().carry().predict()
    with pytest.raises(ValueError, match="must not grow"):
        untrained(mixer="attention").carry()
