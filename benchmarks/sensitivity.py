"""How much depends on each setting of the memory: bits per byte and recall, one setting changed at a time.

Text: the recipe of `mixers.py` (its data, tokens, seeds and schedule) at its learning rate, which was the
best for the three mixers' defaults. Recall: MQAR with eight pairs in 128 tokens of 512 kinds, asked at 128
and 512 tokens; its rate is the best of `RATES` for each mixer's default, and kept for all of its rows.
All rows have as many parameters, within 2 %: the width of the feed-forward layers makes up for the
memories', and 240,000 is the least that leaves the deepest any. Every cell runs in a process of its own
and is kept in --out; the models trained on text stay under --runs, for `perturbation_growth.py` and
`stability.py`.

    python benchmarks/sensitivity.py --data input.txt --out benchmarks/results --jobs 2 \\
        --picture docs/sensitivity.png
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from mixers import CPU, language, run_cells, system, train_cell
from provenance import provenance

from titans_core import count_parameters
from titans_domains.language.evaluate import bits_per_byte
from titans_domains.language.suites.mqar import Mqar
from titans_domains.language.suites.task import SuiteConfig, SuiteTask
from titans_domains.language.task import load_run
from titans_domains.train_config import TrainConfig
from titans_domains.training import train

PARAMETERS, LAYERS = 240_000, 2
STEPS = {"text": 300, "mqar": 600}
TEXT_RATE = 8e-3
RATES = (4e-3, 8e-3, 1.6e-2)
PAIRS, VOCAB, LENGTH, LONGER, ROWS = 8, 512, 128, 512, 256


class Axis(NamedTuple):
    title: str
    mixer: str
    setting: str
    values: tuple[int, ...]
    default: int


AXES = (
    Axis("persistent tokens", "mag", "hybrid.num_persistent", (0, 4, 16), 4),
    Axis("expansion E / D", "lmm", "memory.expansion", (1, 2, 4, 8), 4),
    Axis("depth", "lmm", "memory.depth", (1, 2, 3, 4), 2),
    Axis("chunk", "lmm", "memory.chunk_size", (4, 8, 16, 32, 64), 16),
    Axis("segment", "mac", "hybrid.segment_len", (32, 64, 128, 256), 64),
    Axis("inner steps", "lmm", "memory.inner_steps", (1, 2, 3), 1),
)
MIXERS = tuple(dict.fromkeys(axis.mixer for axis in AXES))
Job = dict[str, Any]


def row_of(axis: Axis, value: int) -> str:
    changed = "default" if value == axis.default else f"{axis.setting}={value}"
    return f"{axis.mixer}, {changed}"


def settings_of(row: str) -> list[str]:
    mixer, changed = row.split(", ")
    return [f"mixer={mixer}", *([] if changed == "default" else [changed])]


ROWS_OF_ALL = tuple(dict.fromkeys(row_of(axis, value) for axis in AXES for value in axis.values))


def text_cell(job: Job) -> dict[str, Any]:
    config = language(
        system(job["settings"], PARAMETERS, LAYERS),
        Path(job["train"]), 0.0, job["steps"], job["rate"], job["seed"],
    )  # fmt: skip
    out = Path(job["run"])
    row = train_cell(config, out)
    model, tokenizer, _ = load_run(out, CPU)
    test = [Path(job["test"]).read_bytes()]
    figures = {
        mode: bits_per_byte(model, tokenizer, test, mode, window=256)
        for mode in ("carried", "frozen")
    }
    return {**row, "parameters": count_parameters(model), "test_bits_per_byte": figures}


def mqar_cell(job: Job) -> dict[str, Any]:
    data = SuiteConfig(lengths=(LENGTH,), steps=job["steps"], seed=job["seed"])
    problem = Mqar(pairs=PAIRS, vocab_size=VOCAB)
    task = SuiteTask(system(job["settings"], PARAMETERS, LAYERS), problem, data, CPU)
    config = TrainConfig(
        steps=job["steps"], lr=job["rate"], warmup=max(1, job["steps"] // 20), valid_every=0,
        checkpoint_every=job["steps"], batch_size=data.batch_tokens // LENGTH,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(task, config, Path(folder), device=CPU, show=lambda step, row: rows.append(row))
    accuracy = {str(n): task.scores(n, ROWS)["accuracy"] for n in (LENGTH, LONGER)}
    return {
        **provenance(),
        "lr": job["rate"],
        "tokens_per_s": median(row["tokens_per_s"] for row in rows),
        "valid_accuracy": task.scores(LENGTH, ROWS, "valid")["accuracy"],
        "chance": problem.chance,
        "test_accuracy": accuracy,
    }


def cell(job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    figures = (text_cell if job["task"] == "text" else mqar_cell)(job)
    return {"made of": made_of(job), **figures}


def made_of(job: Job) -> dict[str, Any]:
    return {key: job[key] for key in ("settings", "steps", "rate", "seed", "text")} | {
        "parameters": PARAMETERS
    }


class Runner:
    """Runs the cells that the results lack."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.path = options, options.out / "sensitivity.json"
        self.results = json.loads(self.path.read_text()) if self.path.exists() else {"cells": {}}
        text = options.data.read_bytes()
        self.text = hashlib.sha256(text).hexdigest()[:16]
        self.train, self.test = folder / "train.txt", folder / "test.txt"
        cut = int(0.9 * len(text))
        self.train.write_bytes(text[:cut])
        self.test.write_bytes(text[cut:])

    def job(self, task: str, row: str, rate: float, seed: int) -> Job:
        run = self.options.runs / "sensitivity" / f"{row.replace(', ', '-')}-{seed}"
        return {
            "task": task, "settings": settings_of(row), "rate": rate, "seed": seed,
            "steps": STEPS[task], "train": str(self.train), "test": str(self.test),
            "run": str(run), "text": self.text if task == "text" else None,
        }  # fmt: skip

    def fill(self, jobs: dict[str, Job]) -> None:
        cells = self.results["cells"]
        for name, job in jobs.items():
            if name in cells and cells[name]["made of"] != made_of(job):
                del cells[name]
        run_cells(jobs, self.results, self.path, self.options.jobs, Path(__file__))

    def rates(self, mixers: Iterable[str]) -> dict[str, float]:
        """The rate of each mixer's recall: the best for its default."""
        tries = {(m, rate): f"mqar, {m}, lr {rate:g}" for m, rate in product(mixers, RATES)}
        self.fill(
            {name: self.job("mqar", f"{m}, default", rate, 0) for (m, rate), name in tries.items()}
        )
        cells = self.results["cells"]
        best = {}
        for m in mixers:
            best[m] = max(RATES, key=lambda rate: cells[tries[m, rate]]["valid_accuracy"])
            cells[f"mqar, {m}, default, seed 0"] = cells[tries[m, best[m]]]
        return best


