"""The embedded data set: hourly series with a trend, two seasons, level shifts and missing values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

START = "2024-01-01"
DAY, WEEK = 24, 168
SOURCE = "generated"
"""The name of this set where a file may stand too."""


def generate(
    seed: int = 0,
    *,
    num_series: int = 8,
    length: int = 12 * WEEK,
    shifts: float = 3.0,
    missing: float = 0.02,
) -> pd.DataFrame:
    """A wide table with one column of float64 for each series; the same for the same arguments.

    value = level + trend + daily and weekly season + shifts + noise. A season has two harmonics of its
    own phase and size, and the daily one is weaker on two days of the week. `shifts` is the number of
    level shifts that a series has on average, each as large as the daily season or so, at places of
    its own. The noise is autocorrelated (.6 from hour to hour). A share `missing` of the values is
    NaN, half of it single hours and half of it gaps of up to a day.
    """
    import pandas as pd

    for name, value in (("num_series", num_series), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}.")
    if shifts < 0 or not 0 <= missing < 1:
        raise ValueError(
            "shifts must be 0 or more and missing at least 0 and below 1: got "
            f"{shifts} and {missing}."
        )
    index = pd.date_range(START, periods=length, freq="h", name="timestamp")
    columns = {}
    for number, child in enumerate(np.random.SeedSequence(seed).spawn(num_series)):
        random = np.random.default_rng(child)
        values = one_series(random, length, shifts)
        values[gaps(random, length, missing)] = np.nan
        columns[f"series-{number}"] = values
    return pd.DataFrame(columns, index=index)


def one_series(random: np.random.Generator, length: int, shifts: float) -> np.ndarray:
    """One series without its gaps, [length]."""
    hours = np.arange(length)
    size = np.exp(random.normal(2.0, 0.6))
    weekend = (hours // DAY) % 7 >= 5
    daily = season(random, hours, DAY) * np.where(weekend, random.uniform(0.3, 0.8), 1.0)
    values = daily + 0.5 * season(random, hours, WEEK)
    values += random.normal(0, 1.0) * hours / (8 * WEEK)
    for place in random.integers(0, length, random.poisson(shifts)):
        values[place:] += random.choice([-1, 1]) * random.uniform(0.8, 2.0)
    return size * (values + random.uniform(5, 15) + noise(random, length))


def season(random: np.random.Generator, hours: np.ndarray, period: int) -> np.ndarray:
    """Two harmonics of a period, the first of size 1."""
    first, second = random.uniform(0, 2 * np.pi, 2)
    angle = 2 * np.pi * hours / period
    return np.sin(angle + first) + random.uniform(0.2, 0.6) * np.sin(2 * angle + second)


def noise(random: np.random.Generator, length: int) -> np.ndarray:
    """Autocorrelated noise of standard deviation .25."""
    steps = random.normal(0, 0.2, length)
    for hour in range(1, length):
        steps[hour] += 0.6 * steps[hour - 1]
    return steps


def gaps(random: np.random.Generator, length: int, share: float) -> np.ndarray:
    """Which hours are missing, Bool[length]; the first and the last hour never are."""
    lost = random.random(length) < share / 2
    for place in random.integers(0, length, random.poisson(share / 2 * length / (DAY / 2))):
        lost[place : place + random.integers(1, DAY)] = True
    lost[[0, -1]] = False
    return lost
