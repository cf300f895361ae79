"""Tables become series as they stand, and what cannot is named by its series and row."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_timeseries import HORIZON, numbers, table, untrained

from titans_domains.timeseries.backtesting import backtest
from titans_domains.timeseries.frames import as_dataset, from_table, to_table
from titans_domains.timeseries.plotting import plot


def long() -> pd.DataFrame:
    wide = table(40, 2)
    frame = wide.rename_axis("timestamp").reset_index().melt("timestamp", var_name="item_id")
    return frame.rename(columns={"value": "target"})


def priced() -> pd.DataFrame:
    frame = long()
    return frame.assign(price=np.arange(len(frame)) * 1.0, size=7.0)


def assert_same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one["item_id"], one["start"]) == (other["item_id"], other["start"])
        np.testing.assert_array_equal(one["target"], other["target"])


def test_wide_and_long_and_csv_are_the_same_series(tmp_path: Path) -> None:
    wide = table(40, 2)
    whole = as_dataset(wide)
    assert whole.freq == "h"
    assert [entry["item_id"] for entry in whole] == ["s0", "s1"]
    np.testing.assert_array_equal(whole.entries[1]["target"], wide["s1"].astype("float32"))
    assert whole.entries[1]["target"].dtype == np.float32
    assert_same(whole, as_dataset(long()))
    assert_same(whole, as_dataset(wide.rename_axis("Date").reset_index()))
    wide.to_csv(tmp_path / "wide.csv", index_label="when")
    long().to_csv(tmp_path / "long.csv", index=False)
    assert_same(whole, as_dataset(tmp_path / "wide.csv"))
    assert_same(whole, as_dataset(str(tmp_path / "long.csv")))
    assert_same(as_dataset(wide[["s0"]]), as_dataset(wide["s0"]))


def test_interleaved_series_of_a_long_table_are_told_apart() -> None:
    mixed = long().sort_values(["timestamp", "item_id"], ascending=[True, False])
    assert [entry["item_id"] for entry in as_dataset(mixed)] == ["s1", "s0"]
    assert_same(sorted(as_dataset(mixed), key=lambda e: e["item_id"]), as_dataset(long()))


def test_missing_stamps_are_missing_values() -> None:
    wide = table(40, 1).drop(index=table(40, 1).index[[5, 6, 20]])
    (entry,) = as_dataset(wide)
    assert len(entry["target"]) == 40
    assert np.isnan(entry["target"][[5, 6, 20]]).all()
    np.testing.assert_array_equal(
        np.delete(entry["target"], [5, 6, 20]), wide["s0"].astype("float32")
    )


def test_series_of_a_wide_table_begin_with_their_first_value() -> None:
    wide = table(40, 2)
    wide.iloc[:7, 1] = np.nan
    first, second = as_dataset(wide)
    assert (len(first["target"]), len(second["target"])) == (40, 33)
    assert second["start"] == first["start"] + 7


def test_lengths_and_starts_may_differ_in_a_long_table() -> None:
    frame = long()
    frame = frame[(frame["item_id"] == "s0") | (frame["timestamp"] >= "2024-01-01 09:00")]
    first, second = as_dataset(frame)
    assert (len(first["target"]), len(second["target"])) == (40, 31)
    # Two rows have the frequency of the others.
    short = pd.concat([frame[frame["item_id"] == "s0"], frame[frame["item_id"] == "s1"].head(2)])
    assert len(as_dataset(short).entries[1]["target"]) == 2


@pytest.mark.parametrize(
    ("freq", "alias"), [("ME", "M"), ("MS", "M"), ("QE", "Q-DEC"), ("YE", "Y-DEC")]
)
def test_ends_and_starts_of_periods_are_read_and_forecast(freq: str, alias: str) -> None:
    data = as_dataset(table(40, 1, freq=freq))
    assert data.freq == alias
    told = as_dataset(table(40, 1, freq=freq), freq=freq)
    assert_same(data, told)
    forecast = untrained().forecast(data)
    begin = pd.Period(table(40, 1, freq=freq).index[-1], freq=alias) + 1
    assert forecast["timestamp"].iloc[0] == begin.to_timestamp()


def test_zones_are_read_as_utc() -> None:
    frame = table(30, 1).rename_axis("timestamp").reset_index()
    frame["timestamp"] = [f"{stamp.isoformat()}+02:00" for stamp in frame["timestamp"]]
    (entry,) = as_dataset(frame)
    assert entry["start"] == pd.Period("2023-12-31 22:00", freq="h")
    indexed = table(30, 1).tz_localize("Europe/Berlin")
    assert as_dataset(indexed).entries[0]["start"] == pd.Period("2023-12-31 23:00", freq="h")


def test_covariates_are_columns_of_a_long_table() -> None:
    options = {"feat_dynamic_real": ["price"], "feat_static_real": ["size"]}
    first, second = as_dataset(priced(), **options, future_length=HORIZON)
    assert first["target"].shape == (34,)
    assert first["feat_dynamic_real"].shape == (1, 40)
    assert second["feat_dynamic_real"][0, 0] == 40
    assert second["feat_static_real"].tolist() == [7.0]
    past = as_dataset(
        priced(), past_feat_dynamic_real=["price"], ignored=["size"], future_length=HORIZON
    )
    assert past.entries[0]["past_feat_dynamic_real"].shape == (1, 34)
    assert "feat_static_real" not in past.entries[0]


def test_the_future_is_what_follows_the_last_target() -> None:
    frame = priced()
    frame.loc[frame.index[34:40], "target"] = np.nan
    options = {"feat_dynamic_real": ["price"], "ignored": ["size"]}
    first, second = as_dataset(frame, **options, future_length=None)
    assert [len(e["target"]) for e in (first, second)] == [34, 40]
    assert [e["feat_dynamic_real"].shape for e in (first, second)] == [(1, 40), (1, 40)]


def test_a_column_of_a_wide_table_may_be_ignored() -> None:
    assert_same(as_dataset(table(40, 3), ignored=["s1"]), as_dataset(table(40, 3)[["s0", "s2"]]))


def test_columns_may_be_channels_of_one_series() -> None:
    (entry,) = as_dataset(table(40, 3), channels=True)
    assert entry["target"].shape == (3, 40)
    forecast = untrained(channels=3).forecast([entry], quantiles=[0.5])
    assert list(forecast["item_id"].unique()) == ["s0", "s1", "s2"]
    assert len(forecast) == 3 * HORIZON


def test_forecasts_become_a_table_of_what_they_say() -> None:
    predictor, data = untrained(), as_dataset(table())
    forecasts = list(predictor.predict(data))
    frame = to_table(forecasts, [0.1, 0.9])
    assert list(frame) == ["item_id", "timestamp", "mean", "0.1", "0.9"]
    np.testing.assert_array_equal(frame["mean"][:HORIZON], forecasts[0].mean)
    np.testing.assert_array_equal(frame["0.9"][-HORIZON:], forecasts[2].quantile(0.9))
    stamps = pd.date_range("2024-01-03 12:00", periods=HORIZON, freq="h")
    assert list(frame["timestamp"][:HORIZON]) == list(stamps)
    np.testing.assert_array_equal(numbers(predictor.forecast(table()))[:, 0], frame["mean"])
    assert list(to_table([], [0.5])) == ["item_id", "timestamp", "mean", "0.5"]


def test_a_mean_of_quantiles_is_the_median_without_a_word(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    frame = untrained(output="quantiles").forecast(table())
    assert frame["mean"].equals(frame["0.5"])
    plot(untrained(output="quantiles").predict(table()))
    backtest(untrained(output="quantiles"), table(60), windows=1)
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))
    assert not np.allclose(
        *untrained(output="student_t").forecast(table())[["mean", "0.1"]].to_numpy().T
    )


def changed(row: int, column: str, value: Any) -> pd.DataFrame:
    frame = long().astype({column: object})
    frame.loc[row, column] = value
    return frame


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no rows": (table(1).iloc[:0], {}, "The table has no rows"),
    "twice": (
        table(9, 1).iloc[[0, 1, 2, 2, 3]], {},
        r"series 's0', row 4 \(2024-01-01 02:00:00\) has the stamp of the row before again",
    ),
    "disorder": (
        table(9, 1).iloc[[0, 1, 3, 2]], {},
        r"series 's0', row 4 \(2024-01-01 02:00:00\) comes before the row above it",
    ),
    "disorder in the second": (
        pd.concat([long(), long().tail(1)]), {}, r"series 's1', row 41 \(2024-01-02 15:00:00\)",
    ),
    "no frequency": (table(9, 1).iloc[[0]], {}, "No frequency can be inferred from the 1 stamps of ser"),
    "stamp": (changed(3, "timestamp", "soon"), {}, "row 4: column 'timestamp' must hold a stamp"),
    "no stamp": (changed(3, "timestamp", None), {}, "row 4: column 'timestamp' must hold a stamp"),
    "numbers for stamps": (
        pd.DataFrame({"t": [1, 2, 3], "x": [1.0, 2.0, 3.0]}), {}, "must have stamps .* in column 't'",
    ),
    "text": (
        changed(45, "target", "much"), {},
        r"series 's1', row 6 \(2024-01-01 05:00:00\): column 'target' must hold a finite .* 'much'",
    ),
    "infinite": (changed(2, "target", np.inf), {}, r"series 's0', row 3 .* got inf"),
    "no item": (changed(2, "item_id", None), {}, "row 3: column 'item_id' is empty"),
    "covariate absent": (long(), {"feat_dynamic_real": ["prize"]}, "no column 'prize', which was named"),
    "covariate of a wide table": (table(), {"feat_dynamic_real": ["s1"]}, "covariates need a long one"),
    "undeclared": (
        priced(), {"feat_static_real": ["size"]}, "has a column 'target', and .* its column 'price' is: name",
    ),
    "a series called target": (
        table(9, 2).set_axis(["load", "target"], axis=1), {}, "its column 'load' is: .* or rename 'target'",
    ),
    "nothing to ignore": (table(9), {"ignored": ["x"]}, "no column 'x', which was to be ignored"),
    "two months": (table(2, 1, freq="MS"), {}, "No frequency can be inferred from the 2 stamps"),
    "no such column": (long(), {"timestamp": "when"}, "no column 'when': there are timestamp, item_id"),
    "freq": (table(), {"freq": "often"}, "freq must be a pandas frequency"),
    "other freq": (table(), {"freq": "2h"}, r"series 's0', row 2 .* grid of '2h'"),
    "future": (table(9), {"future_length": 9}, "series 's0' has 9 rows, and the last future_length = 9"),
    "names": (table(9, 2).set_axis(["x", "x"], axis=1), {}, "two columns 'x'"),
    "stamps alone": (table(9, 1)[[]].reset_index(), {}, "no other: there is no series in it"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "options", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(data: pd.DataFrame, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_dataset(data, **options)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        as_dataset(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv is empty"):
        as_dataset(tmp_path / "empty.csv")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match=r"ragged\.csv is no CSV table"):
        as_dataset(tmp_path / "ragged.csv")
    with pytest.raises(ValueError, match="freq is for tables"):
        as_dataset([{}], freq="h")


@pytest.mark.parametrize(
    "quantiles", [[0], [1.0], [0.5, 2], [-1], [float("nan")], "0.5", 0.5, [], ["a"]]
)
def test_quantiles_that_are_none_are_refused(quantiles: Any) -> None:
    with pytest.raises(ValueError, match="quantiles must be a list of numbers between 0 and 1"):
        to_table([], quantiles)


def test_a_known_future_is_what_stands_after_the_last_target() -> None:
    stamps = pd.date_range("2026-01-01", periods=6, freq="h")
    table = pd.DataFrame(
        {"timestamp": stamps, "target": [1.0, 2, 3, 4, None, None], "promo": range(6)}
    )
    (one,) = from_table(table, feat_dynamic_real="promo")
    assert one["target"].tolist() == [1, 2, 3, 4]
    assert one["feat_dynamic_real"].tolist() == [[0, 1, 2, 3, 4, 5]]
    # Without such a column they are missing.
    (one,) = from_table(table, ignored="promo")
    assert len(one["target"]) == 6
