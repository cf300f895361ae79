"""The long-horizon protocol: borders to the row, every window, and plain means.

T rows, C channels, L steps of look-back, H of horizon, B windows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from titans_domains.timeseries.columns import find_stamps

if TYPE_CHECKING:
    import pandas

Split = Literal["train", "valid", "test"]
Forecaster = Callable[[Float[Tensor, "B L C"]], Float[Tensor, "B H C"]]

HORIZONS = (96, 192, 336, 720)
LOOKBACKS = (96, 336, 512, 720)
SHARES = (0.7, 0.1, 0.2)

HOURS = (8640, 11520, 14400)  # 12, 4 and 4 months of 30 days; the rows after them are not used
FIXED = {"ETTh": HOURS, "ETTm": tuple(4 * row for row in HOURS)}

SEASONS = {"h": 24, "30min": 48, "15min": 96, "10min": 144, "D": 7, "B": 5, "W": 52, "MS": 12}
"""Steps of a season, by pandas' name of the frequency."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A table of channels, standardised by its training rows."""

    name: str
    values: Float[Tensor, "T C"]
    ends: tuple[int, int, int]  # of the rows for training, validation and test
    season: int | None

    def region(self, split: Split, lookback: int) -> Float[Tensor, "T C"]:
        """The rows of a split; validation and test reach back by a look-back."""
        at = ("train", "valid", "test").index(split)
        begin = 0 if at == 0 else self.ends[at - 1] - lookback
        if begin < 0:
            raise ValueError(
                f"{self.name} has {self.ends[0]} rows for training, fewer than a look-back of "
                f"{lookback}: choose a shorter one."
            )
        return self.values[begin : self.ends[at]]

    def windows(self, split: Split, lookback: int, horizon: int) -> "Windows":
        """Every window of a split with what follows it, at stride 1."""
        rows = self.region(split, lookback)
        if len(rows) < lookback + horizon:
            raise ValueError(
                f"The {split} rows of {self.name} must hold a look-back of {lookback} and a horizon "
                f"of {horizon} = {lookback + horizon} rows: there are {len(rows)}."
            )
        # [windows, C, L + H], a view of the table: nothing is copied before a batch is taken.
        return Windows(rows.contiguous().unfold(0, lookback + horizon, 1), lookback)


@dataclass(frozen=True)
class Windows:
    whole: Float[Tensor, "n C LH"]
    lookback: int

    @property
    def count(self) -> int:
        return len(self.whole)

    def take(
        self, index: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B H C"]]:
        """Windows and what follows them."""
        chosen = self.whole[index].mT
        return chosen[:, : self.lookback], chosen[:, self.lookback :]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order; the last batch may be short."""
        for index in torch.arange(self.count).split(size):
            yield self.take(index)

    def by_channel(self, size: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, every channel a window [n, L] of its own."""
        for past, future in self.batches(size):
            yield past.mT.flatten(0, 1), future.mT.flatten(0, 1)


def read_series(path: Path, shares: tuple[float, float, float] | None = None) -> Series:
    """A CSV file with a date, which never descends, and then one column per channel.

    The borders are fixed rows for files named ETTh* and ETTm*, and else shares (train, valid, test) of
    all rows. Standardised by mean and standard deviation (ddof 0) of the training rows.
    """
    import pandas

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        # Names of columns in another encoding, as in weather.csv, are only shown.
        table = pandas.read_csv(path, encoding_errors="replace")
    except ValueError as error:
        raise ValueError(f"{path} is no table of comma-separated values: {error}.") from None
    columns = table.columns[1:]
    odd = [str(name) for name in columns if not pandas.api.types.is_numeric_dtype(table[name])]
    if odd or not len(columns):
        raise ValueError(
            f"{path} must have a date and then columns of numbers: "
            + (f"column {odd[0]!r} holds something else." if odd else "it has one column.")
        )
    stamps, _ = find_stamps(table, table.columns[0], str(path))
    _check_order(path, stamps)
    values = torch.from_numpy(table[columns].to_numpy("float64", copy=True))
    _check_finite(path, values, list(columns))
    ends = borders(path.stem, len(values), shares)
    known = values[: ends[0]]
    spread = known.std(0, correction=0)
    # As scikit-learn has it: a constant column stays as it is, less its mean.
    scaled = (values - known.mean(0)) / spread.where(spread > 0, 1.0)
    return Series(
        name=path.stem,
        values=scaled[: ends[2]].float(),
        ends=ends,
        season=_season(stamps),
    )


def borders(
    name: str, rows: int, shares: tuple[float, float, float] | None = None
) -> tuple[int, int, int]:
    """Where training, validation and test end."""
    fixed = next((ends for start, ends in FIXED.items() if name.startswith(start)), None)
    if fixed is not None and shares is None:
        if rows < fixed[2]:
            raise ValueError(
                f"{name} must have at least {fixed[2]} rows, since its borders are fixed: got {rows}. "
                "Give shares of all rows instead, such as 0.7,0.1,0.2."
            )
        return fixed[0], fixed[1], fixed[2]
    if shares is not None and len(shares) != 3:
        raise ValueError(
            "shares must be three numbers, of training, validation and test, such as 0.7,0.1,0.2: got "
            f"{','.join(f'{share:g}' for share in shares)}."
        )
    train, valid, test = shares or SHARES
    if min(train, valid, test) <= 0 or not math.isclose(train + valid + test, 1):
        raise ValueError(
            f"The shares of training, validation and test must be positive and sum to 1: got "
            f"{train:g}, {valid:g}, {test:g}."
        )
    # Truncated as the public loaders do: validation has what the others leave.
    return int(rows * train), rows - int(rows * test), rows


def _check_finite(path: Path, values: Tensor, columns: Sequence[str]) -> None:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{path} must hold a finite number everywhere: row {row + 1} of column "
            f"{columns[column]!r} has {values[row, column].item()}."
        )


def _check_order(path: Path, stamps: "pandas.DatetimeIndex") -> None:
    """Equal stamps may follow each other: weather.csv has some."""
    back = stamps.asi8[1:] < stamps.asi8[:-1]
    if back.any():
        row = int(back.argmax()) + 1
        raise ValueError(
            f"{path}, row {row + 1} ({stamps[row]}) comes before the row above it ({stamps[row - 1]}): sort "
            "the rows."
        )


def _season(stamps: "pandas.DatetimeIndex") -> int | None:
    """Steps of a season, from the spacing of the stamps; None where it is not known."""
    import pandas

    try:
        frequency = pandas.infer_freq(stamps)
    except (TypeError, ValueError):
        return None
    return SEASONS.get((frequency or "").split("-")[0])


class Score(NamedTuple):
    mse: float
    mae: float


@torch.no_grad()
def score(
    forecast: Forecaster,
    windows: Windows,
    *,
    batch: int = 256,
    progress: Callable[[int], None] = lambda windows: None,
) -> Score:
    """Plain means over window, step and channel: every window counts, the last batch's too."""
    squares, sizes, count = 0.0, 0.0, 0
    for past, future in windows.batches(batch):
        errors = (forecast(past) - future).double()
        squares += errors.square().sum().item()
        sizes += errors.abs().sum().item()
        count += errors.numel()
        progress(len(past))
    return Score(squares / count, sizes / count)


def last_value(horizon: int) -> Forecaster:
    return lambda past: past[:, -1:].expand(-1, horizon, -1)


def seasonal_naive(horizon: int, season: int) -> Forecaster:
    """The last season over and over."""
    ahead = torch.arange(horizon) % season - season
    return lambda past: past[:, ahead]
