"""Bits per byte by position in a book, far beyond the length that the models were trained at.

Each run reads the same first bytes of the book as one stream, with the memory carried, frozen, and reset
every trained length. Attention without a window reads with everything before it (full) and with
overlapping windows of the trained length.

    python benchmarks/length.py --data book.txt --out benchmarks/results --picture docs/length.png RUN ...
"""

import argparse
import hashlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from cells import cell

from titans_core import count_parameters
from titans_domains.language.evaluate import costs, modes_of
from titans_domains.language.task import load_run

FIRST = 256


def bins(nats: torch.Tensor) -> dict[str, float]:
    """Mean bits by position: up to 256, then between powers of two."""
    edges = [0] + [FIRST << i for i in range(64) if FIRST << i <= len(nats)]
    return {str(b): nats[a:b].mean().item() / math.log(2) for a, b in pairwise(edges)}


def read(run: Path, text: bytes) -> dict[str, Any]:
    model, tokenizer, config = load_run(run, torch.device("cpu"))
    modes = modes_of(model)
    if "window" in modes:
        modes = ("carried", *modes)
    window = config.data.seq_len
    return {
        "mixer": config.model.mixer,
        "parameters": count_parameters(model),
        "trained length": window,
        "bits_per_byte": {
            ("full" if mode == "carried" and "window" in modes else mode): bins(
                torch.cat(list(costs(model, tokenizer, text, mode, window=window)))
            )
            for mode in modes
        },
    }


def draw(cells: list[dict[str, Any]], picture: Path) -> None:
    """One panel per mixer, the mean over its runs."""
    from matplotlib.figure import Figure

    mixers = list(dict.fromkeys(c["mixer"] for c in cells))
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, -(-len(mixers) // 2), sharex=True, sharey=True).flatten()
    styles = {"carried": "-", "reset": "--", "frozen": ":", "full": "-", "window": "--"}
    for panel, mixer in zip(panels, mixers, strict=False):
        runs = [c["bits_per_byte"] for c in cells if c["mixer"] == mixer]
        for mode in runs[0]:
            x = list(map(int, runs[0][mode]))
            y = [sum(run[mode][str(at)] for run in runs) / len(runs) for at in x]
            panel.plot(x, y, styles[mode], marker=".", label=mode)
        panel.set(title=mixer, xscale="log")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.supxlabel("position in the book, bytes (up to)")
    figure.supylabel("bits per byte")
    figure.savefig(picture, dpi=110)


def table(cells: list[dict[str, Any]]) -> str:
    at = list(next(iter(cells[0]["bits_per_byte"].values())))
    lines = [f"| mixer | memory | {' | '.join(at)} |", "|---" * (len(at) + 2) + "|"]
    for mixer in dict.fromkeys(c["mixer"] for c in cells):
        ours = [c["bits_per_byte"] for c in cells if c["mixer"] == mixer]
        for mode in ours[0]:
            means = [sum(run[mode][x] for run in ours) / len(ours) for x in at]
            lines.append(f"| {mixer} | {mode} | {' | '.join(f'{m:.2f}' for m in means)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=2**16)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "length.json"
    text = options.data.read_bytes()[: options.bytes]
    made_of = {
        "book": options.data.name,
        "bytes": len(text),
        "text": hashlib.sha256(text).hexdigest()[:16],
    }
    cells = []
    for run in options.runs:
        cells.append(cell(path, run, made_of, lambda run=run: read(run, text)))
        print(run.name, cells[-1], flush=True)
    print(table(cells))
    if options.picture:
        draw(cells, options.picture)


if __name__ == "__main__":
    main()
