"""Where a memory helps a forecast: error against look-back and against drift, on generated series.

Networks are trained on streams of six weeks with a forecast of a day after every patch. Unseen streams
of twelve weeks are then read with the memory carried, frozen, and reset (each forecast from a look-back
alone); attention with everything before it, and with a look-back alone. The linear path beside all of
them sees a look-back. Drift is the mean number of level shifts in a stream. A run that is in the results
already is made anew where its commit, machine, steps or seed were others.

    python benchmarks/drift.py --out benchmarks/results --picture docs/drift.png
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from provenance import command, provenance
from torch import Tensor

from titans_core import (
    AttentionConfig,
    BackboneConfig,
    MemoryConfig,
    count_parameters,
    decay_groups,
)
from titans_core.files import write_whole
from titans_domains.timeseries.linear import fit_ridge, moments
from titans_domains.timeseries.network import ForecastNetwork, NetworkConfig
from titans_domains.timeseries.scaling import fill_gaps, normalise, window_scale
from titans_domains.timeseries.synthetic import WEEK, generate

HORIZON, PATCH = 24, 8
TRAINED, STREAM, BEGIN = 6 * WEEK, 12 * WEEK, 4 * WEEK
LOOKBACKS = (24, 48, 96, 168, 336)
DRIFTS = (0, 3, 6, 12, 24)
TRAINED_DRIFT, TRAINED_LOOKBACK = 3, 48
MIXERS = ("lmm", "attention")
MODES = {"lmm": ("carried", "reset", "frozen"), "attention": ("carried", "reset")}
NAMES = {
    ("lmm", "carried"): "memory, carried",
    ("lmm", "reset"): "memory, reset",
    ("lmm", "frozen"): "memory, frozen",
    ("attention", "carried"): "attention, whole stream",
    ("attention", "reset"): "attention, look-back",
    ("ridge", "reset"): "linear map alone",
}


def streams(seed: int, count: int, length: int, drift: float) -> tuple[Tensor, Tensor]:
    """Values [B, T, 1] in units of their first week, and which are observed."""
    table = generate(seed, num_series=count, length=length, shifts=drift).to_numpy()
    values = torch.from_numpy(table.T.copy()).float()[..., None]
    return in_units(values, ~values.isnan())


def in_units(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    loc, scale = window_scale(values[:, :WEEK], seen[:, :WEEK], "std")
    return normalise(values, seen, loc, scale), seen


def ahead(x: Tensor) -> Tensor:
    """What follows each patch but the last ones [B, N, H]."""
    return x[:, PATCH:, 0].unfold(1, HORIZON, PATCH)


def make_network(mixer: str, lookback: int, values: Tensor, seen: Tensor) -> ForecastNetwork:
    network = ForecastNetwork(
        NetworkConfig(
            prediction_length=HORIZON,
            context_length=lookback,
            patch_len=PATCH,
            scaling="none",
            model=BackboneConfig(
                dim=32,
                num_layers=2,
                mixer=mixer,
                memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=16),
                attention=AttentionConfig(num_heads=2, conv_size=4),
            ),
        )
    )
    filled = fill_gaps(values[..., 0], seen[..., 0])
    pieces = filled.unfold(1, lookback + HORIZON, 5)
    half = len(values) // 2
    train, valid = (
        moments([(part[:, :lookback], part[:, lookback:])])
        for part in (pieces[:half].flatten(0, 1), pieces[half:].flatten(0, 1))
    )
    network.start_at(fit_ridge(train, valid).weight)
    return network


def loss_of(args: Tensor, values: Tensor, seen: Tensor, first: int) -> Tensor:
    """Mean absolute error of the observed steps ahead, from the patch at `first` steps on."""
    wanted, known = ahead(values), ahead(seen)
    errors = (args[:, : wanted.shape[1], :, 0, 0] - wanted).abs() * known
    at = first // PATCH
    return errors[:, at:].sum() / known[:, at:].sum()


def train(mixer: str, lookback: int, steps: int, seed: int) -> ForecastNetwork:
    values, seen = streams(0, 96, STREAM, TRAINED_DRIFT)
    torch.manual_seed(seed)
    network = make_network(mixer, lookback, values, seen)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(decay_groups(network, 0.1), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(values), (16,), generator=random)
        begin = PATCH * int(torch.randint((STREAM - TRAINED) // PATCH, (), generator=random))
        # A piece begins a stream: its scale is that of its first week, as everywhere.
        piece, known = in_units(*(x[rows, begin : begin + TRAINED] for x in (values, seen)))
        optimizer.zero_grad()
        loss_of(read(network, piece, known), piece, known, lookback).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def read(network: ForecastNetwork, values: Tensor, seen: Tensor, write: bool = True) -> Tensor:
    loc, scale = torch.zeros_like(values[:, :1]), torch.ones_like(values[:, :1])
    return network.read(values, seen, loc=loc, scale=scale, write=write)[0]


@torch.no_grad()
def error(network: ForecastNetwork, mode: str, drift: float) -> float:
    """Mean absolute error on unseen streams, from the fifth week on."""
    values, seen = streams(1, 32, STREAM, drift)
    if mode != "reset":
        return loss_of(read(network, values, seen, mode == "carried"), values, seen, BEGIN).item()
    length = network.config.context_length
    args = read(network, values, seen)
    for at in range(BEGIN // PATCH, args.shape[1]):
        end = (at + 1) * PATCH
        window = slice(end - length, end)
        args[:, at] = read(network, values[:, window], seen[:, window])[:, -1]
    return loss_of(args, values, seen, BEGIN).item()


def measure(mixer: str, lookback: int, drifts: tuple[int, ...], options: Any) -> dict[str, Any]:
    begun = time.perf_counter()
    network = train(mixer, lookback, options.steps, options.seed)
    found: dict[str, Any] = {
        "parameters": count_parameters(network),
        "seconds": time.perf_counter() - begun,
        "errors": {
            NAMES[mixer, mode]: {str(drift): error(network, mode, drift) for drift in drifts}
            for mode in MODES[mixer]
        },
    }
    if mixer == MIXERS[0]:
        values, seen = streams(0, 96, STREAM, TRAINED_DRIFT)
        start = make_network(mixer, lookback, values, seen)
        found["errors"][NAMES["ridge", "reset"]] = {
            str(drift): error(start, "carried", drift) for drift in drifts
        }
    return found


def draw(results: dict[str, Any], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=False)
    trained = str(TRAINED_DRIFT)
    for (mixer, _), name in NAMES.items():
        style = {"lmm": "-", "attention": "--", "ridge": ":"}[mixer]
        runs = [r["errors"][name] for r in results["runs"].values() if name in r["errors"]]
        y = [errors[trained] for errors in runs]
        left.plot(LOOKBACKS, y, style, marker=".", label=name)
        at = LOOKBACKS.index(TRAINED_LOOKBACK)
        right.plot(DRIFTS, [runs[at][str(d)] for d in DRIFTS], style, marker=".", label=name)
    left.set(
        xlabel="look-back, hours", xscale="log", title=f"{trained} level shifts in twelve weeks"
    )
    left.set_xticks(LOOKBACKS, [str(n) for n in LOOKBACKS])
    left.minorticks_off()
    right.set(xlabel="level shifts in twelve weeks", title=f"look-back of {TRAINED_LOOKBACK} hours")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    left.set_ylabel("mean absolute error of a day ahead,\nin units of the first week's spread")
    right.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "drift.json"
    runs: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
    made = provenance() | {"steps": options.steps, "seed": options.seed}
    for lookback in LOOKBACKS:
        for mixer in MIXERS:
            name = f"{mixer}, {lookback}"
            if runs.get(name, {}).get("made of") == made:
                continue
            drifts = DRIFTS if lookback == TRAINED_LOOKBACK else (TRAINED_DRIFT,)
            found = measure(mixer, lookback, drifts, options)
            runs[name] = {"made of": made, "command": command(), **found}
            write_whole(path, json.dumps({"runs": runs}, indent=2) + "\n")
            print(name, runs[name], flush=True)
    if options.picture:
        draw({"runs": runs}, options.picture)


if __name__ == "__main__":
    main()
