"""What is left of a pair in the memories, and how large they are, while a million tokens of text go by.

Each head of each memory is given a pair of its own, a random unit key and a normal value, before the text:
written alone for four chunks, at the layer's largest step, with no momentum and no forgetting. Beside this
row a second one reads the same text without any pair. At 64, 128, 256 ... tokens: the error of what is
recalled at the key (1: as large as the value), in either row; how much of what the writing changed there
is left; largest norms of memory and running surprise, and the momentary surprise of the last tokens (up
to 1,024), of the row without a pair. Untrained models are of preset tiny, trained ones runs of
`titans language train` or `mixers.py`. Each is read in a process of its own.

    python benchmarks/stability.py --data book.txt --out benchmarks/results --picture p.png [RUN ...]
"""

import argparse
import hashlib
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from cells import weights_of
from long_stream import is_finite, norms
from mixers import run_cells
from provenance import provenance
from stored_pair import Listener, drift, each_memory, pair_of, recalls_of, store
from torch import Tensor

from titans_core import PRESETS, map_state
from titans_domains.config import override
from titans_domains.language.model import LanguageModel
from titans_domains.language.task import load_run
from titans_domains.language.tokenizers import ByteTokenizer
from titans_kernels import MemoryState

PIECE = 1024
FIRST = 64  # a whole number of chunks
SHOWN = (0, 64, 1024, 2**14, 2**20)
UNTRAINED: dict[str, list[str]] = {
    **{f"lmm, depth {depth}": [f"memory.depth={depth}"] for depth in (1, 2, 3, 4)},
    "lmm, toward zero": ["memory.forget=zero"],
    "lmm, toward zero, no clamp": ["memory.forget=zero", "memory.max_surprise=none"],
    "lmm, no forgetting": ["memory.forget=none"],
    **{mixer: [f"mixer={mixer}"] for mixer in ("mac", "mag", "mal", "mac+mal")},
}


@torch.no_grad()
def stream(model: LanguageModel, text: Tensor) -> dict[str, Any]:
    """Figures at 0, 64, 128, 256 ... tokens of a text."""
    model.eval()
    recalls = recalls_of(model)
    for recall in recalls:
        if FIRST % recall.rule.chunk_size:
            raise ValueError(
                f"memory.chunk_size must divide {FIRST}: got {recall.rule.chunk_size}."
            )
    pairs = [pair_of(recall, seed) for seed, recall in enumerate(recalls)]
    listener, parts = Listener(recalls), iter(zip(recalls, pairs, strict=True))

    def written(memory: MemoryState) -> MemoryState:
        recall, pair = next(parts)
        return store(recall, memory, pair)

    began = state = each_memory(model.backbone.fresh_state(2), written)
    rows = [{"tokens": 0, **drift(recalls, pairs, began, state)}]
    finite, before = True, time.perf_counter()
    marks = [0, *(FIRST << n for n in range(64) if FIRST << n <= len(text))]
    for first, end in pairwise(marks):
        pieces = text[first:end].split(PIECE)
        for n, piece in enumerate(pieces):
            listener.on = n == len(pieces) - 1
            logits, state = model(piece.expand(2, -1), state)
            finite = finite and bool(logits.isfinite().all())
        finite = finite and is_finite(state)
        plain = map_state(lambda part: part[1:], state)
        rows.append({
            "tokens": end, **drift(recalls, pairs, began, state), **norms(plain),
            "momentary": listener.surprise(),
        })  # fmt: skip
    return {
        "rows": rows, "finite": finite,
        "us_per_token": 1e6 * (time.perf_counter() - before) / max(1, marks[-1]),
    }  # fmt: skip


def cell(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    if job["run"] is not None:
        model, tokenizer, _ = load_run(Path(job["run"]), torch.device("cpu"))
    else:
        tokenizer = ByteTokenizer()
        torch.manual_seed(0)
        model = LanguageModel(override(PRESETS["tiny"], job["settings"]), tokenizer.vocab_size)
    text = torch.from_numpy(tokenizer.encode(read(job["data"])))
    text = text.repeat(-(-job["made of"]["tokens"] // len(text)))[: job["made of"]["tokens"]]
    return {"made of": job["made of"], **stream(model, text), **provenance()}


def read(paths: list[str]) -> bytes:
    return b"".join(Path(path).read_bytes() for path in paths)


def jobs_of(data: list[Path], tokens: int, runs: list[Path], only: str) -> dict[str, Any]:
    paths = list(map(str, data))
    made_of = {"tokens": tokens, "text": hashlib.sha256(read(paths)).hexdigest()[:16]}
    models: dict[str, dict[str, Any]] = {
        name: {"settings": settings, "run": None, "made of": made_of | {"settings": settings}}
        for name, settings in UNTRAINED.items()
    }
    for run in runs:
        weights = {"weights": weights_of(run)}
        models[f"trained {run.name}"] = {"run": str(run), "made of": made_of | weights}
    return {name: {"data": paths, **job} for name, job in models.items() if only in name}


FIGURES = {
    "error": "error of the recalled pair",
    "left": "left of what was written",
    "memory": "norm of the memory",
    "momentary": "momentary surprise",
}


def table(cells: dict[str, Any]) -> str:
    head = [
        "model",
        "tokens",
        "error",
        "without the pair",
        "left",
        "memory",
        "surprise",
        "momentary",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, cell in cells.items():
        for row in cell["rows"]:
            if row["tokens"] in SHOWN:
                names = ("error", "error without", "left", "memory", "surprise", "momentary")
                figures = [f"{row[key]:.3g}" if key in row else "" for key in names]
                lines.append(f"| {' | '.join([name, format(row['tokens'], ','), *figures])} |")
        if not cell["finite"]:
            lines.append(f"| {name} | not finite |" + " |" * (len(head) - 2))
    return "\n".join(lines)


def draw(cells: dict[str, Any], picture: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    colors = colormaps["tab20"].colors
    panels = figure.subplots(2, 2, sharex=True).flatten()
    for panel, (key, title) in zip(panels, FIGURES.items(), strict=True):
        for n, (name, cell) in enumerate(cells.items()):
            at = [row for row in cell["rows"] if key in row and row["tokens"]]
            # What is left may have any sign once it is only noise.
            y = [abs(row[key]) for row in at]
            style = "--" if name.startswith("trained") else "-"
            x = [row["tokens"] for row in at]
            panel.loglog(
                x,
                y,
                style,
                color=colors[2 * n % 20 + n // 10 % 2],
                lw=1,
                marker=".",
                ms=3,
                label=name,
            )
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[2:]:
        panel.set_xlabel("tokens read", fontsize=9)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=7, ncols=5, loc="outside lower center")
    figure.savefig(picture, dpi=110)


def main() -> None:
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(cell(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="texts, read in a row")
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--only", default="", help="part of the names of the cells to measure")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    path = options.out / "stability.json"
    results = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    cells = results["cells"]
    jobs = jobs_of(options.data, options.tokens, options.runs, options.only)
    for name, job in jobs.items():
        if name in cells and cells[name]["made of"] != job["made of"]:
            del cells[name]
    run_cells(jobs, results, path, options.jobs, Path(__file__))
    print(table(cells))
    if options.picture:
        draw(cells, options.picture)


if __name__ == "__main__":
    main()
