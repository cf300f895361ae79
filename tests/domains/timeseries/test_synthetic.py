"""The generated set holds what it says, and is the same every time."""

import numpy as np
import pandas as pd
import pytest

from titans_domains.timeseries.synthetic import DAY, WEEK, generate


def test_the_same_arguments_give_the_same_set() -> None:
    first, again, other = generate(3), generate(3), generate(4)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    assert first.shape == (12 * WEEK, 8)
    assert pd.infer_freq(first.index) == "h"


def test_values_are_missing_alone_and_in_gaps() -> None:
    lost = generate(num_series=20, length=4000, missing=0.04).isna().to_numpy()
    assert 0.02 < lost.mean() < 0.06
    runs = [len(run) for row in lost.T for run in "".join("x" if v else " " for v in row).split()]
    assert min(runs) == 1
    assert max(runs) > 12
    assert not lost[[0, -1]].any()
    assert not generate(missing=0).isna().to_numpy().any()


def test_days_and_weeks_repeat() -> None:
    still = generate(num_series=30, length=8 * WEEK, shifts=0, missing=0)
    spread = still.std()
    for season in (DAY, WEEK):
        beside = (still - still.shift(season)).abs().mean() / spread
        between = (still - still.shift(season + DAY // 2)).abs().mean() / spread
        assert (beside < between).all()


def test_levels_shift() -> None:
    jumps = [
        float((np.abs(np.diff(generate(s, num_series=4, shifts=n, missing=0), axis=0))).max())
        for s in range(5)
        for n in (0, 8)
    ]
    assert all(many > 1.5 * none for none, many in zip(jumps[::2], jumps[1::2], strict=True))


@pytest.mark.parametrize(
    "wrong", [{"num_series": 0}, {"length": 0}, {"missing": 1.0}, {"shifts": -1}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(**wrong)  # type: ignore[arg-type]
