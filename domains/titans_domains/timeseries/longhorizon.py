"""The long-horizon benchmark: a network per horizon and seed, beside its floors, on one protocol."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple, get_args

import torch

from titans_core import (
    AttentionConfig,
    BackboneConfig,
    HybridConfig,
    MemoryConfig,
    count_parameters,
)
from titans_domains.config import to_dict
from titans_domains.timeseries.fit import FitConfig, fit, forecaster
from titans_domains.timeseries.linear import Ridge, fit_ridge, moments, predict
from titans_domains.timeseries.longhorizon_table import averages, markdown
from titans_domains.timeseries.network import ForecastNetwork, NetworkConfig
from titans_domains.timeseries.protocol import (
    HORIZONS,
    LOOKBACKS,
    Forecaster,
    Series,
    Split,
    last_value,
    read_series,
    score,
    seasonal_naive,
)

__all__ = [
    "BASELINES",
    "Recipe",
    "Work",
    "fit_map",
    "floors",
    "markdown",
    "run_benchmark",
    "run_network",
]

TITANS = "Titans"
RIDGE = "ridge"
BASELINES = ("PatchTST", "DLinear", "iTransformer")
"""Networks of GluonTS that can be trained beside ours."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the networks are built and trained; horizon, look-back and channels come from the task."""

    model: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(
            dim=32,
            num_layers=1,
            memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=16, conv_size=2),
            attention=AttentionConfig(num_heads=2),
            hybrid=HybridConfig(num_persistent=2, window=64, segment_len=16, num_retrieved=4),
        )
    )
    patch_len: int = 24
    mixing: Literal["none", "channels"] = "none"
    dropout: float = 0.2
    fit: FitConfig = field(default_factory=FitConfig)

    def network(self, series: Series, lookback: int, horizon: int) -> NetworkConfig:
        return NetworkConfig(
            prediction_length=horizon,
            context_length=lookback,
            patch_len=self.patch_len,
            channels=series.values.shape[1],
            mixing=self.mixing,
            dropout=self.dropout,
            model=self.model,
        )


class Work(NamedTuple):
    """What is being done, of which `done` parts of `total` are finished; the total may be too large."""

    what: str
    done: int
    total: int


Progress = Callable[[Work], None]


