"""Frequencies are inferred through gaps, and named as periods are."""

import pandas as pd
import pytest

from titans_domains.timeseries.frequency import infer_freq, on_grid, period_alias

GAPS = [3, 4, 9, 17, 25, 26, 31]
ALIASES = {
    "h": "h", "15min": "15min", "D": "D", "W-TUE": "W-TUE", "s": "s", "2h": "2h", "30D": "30D",
    "ME": "M", "MS": "M", "2ME": "2M", "BME": "M", "QE-DEC": "Q-DEC", "QS-OCT": "Q-SEP",
    "YE-MAR": "Y-MAR", "YS-APR": "Y-MAR",
}  # fmt: skip


@pytest.mark.parametrize(("freq", "alias"), ALIASES.items())
def test_a_frequency_is_inferred_with_stamps_missing(freq: str, alias: str) -> None:
    stamps = pd.date_range("2020-01-03", periods=40, freq=freq)
    assert period_alias(freq) == alias
    assert infer_freq(stamps) == alias
    holes = stamps.delete(GAPS)
    assert infer_freq(holes) == alias
    assert len(on_grid(holes, alias, "x")) == 40 - len(GAPS)


@pytest.mark.parametrize(("old", "new"), [("H", "h"), ("T", "min"), ("5T", "5min"), ("A", "Y")])
def test_older_names_are_known(old: str, new: str) -> None:
    assert period_alias(old) == new


def test_business_days_work_without_a_warning() -> None:
    stamps = pd.date_range("2024-01-01", periods=20, freq="B")
    assert infer_freq(stamps) == "B"
    assert len(on_grid(stamps, "B", "x")) == 20


def test_two_stamps_are_a_step_apart_and_nothing_fits_disorder() -> None:
    assert infer_freq(pd.DatetimeIndex(["2024-01-01", "2024-01-02"])) == "D"
    assert infer_freq(pd.DatetimeIndex(["2024-01-01"])) is None
    # Two months, or a step of 31 days.
    assert infer_freq(pd.DatetimeIndex(["2024-01-01", "2024-02-01"])) is None
    assert infer_freq(pd.DatetimeIndex(["2023-01-01", "2024-01-01"])) is None
    odd = pd.DatetimeIndex(["2024-01-01", "2024-01-02 07:13", "2024-01-05 01:00:01"])
    assert infer_freq(odd) is None


@pytest.mark.parametrize("freq", ["foo", "", "5", "h-XXX", "os.system"])
def test_what_is_no_frequency_is_refused(freq: str) -> None:
    with pytest.raises(ValueError, match="freq must be a pandas frequency"):
        period_alias(freq)


def test_a_stamp_beside_the_grid_is_named_by_its_row() -> None:
    stamps = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:30"])
    with pytest.raises(ValueError, match=r"x, row 3 \(2024-01-01 02:30:00\) does not stand on"):
        on_grid(stamps, "h", "x")
    months = pd.DatetimeIndex(["2024-01-01", "2024-02-01", "2024-02-28"])
    with pytest.raises(ValueError, match="x, row 3"):
        on_grid(months, "M", "x")


def test_a_stamp_of_another_century_does_not_fill_the_memory() -> None:
    stamps = pd.DatetimeIndex(["1924-01-01", "2024-01-01"])
    with pytest.raises(ValueError, match=r"x has 2 rows in 876\d+ steps"):
        on_grid(stamps, "h", "x")
