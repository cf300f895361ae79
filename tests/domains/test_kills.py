"""A training run that is killed at any moment goes on bit for bit."""

from pathlib import Path

import pytest
from killed_runs import kill_often


def saving(phases: dict[str, int]) -> int:
    return sum(count for phase, count in phases.items() if phase.startswith("saving"))


def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    runs, phases = kill_often(tmp_path, 4)
    assert runs >= 1
    assert saving(phases) >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills(tmp_path: Path) -> None:
    runs, phases = kill_often(tmp_path, 200, seed=1)
    assert saving(phases) >= 50
    print(f"{runs} runs were killed {phases.total()} times: {dict(phases.most_common())}")
