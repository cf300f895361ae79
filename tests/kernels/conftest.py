"""Memory that was never written reads as NaN in kernel tests, so that nobody can depend on it."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _empty_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
