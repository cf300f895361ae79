"""The long-horizon benchmark on a data set of one's own, with what made the figures.

A file of results is written anew after each horizon; one that is there is replaced with --force alone.

python benchmarks/longhorizon.py --data ETTh1.csv --out benchmarks/results
python benchmarks/longhorizon.py --data ETTh1.csv --lookback 96 --seeds 0 --out benchmarks/results
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from provenance import command, provenance

from titans_core.files import write_whole
from titans_domains.config import override
from titans_domains.timeseries.longhorizon import Recipe, markdown, run_benchmark
from titans_domains.timeseries.protocol import LOOKBACKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lookback", type=int)
    parser.add_argument("--horizons", type=int, nargs="+", default=[96, 192, 336, 720])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--baselines", nargs="*", default=[])
    parser.add_argument("--name", default="", help="part of the result's name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--force", action="store_true", help="replace results that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = {"command": command(), **provenance()}

    def file_of(lookback: int) -> Path:
        name: str = f"longhorizon-{options.data.stem}-{lookback}{options.name}.json"
        return Path(options.out, name)

    asked = LOOKBACKS if options.lookback is None else (options.lookback,)
    there = [path for path in map(file_of, asked) if path.exists()]
    if there and not options.force:
        parser.error(f"{there[0]} is there already: give another --name or --out, or --force.")
    options.out.mkdir(parents=True, exist_ok=True)

    def save(results: dict[str, Any]) -> None:
        write_whole(file_of(results["lookback"]), json.dumps(made | results, indent=2) + "\n")

    results = run_benchmark(
        options.data,
        horizons=options.horizons,
        lookback=options.lookback,
        seeds=options.seeds,
        recipe=override(Recipe(), options.settings),
        baselines=options.baselines,
        talk=lambda line: print(line, flush=True),
        save=save,
    )
    print(markdown(results))


if __name__ == "__main__":
    main()
