"""Bits per byte on tiny-shakespeare: LMM and Transformer++ of equal parameters, tokens and seed.

The last 10 % of the bytes are the test. Learning rate and one setting per system (the memory's largest
step; convolutions or none for attention) are chosen by the last tenth of the rest, in short runs; the
chosen setting is then trained on the first 90 % and tested once. Finished cells are kept in --out, so
that a run that was stopped goes on where it was.

    python benchmarks/tinyshakespeare.py --data input.txt --system lmm --out benchmarks/results
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from titans_core import PRESETS, BackboneConfig, count_parameters
from titans_domains.config import override
from titans_domains.language.evaluate import bits_per_byte
from titans_domains.language.floors import floors
from titans_domains.language.task import DataConfig, LanguageConfig, LanguageTask
from titans_domains.training import TrainConfig, train

CPU = torch.device("cpu")
# 492 makes the Transformer++ as large as the LMM, within 0.5 %.
SYSTEMS: dict[str, tuple[BackboneConfig, str, list[Any]]] = {
    "lmm": (
        PRESETS["small"],
        "model.memory.max_step_size",
        [0.1, 0.3],
    ),
    "attention": (
        dataclasses.replace(PRESETS["small"], mixer="attention", ffn_dim=492),
        "model.attention.conv_size",
        [4, 0],
    ),
}
RATES = [2e-3, 4e-3, 8e-3, 1.6e-2]


def config(model: BackboneConfig, data: Path, steps: int, held_out: float, seed: int) -> Any:
    return LanguageConfig(
        model=model,
        data=DataConfig(source=str(data), seq_len=512, held_out=held_out, valid_bytes=32768),
        train=TrainConfig(
            steps=steps, batch_size=8, warmup=20, valid_every=steps, checkpoint_every=steps
        ),
        seed=seed,
    )


def run(settings: LanguageConfig) -> tuple[LanguageTask, dict[str, float]]:
    task = LanguageTask(settings, CPU)
    rows = {}

    def show(step: int, row: dict[str, Any]) -> None:
        rows.update(row)
        if step % 20 == 0:
            print(
                f"step {step} loss {row['bits_per_byte']:.3f} {row['tokens_per_s']} tok/s",
                flush=True,
            )

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train(task, task.config.train, Path(folder), device=CPU, show=show)
    return task, rows | {"seconds": time.perf_counter() - began}


def best_of(results: dict[str, Any], prefix: str = "") -> str:
    cells = [cell for cell in results["search"] if cell.startswith(prefix)]
    return min(cells, key=lambda cell: results["search"][cell])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--system", choices=SYSTEMS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--search-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    text = options.data.read_bytes()
    cut = int(0.9 * len(text))
    model, knob, values = SYSTEMS[options.system]
    path = options.out / f"tinyshakespeare-{options.system}.json"
    results = json.loads(path.read_text()) if path.exists() else {"search": {}}
    asked = {"seed": options.seed, "search_steps": options.search_steps, **provenance()}
    if results.setdefault("search_of", asked) != asked:
        parser.error(f"{path} holds a search of {results['search_of']}: choose another --out.")

    def save() -> None:
        path.write_text(json.dumps(results, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "train.txt"
        first.write_bytes(text[:cut])
        # Rates at the first value of the knob, then the other values at the best rate.
        for value in values:
            rates = RATES
            if value != values[0]:
                rates = [float(best_of(results, f"{knob}={values[0]} ").split("lr=")[1])]
            for rate in rates:
                cell = f"{knob}={value} train.lr={rate}"
                if cell not in results["search"]:
                    print(cell, flush=True)
                    tried = config(model, first, options.search_steps, 0.1, options.seed)
                    _, row = run(override(tried, cell.split()))
                    results["search"][cell] = row["valid_bits_per_byte"]
                    save()
        best = best_of(results)
        print("best", best, flush=True)
        chosen = config(model, first, options.steps, 0.0, options.seed)
        task, row = run(override(chosen, best.split()))
    test = [text[cut:]]
    modes = ("carried", "frozen", "reset") if model.mixer == "lmm" else ("window",)
    results |= {
        "chosen": best,
        "parameters": count_parameters(task.model),
        "tokens": options.steps * 8 * 512,
        "seed": options.seed,
        "minutes": row["seconds"] / 60,
        "train_bits_per_byte": row["bits_per_byte"],
        "test_bits_per_byte": {
            mode: bits_per_byte(task.model, task.tokenizer, test, mode, window=512)
            for mode in modes
        },
        "floors": floors(text[:cut], test[0]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **provenance(),
    }
    save()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
