"""How often a series is sampled: inferred from its stamps, and named as periods are named.

pandas has one alias for a period (`M`) and others for its end and its start (`ME`, `MS`). Series here
are periods, as GluonTS has them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
PERIODS = {
    **dict.fromkeys(("ME", "MS", "BME", "BMS", "BM"), "M"),
    **dict.fromkeys(("QE", "QS", "BQE", "BQS", "BQ"), "Q"),
    **dict.fromkeys(("YE", "YS", "BYE", "BYS", "A", "AS", "BA", "BAS", "BY"), "Y"),
    "H": "h", "T": "min", "S": "s", "L": "ms",
}  # fmt: skip
SPARSEST = 20
"""Steps that the stamps of a series may span for each one that is there."""


@contextmanager
def old_names() -> Iterator[None]:
    """pandas warns of the names of periods, and at every period of business days; both work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*PeriodDtype\\[B\\].*", FutureWarning)
        warnings.filterwarnings("ignore", "Period with BDay freq.*", FutureWarning)
        warnings.filterwarnings("ignore", ".* is deprecated and will be removed", FutureWarning)
        yield


def period_alias(freq: str) -> str:
    """The alias of the period that `freq` steps by: `ME` and `MS` are `M`, `QS-OCT` is `Q-SEP`."""
    import pandas as pd

    found = re.fullmatch(r"(\d*)([A-Za-z]+)(?:-([A-Za-z]{3}))?", freq.strip())
    if found is None:
        raise ValueError(f"freq must be a pandas frequency like h, 15min, D or M: got {freq!r}.")
    count, base, anchor = found.groups()
    anchor = anchor and anchor.upper()
    if base in ("QS", "BQS", "YS", "BYS", "AS", "BAS") and anchor in MONTHS:
        # A year that begins in October ends in September.
        anchor = MONTHS[MONTHS.index(anchor) - 1]
    name = PERIODS.get(base, base)
    if name == "M":
        anchor = None
    alias = f"{count}{name}-{anchor}" if anchor else f"{count}{name}"
    try:
        with old_names():
            # Its own name, since pandas gives a month's period the alias of its end.
            pd.Period("2000-01-03", freq=alias)
            return alias
    except ValueError:
        raise ValueError(
            f"freq must be a pandas frequency like h, 15min, D or M: got {freq!r}."
        ) from None


def same_freq(one: str, other: str) -> bool:
    """Whether two aliases name the same periods, as 60min and h do."""
    import pandas as pd

    with old_names():
        first, second = (pd.Period("2000-01-03", freq=period_alias(f)).freq for f in (one, other))
    return bool(first == second)


def steps_between(first: pd.Period, second: pd.Period) -> int:
    """Steps from one period to another of the same frequency."""
    with old_names():
        return int((second - first).n // first.freq.n)


def infer_freq(stamps: pd.DatetimeIndex) -> str | None:
    """The alias of ordered stamps, some of which may be missing; None where none fits."""
    import pandas as pd

    whole = pd.infer_freq(stamps) if len(stamps) > 2 else None
    if whole is not None:
        return _alias_or_none(whole)
    # With gaps, the frequency of a stretch without one holds for the rest too, or for none.
    steps = np.diff(stamps.asi8)
    for size in (10, 5, 3):
        for first in range(0, len(stamps) - size + 1, max(1, size // 2)):
            if (found := pd.infer_freq(stamps[first : first + size])) is not None:
                return _alias_or_none(found)
    smallest = int(steps.min()) if len(steps) else 0
    # Four weeks and more may be a month, a quarter or a year, which have no one length.
    if 0 < smallest < pd.Timedelta(days=28).value and not (steps % smallest).any():
        return pd.tseries.frequencies.to_offset(pd.Timedelta(smallest)).freqstr
    return None


def _alias_or_none(freq: str) -> str | None:
    try:
        return period_alias(freq)
    except ValueError:
        return None


def on_grid(stamps: pd.DatetimeIndex, freq: str, name: str) -> pd.PeriodIndex:
    """The periods of ordered stamps; ValueError names the series and the row that has none of its own."""
    import pandas as pd

    with old_names():
        periods = stamps.to_period(freq)
        step, ordinals = periods.freq, periods.asi8
        if isinstance(step, pd.offsets.Tick):
            off = (stamps - stamps[0]) % pd.Timedelta(step) != pd.Timedelta(0)
        else:
            off = (ordinals - ordinals[0]) % step.n != 0
        off = off | np.concatenate([[False], np.diff(ordinals) == 0])
        if off.any():
            row = int(np.argmax(off))
            raise ValueError(
                f"{name}, row {row + 1} ({stamps[row]}) does not stand on the grid of {freq!r} that "
                "begins with its first row: mend the stamp, or give the right freq."
            )
        span = int(ordinals[-1] - ordinals[0]) // step.n + 1
    if span > SPARSEST * len(stamps) + 1000:
        raise ValueError(
            f"{name} has {len(stamps)} rows in {span} steps of {freq!r} between {stamps[0]} and "
            f"{stamps[-1]}: give freq if another is meant, or mend the stamps."
        )
    return periods
