"""Training for the benchmark: the fitted map is the first candidate, and validation chooses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_mixers import SETTINGS
from torch import Tensor

from titans_domains.timeseries.fit import FitConfig, fit, forecaster
from titans_domains.timeseries.linear import fit_ridge, moments, predict
from titans_domains.timeseries.network import ForecastNetwork, NetworkConfig
from titans_domains.timeseries.protocol import Series, Windows, score

L, H = 16, 4
QUICK = FitConfig(
    steps=20, batch_size=8, lr=1e-2, warmup=2, valid_every=5, valid_stride=2, average=0.5
)


def series(seed: int = 0) -> Series:
    """A season whose level is squared at every other turn: more than a linear map can foresee."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.arange(400.0)[:, None] / 8 * torch.pi
    values = torch.sin(steps + torch.tensor([0.0, 1.0])).sign() * torch.sin(steps / 2).square()
    values = values + 0.05 * torch.randn(400, 2, generator=random)
    return Series(name="turns", values=values, ends=(240, 320, 400), season=16)


def task() -> tuple[ForecastNetwork, Windows, Windows]:
    torch.manual_seed(0)
    train, valid = (series().windows(split, L, H) for split in ("train", "valid"))  # type: ignore[arg-type]
    network = ForecastNetwork(
        NetworkConfig(
            prediction_length=H, context_length=L, patch_len=4, channels=2,
            model=SETTINGS["lmm"].config(),
        )
    )  # fmt: skip
    network.start_at(fit_ridge(moments(train.by_channel()), moments(valid.by_channel())).weight)
    return network, train, valid


def weights(network: ForecastNetwork) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}


def test_a_new_network_is_exactly_the_ridge_on_every_window() -> None:
    network, _, valid = task()
    weight = network.linear.weight.detach()
    ours = score(forecaster(network), valid)
    ridge = score(lambda past: predict(weight, past.mT).mT, valid)
    assert ours == pytest.approx(ridge, rel=1e-6)


def test_the_best_candidate_is_what_remains() -> None:
    network, train, valid = task()
    # From the last value alone, which anything is better than.
    network.start_at(torch.zeros(H, L))
    before = score(forecaster(network), part_of(valid))
    found = fit(network, train, valid, QUICK, seed=0)
    assert found.trials[0][:2] == (0, 0.0)
    assert found.trials[0].valid == pytest.approx(before, rel=1e-5)
    assert found.chosen == max(found.trials, key=lambda trial: trial.gain)
    assert found.chosen.gain > found.chosen.error > 0
    after = score(forecaster(network), part_of(valid))
    assert after == pytest.approx(found.chosen.valid, rel=1e-5)
    gain = (1 - after.mse / before.mse) + (1 - after.mae / before.mae)
    assert found.chosen.gain == pytest.approx(gain, rel=1e-3)
    assert not network.training


def part_of(valid: Windows) -> Windows:
    """Those that training looks at."""
    return Windows(valid.whole[:: QUICK.valid_stride], L)


def test_a_gain_on_a_single_stretch_is_not_believed() -> None:
    network, train, valid = task()
    network.start_at(torch.zeros(H, L))
    single = Windows(valid.whole[:H], L)
    found = fit(network, train, single, replace(QUICK, patience=99), seed=0)
    assert max(trial.gain for trial in found.trials) > 0.1
    assert found.chosen.step == 0
    assert network.head.weight.abs().max() == 0


def test_what_does_not_help_is_not_kept() -> None:
    network, train, valid = task()
    before = weights(network)
    # What follows the training windows is nonsense, so that training leads away.
    noise = torch.randn(train.whole.shape, generator=torch.Generator().manual_seed(1))
    found = fit(network, Windows(10 * noise, L), valid, QUICK, seed=0)
    assert (found.chosen.step, found.chosen.share) == (0, 0.0)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())


def test_training_ends_when_nothing_improves() -> None:
    network, train, valid = task()
    noise = torch.randn(train.whole.shape, generator=torch.Generator().manual_seed(1))
    steps: list[int] = []
    config = replace(QUICK, steps=100, patience=2)
    found = fit(network, Windows(10 * noise, L), valid, config, seed=0, progress=steps.append)
    assert len(found.trials) == 3
    assert sum(steps) == 10


def test_a_seed_decides_everything() -> None:
    found = []
    for seed in (0, 0, 1):
        network, train, valid = task()
        fit(network, train, valid, QUICK, seed=seed)
        found.append(weights(network))
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())
    assert any(not torch.equal(x, found[2][name]) for name, x in found[0].items())


def test_windows_turned_upside_down_teach_no_trend() -> None:
    """On a line that rises for ever, what is added to a constant forecast learns to rise, or not."""
    line = torch.arange(200.0)[:, None].expand(-1, 2) / 100
    rising = Series(name="line", values=line, ends=(120, 160, 200), season=None)
    train, valid = (rising.windows(split, L, H) for split in ("train", "valid"))  # type: ignore[arg-type]
    past, future = valid.take(torch.tensor([0]))
    share = {}
    for flip in (False, True):
        network, _, _ = task()
        network.start_at(torch.zeros(H, L))
        with torch.no_grad():
            # So that it does not see which way up a window is.
            network.embed.weight.zero_().requires_grad_(False)
        fit(network, train, valid, replace(QUICK, flip=flip, patience=99), seed=0)
        rise = forecaster(network)(past).detach() - past[:, -1:]
        share[flip] = (rise / (future - past[:, -1:])).mean().item()
    assert share[False] > 0.5
    assert abs(share[True]) < 0.2


def test_the_linear_path_may_stay_as_it_was_fitted() -> None:
    for rate in (0.0, 0.1):
        network, train, valid = task()
        before = torch.full((H, L), 0.01)
        network.start_at(before)
        fit(network, train, valid, replace(QUICK, linear_lr=rate), seed=0)
        assert torch.equal(network.linear.weight, before) == (rate == 0)
        assert network.head.weight.abs().max() > 0


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    network, train, valid = task()
    with torch.no_grad():
        network.embed.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="The loss of step 1 is not finite"):
        fit(network, train, valid, QUICK, seed=0)


MISTAKES: dict[str, dict[str, Any]] = {
    "fit.steps must be at least 1: got 0": {"steps": 0},
    "fit.lr and fit.clip must be positive": {"lr": 0.0},
    "fit.weight_decay must be 0 or more": {"weight_decay": -1.0},
    "fit.average must be at least 0 and below 1": {"average": 1.0},
    "fit.loss must be one of mse, mae, huber": {"loss": "rmse"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_settings_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig(**MISTAKES[message])
