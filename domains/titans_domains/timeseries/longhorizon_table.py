"""What the long-horizon benchmark found, averaged and as text."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from titans_domains.timeseries.protocol import Score


def averages(results: Mapping[str, Any]) -> dict[str, Any]:
    """Over the horizons: of floors, and of every model its mean and spread over seeds."""
    rows = list(results["horizons"].values())
    table: dict[str, Any] = {
        name: {key: mean(row["floors"][name][key] for row in rows) for key in Score._fields}
        for name in rows[0]["floors"]
    }
    for name, runs in rows[0]["models"].items():
        for key in Score._fields:
            by_seed = [mean(row["models"][name][seed][key] for row in rows) for seed in runs]
            entry = table.setdefault(name, {})
            entry[key] = mean(by_seed)
            entry[f"{key} spread"] = stdev(by_seed) if len(by_seed) > 1 else None
    return table


def markdown(results: Mapping[str, Any]) -> str:
    """One row per method, MSE / MAE per horizon with their spread over seeds; the look-back on top."""
    horizons = list(results["horizons"])
    seeds = len(results["seeds"])
    lines = [
        f"{results['data']}, look-back {results['lookback']} ({results['lookback by']}), every test "
        f"window at stride 1, standardised by training rows; {seeds} seed{'s' * (seeds > 1)}, "
        "MSE / MAE.",
        "",
        f"| | {' | '.join(horizons)} | average |",
        "|---" * (len(horizons) + 2) + "|",
    ]
    return "\n".join([*lines, *_rows(results, horizons)])


def _rows(results: Mapping[str, Any], horizons: Sequence[str]) -> Iterator[str]:
    first = results["horizons"][horizons[0]]
    for name in (*first["models"], *first["floors"]):
        cells = []
        for horizon in horizons:
            row = results["horizons"][horizon]
            runs = list(row["models"][name].values()) if name in row["models"] else []
            cells.append(_cell(runs or [row["floors"][name]]))
        entry = results["average"][name]
        text = f"{entry['mse']:.4f} / {entry['mae']:.4f}"
        if entry.get("mse spread") is not None:
            text = (
                f"{entry['mse']:.4f} ± {entry['mse spread']:.4f} / "
                f"{entry['mae']:.4f} ± {entry['mae spread']:.4f}"
            )
        yield f"| {name} | {' | '.join(cells)} | {text} |"


def _cell(runs: Sequence[Mapping[str, float]]) -> str:
    parts = []
    for key in Score._fields:
        values = [run[key] for run in runs]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        parts.append(f"{mean(values):.4f}{spread}")
    return " / ".join(parts)
