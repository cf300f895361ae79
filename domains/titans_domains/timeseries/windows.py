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
    """Cuts windows of `past` steps and the `future` ones after them. Before a series all is missing."""

    def __init__(self, series: Sequence[Arrays], past: int, future: int) -> None:
        self.past, self.future = past, future
        self.lengths = torch.tensor([len(part.target) for part in series])
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
        return torch.from_numpy(np.concatenate(parts))

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

    Its penalty has the least error on the last fifth of each series, of which the fit that chooses it
    has not seen; then it is fitted on all. None where no window is whole.
    """
    chosen = torch.linspace(0, len(places) - 1, min(MAP_WINDOWS, len(places))).round().long()
    late = places.ends[chosen] > 0.8 * places.windows.lengths[places.series[chosen]]
    early, last = (whole(places, part, scaling, length) for part in (chosen[~late], chosen[late]))
    if not early and not last:
        return None
    every = moments([*early, *last])
    if not early or not last:
        # With nothing to choose by, the one that trusts the windows least.
        return Ridge(
            solve(every, PENALTIES[-1]), PENALTIES[-1], every.mse(solve(every, PENALTIES[-1]))
        )
    ridge = fit_ridge(moments(early), moments(last))
    return ridge._replace(weight=solve(every, ridge.penalty))


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
