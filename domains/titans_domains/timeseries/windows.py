"""Windows of many series, cut for a batch at once from tables that lie ready.

B batch, P steps before a window's end, H after it, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from titans_domains.timeseries.linear import PENALTIES, Ridge, fit_ridge, moments, solve
from titans_domains.timeseries.scaling import Scaling, fill_gaps, normalise, window_scale
from titans_domains.timeseries.series import Arrays

Batch = dict[str, Tensor]
"""`target` [B, P + H, C] with NaN where it is missing, features by name, and static ones [B, F]."""

DYNAMIC = ("target", "lags", "known", "past_only")
MAP_WINDOWS = 20_000
"""Most windows, per split, from which a linear map is fitted."""


class Windows:
    """Cuts windows of `past` steps and the `future` ones after them.

    Before a series all is missing, and after it, for as many steps as a window has in its past.
    """

    def __init__(self, series: Sequence[Arrays], past: int, future: int) -> None:
        self.past, self.future = past, future
        self.lengths = torch.tensor([len(part.target) for part in series])
        # The first row of each series in which something is observed.
        self.begins = [int((~np.isnan(part.target)).any(1).argmax()) for part in series]
        # Rows of a series begin `past` rows after those of the series before it end.
        starts = torch.cumsum(self.lengths + past, 0) - self.lengths
        self.starts = starts
        self.tables = {
            name: table for name in DYNAMIC if (table := self._table(series, name)).shape[1]
        }
        self.static = {
            name: table
            for name in ("static_real", "static_cat")
            if (table := torch.from_numpy(np.stack([getattr(s, name) for s in series]))).shape[1]
        }

    def _table(self, series: Sequence[Arrays], name: str) -> Float[Tensor, "N F"]:
        width = getattr(series[0], name).shape[1]
        blank = np.nan if name in ("target", "lags") else 0.0
        gap = np.full((self.past, width), blank, np.float32)
        parts = [x for s in series for x in (gap, getattr(s, name)[: len(s.target)])]
        return torch.from_numpy(np.concatenate([*parts, gap]))

    def take(self, series: Int[Tensor, " B"], ends: Int[Tensor, " B"]) -> Batch:
        """The windows that end before row `ends` of their series, with what follows each."""
        at = (self.starts[series] + ends)[:, None] + torch.arange(-self.past, self.future)
        batch = {name: table[at] for name, table in self.tables.items()}
        return batch | {name: table[series] for name, table in self.static.items()}

    def places(
        self, first: Sequence[int], last: Sequence[int]
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Every window that ends from row first to row last of its series."""
        counts = torch.tensor([max(0, b - a + 1) for a, b in zip(first, last, strict=True)])
        series = torch.arange(len(counts)).repeat_interleave(counts)
        begun = torch.cumsum(counts, 0) - counts
        ends = torch.arange(int(counts.sum())) - begun[series] + torch.tensor(list(first))[series]
        return series, ends


class Places:
    """A set of windows, from which some are drawn or spread evenly."""

    def __init__(self, windows: Windows, first: Sequence[int], last: Sequence[int]) -> None:
        self.windows = windows
        self.series, self.ends = windows.places(first, last)

    def __len__(self) -> int:
        return len(self.ends)

    def batch(self, chosen: Int[Tensor, " B"]) -> Batch:
        return self.windows.take(self.series[chosen], self.ends[chosen])

    def drawn(self, size: int, random: torch.Generator) -> Batch:
        return self.batch(torch.randint(len(self), (size,), generator=random))

    def spread(self, most: int, size: int) -> Iterator[Batch]:
        """Up to `most` of the windows, evenly spread over all, in batches."""
        chosen = torch.linspace(0, len(self) - 1, min(most, len(self))).round().long()
        for part in chosen.split(size):
            yield self.batch(part)


def linear_map(places: Places, scaling: Scaling, length: int) -> Ridge | None:
    """The ridge over all channels of the windows, in units of each window's scale.

    Its penalty has the least error on what the last fifth of each series holds, of which the fit that
    chooses it has seen nothing (see `parted`); then it is fitted on all. Where no series is long enough for
    both, nothing is left to choose by: the penalty is then the largest, which trusts the windows least.
    None where no window is whole.
    """
    chosen = torch.linspace(0, len(places) - 1, min(MAP_WINDOWS, len(places))).round().long()
    early, between, last = (whole(places, part, scaling, length) for part in parted(places, chosen))
    if not early and not between and not last:
        return None
    every = moments([*early, *between, *last])
    if not early or not last:
        weight = solve(every, PENALTIES[-1])
        return Ridge(weight, PENALTIES[-1], every.mse(weight))
    ridge = fit_ridge(moments(early), moments(last))
    return ridge._replace(weight=solve(every, ridge.penalty))


def parted(
    places: Places, chosen: Int[Tensor, " n"]
) -> tuple[Int[Tensor, " a"], Int[Tensor, " b"], Int[Tensor, " c"]]:
    """Windows whose future ends before the last fifth of their series, the others, and those whose future
    lies in it. Where a fifth is shorter than the horizon, the last horizon stands for it.
    """
    horizon, ends = places.windows.future, places.ends[chosen]
    lengths = places.windows.lengths[places.series[chosen]]
    border = (lengths - lengths // 5).minimum(lengths - horizon)
    early, late = ends + horizon <= border, ends >= border
    return chosen[early], chosen[~early & ~late], chosen[late]


def whole(
    places: Places, chosen: Int[Tensor, " n"], scaling: Scaling, length: int
) -> list[tuple[Tensor, Tensor]]:
    """The chosen windows with half of their past and all of their future observed, in batches."""
    parts = (
        whole_windows(places.batch(part)["target"], scaling, length) for part in chosen.split(1024)
    )
    return [pair for pair in parts if len(pair[0])]


def whole_windows(
    target: Float[Tensor, "B PH C"], scaling: Scaling, length: int
) -> tuple[Float[Tensor, "n L"], Float[Tensor, "n H"]]:
    past, future = target[:, :length], target[:, length:]
    seen = ~past.isnan()
    loc, scale = window_scale(past.nan_to_num(), seen, scaling)
    rows = normalise(past.nan_to_num(), seen, loc, scale).mT.flatten(0, 1)
    ahead = ((future - loc) / scale).mT.flatten(0, 1)
    seen = seen.mT.flatten(0, 1)
    # What a constant window is followed by is any number of scales away.
    kept = (seen.float().mean(1) >= 0.5) & (ahead.abs().amax(1) < 50)
    return fill_gaps(rows, seen)[kept], ahead[kept]
