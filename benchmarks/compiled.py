"""A training step with blocks as they are, and with blocks by torch.compile, in turns.

The first step of each compiles; the fastest and the middle of the others count.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from provenance import command, provenance

from titans_core import PRESETS
from titans_domains.language.model import LanguageModel, next_token_loss

VOCAB = 257
WARM = 3


def stepper(
    mixer: str, rows: int, length: int, *, compiled: bool, bf16: bool
) -> Callable[[], float]:
    """Seconds of the next step of a stream."""
    torch.manual_seed(0)
    model = LanguageModel(replace(PRESETS["small"], mixer=mixer), VOCAB)
    if compiled:
        model.backbone.compile_blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, VOCAB, (rows, length + 1))
    # As in training: a cache that grows is not carried.
    bounded, carried = model.backbone.config.bounded, model.backbone.fresh_state(rows)
    carried = model.backbone.put_down(carried) if bounded else None

    def step() -> float:
        nonlocal carried
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            begun_from = model.backbone.take_up(carried) if bounded else None
            logits, state = model(tokens[:, :-1], begun_from)
            loss = next_token_loss(logits, tokens[:, 1:], None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        carried = model.backbone.put_down(state) if bounded else None
        return time.perf_counter() - begun

    return step


def compare(mixer: str, args: argparse.Namespace) -> dict[str, Any]:
    steps = {
        name: stepper(mixer, args.rows, args.length, compiled=name == "compiled", bf16=args.bf16)
        for name in ("plain", "compiled")
    }
    first = {name: sum(step() for _ in range(WARM)) for name, step in steps.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.steps):
        for name, step in steps.items():
            found[name].append(step())
    row = {"mixer": mixer, "first_steps_s": first}
    for name, measure in (("fastest_s", min), ("median_s", statistics.median)):
        row[name] = {key: measure(times) for key, times in found.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixers", default="lmm,mag,attention")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for mixer in args.mixers.split(","):
        rows.append(compare(mixer, args))
        print(json.dumps(rows[-1]), flush=True)
    result = {"command": command(), "seed": 0, "threads": 1, **provenance(), "rows": rows}
    (args.out / "compiled.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