def table(cells: dict[str, Any]) -> str:
    """Means over the seeds; spread is between the best and the worst of the bits per byte."""
    head = [
        "varied", "mixer", "value", "parameters", "seeds", "bits per byte", "spread", "frozen",
        f"MQAR {LENGTH}", f"MQAR {LONGER}", "tokens/s",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for axis in AXES:
        for value in axis.values:
            text, recall = (seeds_of(cells, task, row_of(axis, value)) for task in STEPS)
            row = [axis.title, axis.mixer, f"{value}{' (default)' * (value == axis.default)}"]
            row += [""] * 8
            if text:
                bits = [c["test_bits_per_byte"]["carried"] for c in text]
                frozen = mean(c["test_bits_per_byte"]["frozen"] for c in text)
                row[3:8] = [
                    f"{text[0]['parameters']:,}", str(len(text)), f"{mean(bits):.3f}",
                    f"{max(bits) - min(bits):.3f}", f"{frozen:.3f}",
                ]  # fmt: skip
                row[10] = f"{median(c['tokens_per_s'] for c in text):,.0f}"
            if recall:
                accuracies = [
                    mean(c["test_accuracy"][str(n)] for c in recall) for n in (LENGTH, LONGER)
                ]
                row[8:10] = [f"{accuracy:.2f}" for accuracy in accuracies]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def seeds_of(cells: dict[str, Any], task: str, row: str) -> list[dict[str, Any]]:
    return [cell for name, cell in cells.items() if name.startswith(f"{task}, {row}, seed ")]


def draw(cells: dict[str, Any], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    for panel, axis in zip(panels, AXES, strict=True):
        right = panel.twinx()
        for task, side, color in (("text", panel, "C0"), ("mqar", right, "C1")):
            found = {v: seeds_of(cells, task, row_of(axis, v)) for v in axis.values}
            x = [axis.values.index(value) for value, seeds in found.items() if seeds]
            y = [
                mean(
                    c["test_bits_per_byte"]["carried"]
                    if task == "text"
                    else c["test_accuracy"][str(LENGTH)]
                    for c in seeds
                )
                for seeds in found.values()
                if seeds
            ]
            side.plot(x, y, marker="o", color=color)
            side.tick_params(axis="y", colors=color)
        right.set_ylim(0, 1.05)
        panel.set_xticks(range(len(axis.values)), map(str, axis.values))
        panel.set_title(f"{axis.title} ({axis.mixer})", fontsize=9)
        panel.grid(alpha=0.3)
    figure.supylabel("bits per byte (lower is better)", fontsize=9, color="C0")
    figure.text(1.0, 0.5, "MQAR accuracy", rotation=90, va="center", fontsize=9, color="C1")
    figure.savefig(picture, dpi=110, bbox_inches="tight")


def main() -> None:
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(cell(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--only", default="", help="part of the names of rows, as 'lmm' or 'depth'")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = [row for row in ROWS_OF_ALL if options.only in row]
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(options, Path(folder))
        for task in options.tasks:
            rates = dict.fromkeys(MIXERS, TEXT_RATE)
            if task == "mqar":
                rates = runner.rates([m for m in MIXERS if any(r.startswith(m) for r in rows)])
            runner.fill({
                f"{task}, {row}, seed {seed}": runner.job(
                    task, row, rates[row.split(",")[0]], seed
                )
                for seed, row in product(range(options.seeds), rows)
            })  # fmt: skip
    print(table(runner.results["cells"]))
    if options.picture:
        draw(runner.results["cells"], options.picture)


if __name__ == "__main__":
    main()
