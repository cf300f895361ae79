"""Training of a point forecaster for the long-horizon benchmark.

The shared trainer runs a number of steps and keeps the last; here the fitted linear map is the first of
the candidates, averages of the weights are the others, and validation chooses: a loop of its own.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from titans_core import decay_groups
from titans_domains.timeseries.network import ForecastNetwork
from titans_domains.timeseries.protocol import Forecaster, Score, Windows


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    steps: int = 400
    batch_size: int = 16  # windows, each of all channels
    lr: float = 1e-3
    linear_lr: float = 0.0  # of the linear path, as a share of lr; 0 leaves it as it was fitted
    min_lr: float = 0.05  # the last learning rate, as a share of the first
    warmup: int = 30
    weight_decay: float = 0.1
    clip: float = 1.0
    loss: Literal["mse", "mae", "huber"] = "mae"
    average: float = 0.98  # share of the averaged weights that each step keeps
    valid_every: int = 100  # steps
    valid_stride: int = 8  # of the validation windows that are looked at while training
    patience: int = 2  # validations without improvement before training ends
    # Turns half of the windows upside down: no map then learns the trend of the training rows.
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "valid_every", "valid_stride", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name} must be at least 1: got {getattr(self, name)}.")
        if not self.lr > 0 or not self.clip > 0:
            raise ValueError(
                f"fit.lr and fit.clip must be positive: got {self.lr} and {self.clip}."
            )
        for name in ("linear_lr", "min_lr", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"fit.{name} must be 0 or more: got {getattr(self, name)}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"fit.average must be at least 0 and below 1: got {self.average}.")
        if self.loss not in LOSSES:
            raise ValueError(f"fit.loss must be one of {', '.join(LOSSES)}: got {self.loss!r}.")

    def rate(self, step: int) -> float:
        """The share of `lr` at a step: linear warm-up, then a cosine."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (1 - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of what training has added, tried at every validation."""

EVALUATED = 256
"""Windows in a batch without gradients."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.smooth_l1_loss,
}


class Trial(NamedTuple):
    """A candidate: the start, and a share of what training had added to it by a step."""

    step: int
    share: float
    valid: Score
    gain: float  # on the start, in MSE and MAE as shares of the start's, summed
    error: float  # of the gain: its standard error over stretches of one horizon


class Fit(NamedTuple):
    chosen: Trial
    trials: list[Trial]


def forecaster(network: ForecastNetwork) -> Forecaster:
    """Point forecasts in the units of the past, of windows without missing values."""

    def forecast(past: Float[Tensor, "B L C"]) -> Float[Tensor, "B H C"]:
        args, loc, scale = network(past, torch.ones_like(past, dtype=torch.bool))
        return args[..., 0] * scale + loc

    return forecast


def fit(
    network: ForecastNetwork,
    train: Windows,
    valid: Windows,
    config: FitConfig,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda steps: None,
) -> Fit:
    """Trains the network, and leaves it as the candidate that gains most on validation.

    A new network is its linear path, and what it adds can be shrunk: so the start plus a share of the
    change is a network too, and a candidate. The start itself (step 0) is kept unless a gain on it is
    larger than the gain's standard error: a long horizon has few windows apart to judge by.
    """
    random = torch.Generator().manual_seed(seed)
    looked_at = torch.arange(0, valid.count, config.valid_stride)
    truth = valid.take(looked_at)[1]
    start, averaged = copy.deepcopy(network), copy.deepcopy(network)
    before = _forecasts(start, valid, looked_at)
    stretch = max(1, truth.shape[1] // config.valid_stride)
    best = _trial(0, 0.0, before, before, truth, stretch)
    kept, trials = _weights(network), [best]
    for step, _ in enumerate(_steps(network, averaged, train, config, random), 1):
        progress(1)
        if step % config.valid_every and step != config.steps:
            continue
        change = _forecasts(averaged, valid, looked_at) - before
        shares = (_trial(step, p, before + p * change, before, truth, stretch) for p in SHARES)
        trial = max(shares, key=lambda trial: trial.gain)
        trials.append(trial)
        if trial.gain > max(best.gain, trial.error):
            best, kept = trial, _between(start, averaged, trial.share)
        if len(trials) - 1 - trials.index(best) >= config.patience:
            break
    network.load_state_dict(kept)
    network.eval()
    return Fit(best, trials)


def _steps(
    network: ForecastNetwork,
    averaged: ForecastNetwork,
    train: Windows,
    config: FitConfig,
    random: torch.Generator,
) -> Iterator[None]:
    """Steps of AdamW, after each of which `averaged` follows the network."""
    optimizer = torch.optim.AdamW(_groups(network, config), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate)
    forecast, loss_of = forecaster(network), LOSSES[config.loss]
    for step in range(1, config.steps + 1):
        network.train()
        index = torch.randint(train.count, (config.batch_size,), generator=random)
        past, future = train.take(index)
        if config.flip:
            sign = 2.0 * torch.randint(2, past[:, :1].shape, generator=random).to(past.device) - 1
            past, future = sign * past, sign * future
        loss = loss_of(forecast(past), future)
        if not loss.isfinite():
            raise ValueError(
                f"The loss of step {step} is not finite: train anew with a smaller fit.lr."
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        # The first averages would hold the start alone.
        keep = min(config.average, step / (step + 10))
        with torch.no_grad():
            for mean, weight in zip(averaged.parameters(), network.parameters(), strict=True):
                mean.lerp_(weight, 1 - keep)
        yield


def _groups(network: ForecastNetwork, config: FitConfig) -> list[dict[str, Any]]:
    """The linear path has a rate of its own."""
    linear = network.linear.weight
    groups = [{**group, "lr": config.lr} for group in decay_groups(network, config.weight_decay)]
    for group in groups:
        group["params"] = [p for p in group["params"] if p is not linear]
    own = {"params": [linear], "lr": config.lr * config.linear_lr, "weight_decay": 0.0}
    return [*groups, own]


@torch.no_grad()
def _forecasts(network: ForecastNetwork, windows: Windows, index: Tensor) -> Tensor:
    network.eval()
    forecast = forecaster(network)
    return torch.cat([forecast(windows.take(part)[0]) for part in index.split(EVALUATED)])


def _trial(
    step: int, share: float, after: Tensor, before: Tensor, truth: Tensor, stretch: int
) -> Trial:
    """A candidate's forecasts [n, H, C] beside the start's; windows a stretch apart share no step.

    The error takes the means of stretches as independent. The windows of neighbouring ones share almost a
    horizon of steps, so it is somewhat too small, and a gain is kept a little too readily.
    """
    gains = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
    found = []
    for size in (torch.square, torch.abs):
        errors, first = size((after - truth).double()), size((before - truth).double())
        found.append(errors.mean().item())
        gains += (first - errors).mean((1, 2)) / first.mean()
    parts = torch.stack([part.mean() for part in gains.split(stretch)])
    # Of one stretch alone nothing is known.
    error = parts.std().item() / len(parts) ** 0.5 if len(parts) > 1 else math.inf
    return Trial(step, share, Score(*found), gains.mean().item(), error)


def _between(start: ForecastNetwork, end: ForecastNetwork, share: float) -> dict[str, Tensor]:
    """The network whose forecasts are the start's plus a share of the way to the end's."""
    network = copy.deepcopy(end)
    network.shrink(share)
    network.start_at(start.linear.weight.lerp(end.linear.weight, share))
    return _weights(network)


def _weights(network: ForecastNetwork) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in network.state_dict().items()}