def run_benchmark(
    path: Path,
    *,
    shares: tuple[float, float, float] | None = None,
    horizons: Sequence[int] = HORIZONS,
    lookback: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    recipe: Recipe | None = None,
    baselines: Sequence[str] = (),
    device: torch.device | None = None,
    progress: Progress = lambda work: None,
    talk: Callable[[str], None] = lambda line: None,
    save: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """The results as a table for JSON; `markdown` makes text of it. `save` is given them as they grow.

    Without a look-back, the fitted linear map chooses among those of `LOOKBACKS` on validation; what it
    says of each is told even where one is given. Test windows are looked at once everything has been
    chosen. Baselines are trained where GluonTS puts them, all else on `device`, the CPU if not given.
    """
    _check_lists(horizons, seeds, baselines)
    if lookback is not None and lookback < 1:
        raise ValueError(
            f"lookback must be at least 1: got {lookback}. Leave it out to choose one."
        )
    recipe, device = recipe or Recipe(), device or torch.device("cpu")
    read = read_series(path, shares)
    series = replace(read, values=read.values.to(device))
    if series.season is None:
        talk(
            f"{series.name}: its stamps have no known season, so there is no seasonal naive beside it"
        )
    ridges: dict[tuple[int, int], Ridge] = {}
    tried = _try_lookbacks(series, horizons, ridges, progress)
    if lookback is None and not tried:
        raise ValueError(
            f"{series.name} has {series.ends[0]} rows for training, too few for a look-back of "
            f"{LOOKBACKS[0]} and a horizon of {max(horizons)}: give shorter ones."
        )
    chosen = lookback or min(tried, key=tried.__getitem__)
    for split in get_args(Split):
        series.windows(split, chosen, max(horizons))
    results: dict[str, Any] = {
        "data": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": dict(zip(("train", "valid", "test"), series.ends, strict=True)),
        "channels": series.values.shape[1],
        "lookback": chosen,
        "lookback by": "ridge on validation" if lookback is None else "given",
        "ridge on validation": {str(length): mse for length, mse in tried.items()},
        "season": series.season,
        "device": device.type,
        "seeds": list(seeds),
        "recipe": to_dict(recipe),
        "horizons": {},
    }
    for horizon in horizons:
        ridge = ridges.get((chosen, horizon)) or fit_map(series, chosen, horizon)
        results["horizons"][str(horizon)] = row = floors(series, ridge, chosen, horizon)
        row["models"] = {TITANS: {}}
        for seed in seeds:
            found = run_network(series, ridge, chosen, horizon, recipe, seed, progress)
            row["models"][TITANS][str(seed)] = found
            talk(_line(series, chosen, horizon, TITANS, seed, found))
            for name in baselines:
                found = _run_baseline(read, chosen, horizon, name, seed)
                row["models"].setdefault(name, {})[str(seed)] = found
                talk(_line(series, chosen, horizon, name, seed, found))
        results["average"] = averages(results)
        save(results)
    return results


def _check_lists(horizons: Sequence[int], seeds: Sequence[int], baselines: Sequence[str]) -> None:
    given: dict[str, Sequence[Any]] = {
        "horizons": horizons, "seeds": seeds, "baselines": baselines,
    }  # fmt: skip
    for name, values in given.items():
        if len(set(values)) < len(values):
            raise ValueError(
                f"{name} must name each once: got {', '.join(map(str, values))}. Leave the repeats out."
            )
    for name, numbers, least in (("horizons", horizons, 1), ("seeds", seeds, 0)):
        if not numbers or min(numbers) < least:
            raise ValueError(
                f"{name} must be one or more numbers of {least} or more: got {list(numbers)}."
            )
    if odd := [name for name in baselines if name not in BASELINES]:
        raise ValueError(f"There is no baseline {odd[0]!r}: there are {', '.join(BASELINES)}.")


def fit_map(series: Series, lookback: int, horizon: int) -> Ridge:
    """The ridge shared over channels, its penalty by all validation windows."""
    train, valid = (
        moments(series.windows(split, lookback, horizon).by_channel())
        for split in ("train", "valid")
    )
    return fit_ridge(train, valid)


def _try_lookbacks(
    series: Series,
    horizons: Sequence[int],
    ridges: dict[tuple[int, int], Ridge],
    progress: Progress,
) -> dict[int, float]:
    """Mean squared error of the ridge on validation, averaged over horizons, of each look-back that fits."""
    tried: dict[int, float] = {}
    possible = [n for n in LOOKBACKS if n + max(horizons) <= series.ends[0]]
    for number, lookback in enumerate(possible):
        progress(Work("choosing the look-back", number, len(possible)))
        for horizon in horizons:
            ridges[lookback, horizon] = fit_map(series, lookback, horizon)
        tried[lookback] = mean(ridges[lookback, horizon].valid_mse for horizon in horizons)
    progress(Work("choosing the look-back", len(possible), len(possible)))
    return tried


def floors(series: Series, ridge: Ridge, lookback: int, horizon: int) -> dict[str, Any]:
    """What costs nothing to train, on all test windows."""
    windows = series.windows("test", lookback, horizon)
    weight = ridge.weight.float()
    forecasters: dict[str, Forecaster] = {RIDGE: lambda past: predict(weight, past.mT).mT}
    if series.season is not None and series.season <= lookback:
        forecasters[f"seasonal naive({series.season})"] = seasonal_naive(horizon, series.season)
    forecasters["last value"] = last_value(horizon)
    return {
        "test windows": windows.count,
        "ridge penalty": ridge.penalty,
        "floors": {name: score(f, windows)._asdict() for name, f in forecasters.items()},
    }


def run_network(
    series: Series,
    ridge: Ridge,
    lookback: int,
    horizon: int,
    recipe: Recipe,
    seed: int,
    progress: Progress = lambda work: None,
) -> dict[str, Any]:
    """Trained, chosen on validation, and then scored on every test window."""
    begun = time.perf_counter()
    torch.manual_seed(seed)
    network = ForecastNetwork(recipe.network(series, lookback, horizon)).to(series.values.device)
    network.start_at(ridge.weight)
    done = 0
    what = f"{TITANS}, look-back {lookback}, horizon {horizon}, seed {seed}"

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(Work(what, done, recipe.fit.steps))

    train, valid, test = (
        series.windows(split, lookback, horizon) for split in ("train", "valid", "test")
    )
    fitted = fit(network, train, valid, recipe.fit, seed=seed, progress=step)
    trained = time.perf_counter()
    found = score(forecaster(network), test)
    return {
        **found._asdict(),
        "step": fitted.chosen.step,
        "share": fitted.chosen.share,
        "valid": fitted.chosen.valid._asdict(),
        "gain": fitted.chosen.gain,
        "gain error": fitted.chosen.error,
        "ridge valid": fitted.trials[0].valid._asdict(),
        "parameters": count_parameters(network),
        "training seconds": trained - begun,
        "test seconds": time.perf_counter() - trained,
    }


def _run_baseline(
    series: Series, lookback: int, horizon: int, name: str, seed: int
) -> dict[str, Any]:
    from titans_domains.timeseries.gluonts_baselines import train_baseline

    begun = time.perf_counter()
    forecast = train_baseline(name, series, lookback, horizon, seed)
    trained = time.perf_counter()
    found = score(forecast, series.windows("test", lookback, horizon))
    return {**found._asdict(), "training seconds": trained - begun}


def _line(
    series: Series, lookback: int, horizon: int, name: str, seed: int, found: Mapping[str, Any]
) -> str:
    return (
        f"{series.name}, look-back {lookback}, horizon {horizon}, {name}, seed {seed}: "
        f"MSE {found['mse']:.4f}, MAE {found['mae']:.4f}"
    )
