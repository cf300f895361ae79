"""Whether a benchmark has become worse: ratios of an old and a new raw output, side by side.

    python benchmarks/compare.py benchmarks/results/kernels-cpu.json new/kernels-cpu.json

Only ratios within one run are compared (others' time over ours, our share of the best product, a long
stream's time per token over a short one's), since seconds of two machines say nothing. Exits with 1 where
one fell by more than a fifth or is gone, with 2 for files that are no such outputs.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FALL = 0.2
LAYERS = ("titans-pytorch", "titans-pytorch, one batch")
"""Timed against our layer; all else against the update alone."""

Ratio = tuple[str, float]


def of_kernels(results: dict[str, Any]) -> Iterator[Ratio]:
    for chunk, part in results["chunks"].items():
        where = f"chunk {chunk}"
        for phase in ("forward", "forward + backward"):
            yield (
                f"{where}, {phase}: share of the best product",
                part[phase]["share of the best product"],
            )
            seconds = part[phase]["seconds"]
            for name, time in seconds.items():
                if name.startswith(("product", "memory_update", "NeuralMemory")):
                    continue
                ours = seconds["NeuralMemory" if name in LAYERS else "memory_update"]
                yield f"{where}, {phase}: time of {name} over ours", time / ours
        singly = part["64 tokens, one at a time"]
        if "titans-pytorch" in singly:
            yield (
                f"{where}, one token at a time: time of titans-pytorch over ours",
                singly["titans-pytorch"] / singly["NeuralMemory"],
            )
        memory = part["MiB of a training step"]
        if "theirs" in memory:
            yield f"{where}: MiB of titans-pytorch over ours", memory["theirs"] / memory["ours"]
        times = sorted((int(n), t) for n, t in part["us per token by length"].items())
        yield f"{where}: time per token, shortest over longest", times[0][1] / times[-1][1]


def of_long_stream(results: dict[str, Any]) -> Iterator[Ratio]:
    for name, run in results["runs"].items():
        first, last = run["pieces"][1], run["pieces"][-1]
        for what, key in (("time per token", "us_per_token"), ("state", "state_bytes")):
            tokens = f"{first['tokens']:,} over {last['tokens']:,} tokens"
            yield f"{name}: {what} at {tokens}", first[key] / last[key]


def of_serving(results: dict[str, Any]) -> Iterator[Ratio]:
    together, single = results["together"], results["one at a time"]
    yield "tokens/s together over one at a time", together["tokens_per_s"] / single["tokens_per_s"]
    yield "share of requests without error", 1 - together["errors"] / together["requests"]


KINDS = {"chunks": of_kernels, "runs": of_long_stream, "together": of_serving}
"""By a key that only such an output has."""


def ratios(path: Path) -> dict[str, float]:
    """All ratios of a raw output; larger is better."""
    try:
        results = json.loads(path.read_text())
        kind = next(KINDS[key] for key in KINDS if key in results)
        found = dict(kind(results))
    except (StopIteration, LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        found = {}
    if not found:
        raise ValueError(
            f"{path} must be the raw output of kernels.py, long_stream.py or serving.py: give one of those."
        )
    return found


def compare(
    old: dict[str, float], new: dict[str, float], fall: float
) -> list[tuple[str, str, bool]]:
    """For each ratio of the old output its name, the two figures, and whether it is worse."""
    rows = []
    for name, before in old.items():
        now = new.get(name)
        worse = now is None or not now >= (1 - fall) * before
        rows.append((name, f"{before:.3g} -> {'gone' if now is None else f'{now:.3g}'}", worse))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--fall", type=float, default=FALL, help="share that a ratio may fall by")
    args = parser.parse_args()
    if not 0 <= args.fall < 1:
        parser.error(f"--fall must be a share from 0 to below 1: got {args.fall:g}, try {FALL}")
    try:
        rows = compare(ratios(args.old), ratios(args.new), args.fall)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, figures, worse in rows:
        print(f"{'WORSE' if worse else 'ok':6}{figures:20}{name}")
    return int(any(worse for *_, worse in rows))


if __name__ == "__main__":
    sys.exit(main())
