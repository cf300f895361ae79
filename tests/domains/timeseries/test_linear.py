"""The closed-form linear map against least squares, and its error against that of its forecasts."""

import pytest
import torch
from torch import Tensor

from titans_domains.timeseries.linear import fit_ridge, moments, predict, solve

L, H = 7, 3


def windows(count: int = 60, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Windows at different levels, followed by a linear map of them and noise."""
    random = torch.Generator().manual_seed(seed)
    level = 10 * torch.randn(count, 1, generator=random).double()
    past = level + torch.randn(count, L, generator=random).double()
    weight = torch.linspace(-1, 1, H * L).double().reshape(H, L)
    future = predict(weight, past)
    return past, future + noise * torch.randn(count, H, generator=random).double()


def deviations(past: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
    return past - past[:, -1:], future - past[:, -1:]


def test_it_solves_the_penalised_least_squares() -> None:
    past, future = windows()
    x, y = deviations(past, future)
    # The penalty as rows of data: their squared error is the size of the weights.
    size = 0.3 * x.mT.matmul(x).diagonal().mean()
    rows = torch.cat([x, size.sqrt() * torch.eye(L).double()])
    wanted = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(L, H).double()])).solution.mT
    torch.testing.assert_close(solve(moments([(past, future)]), 0.3), wanted)


def test_batches_make_no_difference() -> None:
    past, future = windows()
    whole = moments([(past, future)])
    parts = moments(
        [(past[:13], future[:13]), (past[13:13], future[13:13]), (past[13:], future[13:])]
    )
    assert parts.number == whole.number == 60
    for a, b in zip(whole[:3], parts[:3], strict=True):
        torch.testing.assert_close(a, b)


def test_the_error_of_moments_is_the_error_of_forecasts() -> None:
    weight = solve(moments([windows()]), 1e-3)
    past, future = windows(seed=1)
    wanted = (predict(weight, past) - future).square().mean().item()
    assert moments([(past, future)]).mse(weight) == pytest.approx(wanted, rel=1e-9)


def test_validation_chooses_the_penalty() -> None:
    train, valid = moments([windows(9, noise=2.0)]), moments([windows(seed=1, noise=0.0)])
    chosen = fit_ridge(train, valid)
    errors = {p: valid.mse(solve(train, p)) for p in (1e-6, 1e-2, 1.0)}
    assert chosen.valid_mse <= min(errors.values())
    assert chosen.penalty > 1e-6
    torch.testing.assert_close(chosen.weight, solve(train, chosen.penalty))
    # Its own windows as validation ask for no penalty.
    assert fit_ridge(train, train).penalty == 1e-6


def test_a_shift_of_level_goes_through() -> None:
    weight = solve(moments([windows()]), 1e-3)
    past, _ = windows(seed=1)
    torch.testing.assert_close(predict(weight, past + 100), predict(weight, past) + 100)


def test_constant_windows_give_the_last_value() -> None:
    past, future = torch.full((5, L), 3.0), torch.full((5, H), 3.0)
    fit = fit_ridge(moments([(past, future)]), moments([(past, future)]))
    assert torch.equal(predict(fit.weight, past), future)


def test_no_windows_are_refused() -> None:
    for batches in ([], [(torch.zeros(0, L), torch.zeros(0, H))]):
        with pytest.raises(ValueError, match="at least one window: got none"):
            moments(batches)
