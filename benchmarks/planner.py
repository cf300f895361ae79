"""What `titans plan` foretells beside what a run takes: peak memory and tokens/s on a CPU.

Every case is trained for a few steps in a process of its own, which has trained a tiny model of the kind
before, so that libraries are there. Its peak is the resident memory beyond that, before the last step's
checkpoint is written. glibc keeps much of what is let go: the measured peak is that under
MALLOC_MMAP_THRESHOLD_=65536, by which it does not, and that of a process as it is stands beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from provenance import command, provenance

from titans_domains.config import override
from titans_domains.language import DOMAIN
from titans_domains.plan import Planner
from titans_domains.plan_table import seconds_per_token
from titans_domains.runs import train_run

CPU = torch.device("cpu")
STEPS = 4
THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "65536"}
WIDE = [
    "model.dim=256", "model.memory.num_heads=4", "model.attention.num_heads=4",
]  # fmt: skip
CASES: dict[str, list[str]] = {
    "lmm": ["train.batch_size=8", "data.seq_len=512"],
    "lmm, checkpointed": ["train.batch_size=8", "data.seq_len=512", "train.checkpoint_activations=true"],
    "lmm, two parts": ["train.batch_size=8", "data.seq_len=512", "train.accumulate=2"],
    "mag, bf16": ["model.mixer=mag", "train.batch_size=4", "data.seq_len=512", "train.precision=bf16"],
    "mal": ["model.mixer=mal", *WIDE, "train.batch_size=4", "data.seq_len=256"],
    "mac": ["model.mixer=mac", "train.batch_size=4", "data.seq_len=512"],
    "mac, checkpointed": [
        "model.mixer=mac", *WIDE, "train.batch_size=4", "data.seq_len=512",
        "train.checkpoint_activations=true",
    ],
    "attention": [
        "model.mixer=attention", *WIDE, "model.num_layers=8", "train.batch_size=4",
        "data.seq_len=512", "data.tokenizer=bpe",
    ],
    "gated-deltanet": [
        "model.mixer=gated-deltanet", *WIDE, "train.batch_size=4", "data.seq_len=256",
    ],
    "lmm, 30M": [
        "model.dim=512", "model.memory.num_heads=8", "model.num_layers=8", "train.batch_size=2",
        "data.seq_len=256",
    ],
}  # fmt: skip


def configuration(settings: list[str]) -> Any:
    fixed = ["train.valid_every=0", f"train.steps={STEPS}", f"train.checkpoint_every={STEPS}"]
    return override(DOMAIN.presets["small"], [*fixed, *settings])


def resident(which: str) -> float:
    """MiB that this process holds (VmRSS), or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def measure(settings: list[str]) -> dict[str, float]:
    """Peak and tokens/s of a run."""
    rows: list[dict[str, Any]] = []
    peaks: list[float] = []

    def show(step: int, row: dict[str, Any]) -> None:
        rows.append(row)
        peaks.append(resident("VmHWM"))

    with tempfile.TemporaryDirectory() as folder:
        train_run(DOMAIN, configuration([*settings, *FIRST]), Path(folder, "first"), device=CPU)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        train_run(DOMAIN, configuration(settings), Path(folder, "run"), device=CPU, show=show)
    rate = max(row["tokens_per_s"] for row in rows[1:])
    return {"peak_mib": peaks[-1] - before, "tokens_per_s": rate}


FIRST = [
    "model.dim=16", "model.num_layers=1", "model.memory.num_heads=1", "model.attention.num_heads=1",
    "data.seq_len=64", "train.batch_size=1", "train.steps=1",
]  # fmt: skip


def predict(settings: list[str]) -> dict[str, float]:
    config = configuration(settings)
    planner, train = Planner(config), config.train
    step = planner.step(train.batch_size, train.accumulate, checkpoint=train.checkpoint_activations)
    return {
        "parameters": sum(planner.parameters),
        "peak_mib": step.most(1, "ddp") / 2**20,
        "tokens_per_s": 1 / seconds_per_token(planner),
    }


def in_a_process(part: str, name: str, extra: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, "--case", name],
        env={**os.environ, **extra}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def case(name: str) -> dict[str, Any]:
    predicted = in_a_process("predict", name, {})
    measured = in_a_process("measure", name, THRESHOLD)
    as_it_is = in_a_process("measure", name, {})
    rate = max(measured["tokens_per_s"], as_it_is["tokens_per_s"])
    return {
        "case": name, "settings": CASES[name], "parameters": predicted["parameters"],
        "predicted_mib": predicted["peak_mib"], "measured_mib": measured["peak_mib"],
        "error": predicted["peak_mib"] / measured["peak_mib"] - 1,
        "measured_mib_plain_glibc": as_it_is["peak_mib"],
        "predicted_tokens_per_s": predicted["tokens_per_s"], "measured_tokens_per_s": rate,
        "error_tokens_per_s": predicted["tokens_per_s"] / rate - 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--case", choices=CASES, action="append", help="Of a table, anew.")
    parser.add_argument("--part", choices=("measure", "predict"), help="In this process.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part:
        work = {"measure": measure, "predict": predict}[args.part]
        print(json.dumps(work(CASES[args.case[0]])))
        return
    path = args.out / "planner.json"
    rows = {row["case"]: row for row in json.loads(path.read_text())["cases"]} if args.case else {}
    for name in args.case or CASES:
        rows[name] = case(name)
        print(json.dumps(rows[name]), file=sys.stderr, flush=True)
    cases = [rows[name] for name in CASES if name in rows]
    result = {"command": command(), "seed": 0, "threads": 1, **provenance(), "cases": cases}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
