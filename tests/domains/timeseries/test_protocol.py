"""The long-horizon protocol to the row, on tables whose right answers are known; real data where it is."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from titans_domains.timeseries.linear import fit_ridge, moments, predict, solve
from titans_domains.timeseries.protocol import (
    HORIZONS,
    Series,
    borders,
    last_value,
    read_series,
    score,
    seasonal_naive,
)


def table(
    path: Path, rows: int = 60, freq: str = "h", channels: int = 2, bad: str | None = None
) -> Path:
    import pandas

    dates = pandas.date_range("2020-01-01", periods=rows, freq=freq)
    lines = ["date," + ",".join(f"c{i}" for i in range(channels))]
    for row, date in enumerate(dates):
        cells = [str(100 * i + row % (7 + i)) for i in range(channels)]
        if bad is not None and row == 5:
            cells[-1] = bad
        lines.append(f"{date}," + ",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def real(name: str) -> Path:
    folder = os.environ.get("TITANS_DATA")
    path = Path(folder or ".") / "timeseries" / f"{name}.csv"
    if not (folder and path.is_file()):
        pytest.skip(f"TITANS_DATA names no folder with timeseries/{name}.csv")
    return path


def test_the_borders_of_the_public_sets() -> None:
    assert borders("ETTh1", 17420) == (8640, 11520, 14400)
    assert borders("ETTm2", 69680) == (34560, 46080, 57600)
    assert borders("weather", 52696) == (36887, 42157, 52696)
    assert borders("exchange_rate", 7588) == (5311, 6071, 7588)
    assert borders("ETTh1", 100, (0.5, 0.25, 0.25)) == (50, 75, 100)


@pytest.mark.parametrize("lookback", [96, 336])
@pytest.mark.parametrize(
    ("name", "rows", "counts"),
    [
        ("ETTh1", 17420, (2785, 2689, 2545, 2161)),
        ("ETTm1", 69680, (11425, 11329, 11185, 10801)),
        ("weather", 52696, (10444, 10348, 10204, 9820)),
        ("exchange_rate", 7588, (1422, 1326, 1182, 798)),
    ],
)
def test_the_number_of_test_windows(
    name: str, rows: int, counts: tuple[int, ...], lookback: int
) -> None:
    ends = borders(name, rows)
    series = Series(name=name, values=torch.zeros(ends[2], 1), ends=ends, season=None)
    found = tuple(series.windows("test", lookback, horizon).count for horizon in HORIZONS)
    assert found == counts


def numbered(rows: int = 40) -> Series:
    """A series whose values are its rows; 20 to train on, 10 and 10 after them."""
    values = torch.arange(float(rows))[:, None].expand(-1, 2)
    return Series(name="numbered", values=values, ends=(20, 30, 40), season=None)


def test_windows_follow_each_other_and_reach_back_by_a_lookback() -> None:
    series = numbered()
    for split, first, end in (("train", 4, 20), ("valid", 20, 30), ("test", 30, 40)):
        windows = series.windows(split, 4, 3)  # type: ignore[arg-type]
        assert windows.count == end - first - 3 + 1
        past, future = windows.take(torch.arange(windows.count))
        assert past.shape == (windows.count, 4, 2)
        assert future[0, 0, 0] == first
        assert future[-1, -1, 1] == end - 1
        assert torch.equal(past[:, -1] + 1, future[:, 0])
        assert torch.equal(future[1:, 0], future[:-1, 0] + 1)


def test_batches_hold_every_window_once() -> None:
    windows = numbered().windows("test", 4, 3)
    parts = list(windows.batches(3))
    assert [len(past) for past, _ in parts] == [3, 3, 2]
    whole = windows.take(torch.arange(windows.count))
    assert torch.equal(torch.cat([past for past, _ in parts]), whole[0])
    rows = torch.cat([future for _, future in windows.by_channel(5)])
    assert rows.shape == (2 * windows.count, 3)


def test_every_window_counts_whatever_the_batch() -> None:
    windows = numbered().windows("test", 4, 3)
    found = [score(last_value(3), windows, batch=batch) for batch in (1, 3, 100)]
    # A last value is 1, 2 and 3 off.
    assert found == [(14 / 3, 2.0)] * 3
    seen: list[int] = []
    score(last_value(3), windows, batch=3, progress=seen.append)
    assert sum(seen) == windows.count == 8


def test_seasonal_naive_repeats_the_last_season() -> None:
    past = torch.arange(10.0)[None, :, None]
    assert seasonal_naive(7, 3)(past).flatten().tolist() == [7, 8, 9, 7, 8, 9, 7]
    assert last_value(2)(past).flatten().tolist() == [9, 9]


def test_it_standardises_by_the_training_rows_alone(tmp_path: Path) -> None:
    series = read_series(table(tmp_path / "some.csv"), (0.5, 0.25, 0.25))
    known = torch.arange(30).remainder(7).double()
    wanted = (torch.arange(60) % 7 - known.mean()) / known.std(correction=0)
    torch.testing.assert_close(series.values[:, 0], wanted.float())
    assert series.values.shape == (60, 2)
    assert series.ends == (30, 45, 60)


def test_a_constant_column_becomes_zero(tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    path.write_text("date,a\n" + "".join(f"2020-01-{day:02},3.5\n" for day in range(1, 31)))
    assert torch.equal(read_series(path).values, torch.zeros(30, 1))


@pytest.mark.parametrize(("freq", "season"), [("h", 24), ("15min", 96), ("10min", 144), ("D", 7)])
def test_the_season_comes_from_the_dates(tmp_path: Path, freq: str, season: int) -> None:
    assert read_series(table(tmp_path / "some.csv", freq=freq)).season == season


def test_dates_without_a_pattern_have_no_season(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    lines = table(path).read_text().splitlines()
    del lines[7]
    path.write_text("\n".join(lines))
    assert read_series(path).season is None


MISTAKES = {
    r"row 6 of column 'c1' has nan": "",
    r"row 6 of column 'c1' has inf": "inf",
    r"column 'c1' holds something else": "n/k",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_cells_that_are_no_numbers_are_named(tmp_path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series(table(tmp_path / "some.csv", bad=MISTAKES[message]))


def test_stamps_may_repeat_and_not_descend(tmp_path: Path) -> None:
    header, *rows = table(tmp_path / "some.csv").read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([header, *rows[::-1]]))
    with pytest.raises(
        ValueError,
        match=r"row 2 \(2020-01-03 10:00:00\) comes before the row above it .*: sort the rows",
    ):
        read_series(turned)
    turned.write_text("\n".join([header, *rows[:9], rows[8], *rows[9:]]))
    assert read_series(turned).season is None
    turned.write_text("\n".join([header, *rows[:9], rows[9].replace("2020", "soon"), *rows[10:]]))
    with pytest.raises(ValueError, match="row 10: column 'date' must hold a stamp"):
        read_series(turned)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_series(tmp_path / "none.csv")
    with pytest.raises(
        ValueError, match="at least 14400 rows, since its borders are fixed: got 60"
    ):
        read_series(table(tmp_path / "ETTh1.csv"))
    with pytest.raises(ValueError, match=r"sum to 1: got 0.7, 0.1, 0.1"):
        read_series(table(tmp_path / "some.csv"), (0.7, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"shares must be three numbers, .*: got 0\.7,0\.3"):
        read_series(table(tmp_path / "some.csv"), (0.7, 0.3))  # type: ignore[arg-type]
    (tmp_path / "dates.csv").write_text("date\n2020-01-01\n")
    with pytest.raises(ValueError, match="it has one column"):
        read_series(tmp_path / "dates.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv is no table"):
        read_series(tmp_path / "empty.csv")


def test_a_split_too_short_for_its_windows_is_refused() -> None:
    with pytest.raises(
        ValueError, match="look-back of 4 and a horizon of 11 = 15 rows: there are 14"
    ):
        numbered().windows("test", 4, 11)
    with pytest.raises(ValueError, match="20 rows for training, fewer than a look-back of 21"):
        numbered().windows("valid", 21, 3)


def ridge_score(series: Series, lookback: int, horizon: int) -> Tensor:
    train, valid, test = (
        series.windows(split, lookback, horizon)  # type: ignore[arg-type]
        for split in ("train", "valid", "test")
    )
    weight = fit_ridge(moments(train.by_channel()), moments(valid.by_channel())).weight.float()
    return torch.tensor(score(lambda past: predict(weight, past.mT).mT, test))


def test_the_floors_of_etth1() -> None:
    """Against figures that another implementation of the protocol gave, to four digits."""
    series = read_series(real("ETTh1"))
    assert series.season == 24
    test = series.windows("test", 96, 96)
    assert score(seasonal_naive(96, 24), test) == pytest.approx((0.5122, 0.4333), abs=6e-5)
    assert score(last_value(96), test) == pytest.approx((1.2944, 0.7132), abs=6e-5)
    # That one had a bias, which makes little difference at a short horizon.
    assert ridge_score(series, 96, 96).tolist() == pytest.approx((0.3831, 0.3918), abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lookback", "with_bias", "ours"),
    [(96, (0.4405, 0.4294), (0.4382, 0.4273)), (336, (0.4074, 0.4197), (0.4046, 0.4175))],
)
def test_the_average_floors_of_etth1(
    lookback: int, with_bias: tuple[float, float], ours: tuple[float, float]
) -> None:
    """A bias is worse by .003: it learns the trend of the training rows."""
    series = read_series(real("ETTh1"))
    found = torch.stack([ridge_score(series, lookback, horizon) for horizon in HORIZONS])
    assert found.mean(0).tolist() == pytest.approx(ours, abs=6e-5)
    biased = torch.stack([biased_score(series, lookback, horizon) for horizon in HORIZONS])
    assert biased.mean(0).tolist() == pytest.approx(with_bias, abs=6e-5)


def biased_score(series: Series, lookback: int, horizon: int) -> Tensor:
    """The same map with a bias, by a column of ones in the place of the last value, which is 0."""

    def marked(past: Tensor) -> Tensor:
        x = past - past[:, -1:]
        x[:, -1] = 1
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1)

    def batches(split: str) -> list[tuple[Tensor, Tensor]]:
        windows = series.windows(split, lookback, horizon)  # type: ignore[arg-type]
        return [(marked(past), future - past[:, -1:]) for past, future in windows.by_channel()]

    fitted = fit_ridge(moments(batches("train")), moments(batches("valid")))
    weight = solve(moments(batches("train")), fitted.penalty).float()

    def forecast(past: Tensor) -> Tensor:
        rows = past.mT.flatten(0, 1)
        ahead = marked(rows) @ weight.mT + rows[:, -1:]
        return ahead.unflatten(0, (len(past), -1)).mT

    return torch.tensor(score(forecast, series.windows("test", lookback, horizon)))
