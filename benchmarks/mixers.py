"""Bits per byte on tiny-shakespeare of every mixer, or of a mixer without one of its parts.

One recipe for all (`RECIPES`): the same tokens, seeds and, within 2 %, parameters (the width of the
feed-forward layers makes up for the mixers'). The last 10 % of the bytes are the test. The learning rate
of each system is the best of `RATES` on the last tenth of the rest, doubled for as long as the largest
that was tried is the best, in runs of the full length (shorter ones prefer larger rates).
Every cell runs in a process of its own and is kept in --out, so that a stopped run goes on where it was;
the trained models stay under --runs for `length.py` and `long_stream.py`. Speed and memory are measured
apart, by `--speed` on a quiet machine: short runs of every system in turn.

    python benchmarks/mixers.py --data input.txt --table mixers --out benchmarks/results --jobs 2
    python benchmarks/mixers.py --data input.txt --table ablation --out benchmarks/results --jobs 2
    python benchmarks/mixers.py --data input.txt --table mixers --out benchmarks/results --speed 3
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from cells import write_results
from provenance import peak_rss_mib, provenance

from titans_core import PRESETS, Backbone, BackboneConfig, count_parameters
from titans_domains.config import override
from titans_domains.language.evaluate import bits_per_byte, modes_of
from titans_domains.language.floors import floors
from titans_domains.language.task import DOMAIN, DataConfig, LanguageConfig, load_run
from titans_domains.runs import train_run
from titans_domains.training import TrainConfig

CPU = torch.device("cpu")
VOCAB = 257
RATES = (8e-3, 1.6e-2)
# Name: parameters, layers of a model (MAC+MAL has two memories in a layer, so half as many), steps.
RECIPES = {"five-minutes": (200_000, 2, 300), "longer": (200_000, 2, 1200)}
MIXERS: dict[str, list[str]] = {
    "lmm": [],
    "mac": ["mixer=mac"],
    "mag": ["mixer=mag"],
    "mal": ["mixer=mal"],
    "mac+mal": ["mixer=mac+mal", "num_layers=1"],
    # Transformer++ with the convolutions that the memory's projections have.
    "attention": ["mixer=attention", "attention.conv_size=4"],
}
ABLATION: dict[str, list[str]] = {
    "as it is": [],
    "linear memory": ["memory.depth=1"],
    "no convolution": ["memory.conv_size=0"],
    "no momentum": ["memory.momentum=false"],
    "no forgetting": ["memory.forget=none"],
    "no persistent tokens": ["hybrid.num_persistent=0"],
    "forgetting toward zero": ["memory.forget=zero"],
    "no clamp on surprise": ["memory.max_surprise=none"],
}


def system(settings: list[str], parameters: int, layers: int) -> BackboneConfig:
    """The mixer's configuration, with the feed-forward width that gives it `parameters`."""
    base = dataclasses.replace(PRESETS["tiny"], num_layers=layers)
    config: BackboneConfig = override(base, settings)
    step = 3 * config.dim * config.num_layers  # parameters of one hidden unit in every layer
    bare = dataclasses.replace(config, ffn_dim=1)
    size = count_parameters(Backbone(bare)) + VOCAB * config.dim
    return dataclasses.replace(config, ffn_dim=1 + round((parameters - size) / step))


def language(
    model: BackboneConfig, data: Path, held_out: float, steps: int, rate: float, seed: int
) -> LanguageConfig:
    return LanguageConfig(
        model=model,
        data=DataConfig(source=str(data), held_out=held_out, valid_bytes=32768),
        train=TrainConfig(
            steps=steps, batch_size=16, lr=rate, warmup=20,
            valid_every=steps if held_out else 0, checkpoint_every=steps,
        ),
        seed=seed,
    )  # fmt: skip


def train_cell(config: LanguageConfig, out: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    before = peak_rss_mib()
    began = time.perf_counter()
    train_run(DOMAIN, config, out, device=CPU, force=True, show=lambda step, row: rows.append(row))
    return {
        **provenance(),
        "lr": config.train.lr,
        "minutes": (time.perf_counter() - began) / 60,
        "tokens_per_s": statistics.median(row["tokens_per_s"] for row in rows[5:]),
        "added_memory_mib": peak_rss_mib() - before,
        "train_bits_per_byte": statistics.mean(row["bits_per_byte"] for row in rows[-20:]),
        **{k: v for k, v in rows[-1].items() if k.startswith("valid")},
    }


def cell(job: dict[str, Any]) -> dict[str, Any]:
    """One row of the table for one seed, or one learning rate that is tried."""
    torch.set_num_threads(1)
    model = from_job(job)
    config = language(
        model, Path(job["data"]), job["held_out"], job["steps"], job["rate"], job["seed"]
    )
    out = Path(job["run"])
    row = train_cell(config, out)
    if job["held_out"]:
        return row
    trained, tokenizer, _ = load_run(out, CPU)
    test = [Path(job["test"]).read_bytes()]
    row["parameters"] = count_parameters(trained)
    row["test_bits_per_byte"] = {
        mode: bits_per_byte(trained, tokenizer, test, mode, window=256)
        for mode in modes_of(trained)
    }
    return row


def from_job(job: dict[str, Any]) -> BackboneConfig:
    parameters, layers, _ = RECIPES[job["recipe"]]
    return system(job["settings"], parameters, layers)


def run_cells(
    jobs: dict[str, dict[str, Any]], results: dict[str, Any], path: Path, count: int,
    script: Path = Path(__file__),
) -> None:  # fmt: skip
    """Every job that has no result yet, `count` at a time, each in a process of its own: `script --cell`."""

    def run(name: str) -> None:
        done = subprocess.run(
            [sys.executable, script, "--cell", json.dumps(jobs[name])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            failed.append(f"{name} failed: {done.stderr}")
            return
        with one_writer:
            results["cells"][name] = json.loads(done.stdout)
            write_results(path, results, indent=2)
            print(name, file=sys.stderr, flush=True)

    failed: list[str] = []
    one_writer = threading.Lock()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, [name for name in jobs if name not in results["cells"]]))
    if failed:
        sys.exit("\n".join(failed))


def main() -> None:
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(cell(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--table", choices=("mixers", "ablation"), required=True)
    parser.add_argument("--base", choices=MIXERS, default="mag", help="the mixer of the ablation")
    parser.add_argument("--recipe", choices=RECIPES, default="five-minutes")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument(
        "--rate", type=float, help="the learning rate of all rows, without a search"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--speed", type=int, default=0, help="rounds of short runs for tokens/s and memory"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()

    if options.table == "mixers":
        systems, name = MIXERS, f"mixers-{options.recipe}"
    else:
        systems = {k: MIXERS[options.base] + v for k, v in ABLATION.items()}
        name = f"ablation-{options.base}-{options.recipe}"
    chosen = options.only or list(systems)
    path = options.out / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    text = options.data.read_bytes()
    cut = int(0.9 * len(text))
    steps = RECIPES[options.recipe][2]
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.txt", Path(folder) / "test.txt"
        train.write_bytes(text[:cut])
        test.write_bytes(text[cut:])

        def job(row: str, run: Path, held_out: float, steps: int, rate: float, seed: int) -> Any:
            return {
                "settings": systems[row], "recipe": options.recipe, "data": str(train),
                "test": str(test), "held_out": held_out, "steps": steps, "rate": rate,
                "seed": seed, "run": str(run),
            }  # fmt: skip

        cells = results["cells"]
        best = dict.fromkeys(chosen, options.rate)
        rates = dict.fromkeys(chosen if options.rate is None else (), RATES)
        while rates:
            tries = {
                f"{row}, lr {rate}": job(row, Path(folder) / f"{row}{rate}", 0.1, steps, rate, 0)
                for row in rates for rate in rates[row]
            }  # fmt: skip
            run_cells(tries, results, path, options.jobs)
            for row in rates:
                best[row] = min(
                    rates[row], key=lambda rate: cells[f"{row}, lr {rate}"]["valid_bits_per_byte"]
                )
            rates = {
                row: (*tried, 2 * tried[-1])
                for row, tried in rates.items()
                if best[row] == tried[-1]
            }
        seeds = {
            f"{row}, seed {seed}": job(
                row, options.runs / name / f"{row}-{seed}", 0.0, steps, best[row], seed
            )
            for seed in range(options.seeds) for row in chosen
        }  # fmt: skip
        for name, one in seeds.items():  # of a learning rate that was the best of fewer
            if name in cells and cells[name]["lr"] != one["rate"]:
                del cells[name]
        run_cells(seeds, results, path, options.jobs)
        rounds = {
            f"{row}, round {r}": job(row, Path(folder) / f"{row}{r}", 0.1, 15, best[row], r)
            for r in range(options.speed) for row in chosen
        }  # fmt: skip
        for name in rounds:
            cells.pop(name, None)
        run_cells(rounds, results, path, 1)
    results |= {
        "tokens": steps * 16 * 256, "jobs": options.jobs,
        "floors": floors(text[:cut], text[cut:]),
    }  # fmt: skip
    write_results(path, results, indent=2)
    print(table(results, systems))


def table(results: dict[str, Any], systems: dict[str, list[str]]) -> str:
    """Markdown: mean and spread over the seeds."""
    lines = [
        "| system | parameters | lr | seeds | bits per byte: carried | spread | frozen | reset "
        "| tokens/s | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in systems:
        cells = [c for k, c in results["cells"].items() if k.startswith(f"{row}, seed")]
        if not cells:
            continue
        tests = [c["test_bits_per_byte"] for c in cells]
        figures = []
        for mode in ("carried", "frozen", "reset"):
            values = [t.get(mode, t.get("window")) for t in tests]
            figures.append(f"{statistics.mean(values):.3f}")
            if mode == "carried":
                figures.append(f"{max(values) - min(values):.3f}")
        rounds = [c for k, c in results["cells"].items() if k.startswith(f"{row}, round")]
        figures += [
            f"{statistics.median(c[name] for c in rounds):,.0f}" if rounds else ""
            for name in ("tokens_per_s", "added_memory_mib")
        ]
        lines.append(
            f"| {row} | {cells[0]['parameters']:,} | {cells[0]['lr']} | {len(cells)} "
            f"| {' | '.join(figures)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
