"""A million tokens through each mixer: state, process memory, time, and size of memory and surprise.

The runs (any trained with `titans language train`) read a text over and over, batch 1, in pieces of
1,024 tokens, then 10,000 tokens one at a time. Each run is read in a process of its own.

    python benchmarks/long_stream.py --data book.txt --out benchmarks/results --picture p.png RUN
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cells import cell
from torch import Tensor

from titans_core import state_bytes
from titans_core.state import named_tensors
from titans_domains.language.task import load_run

PIECE = 1024
MARKS = (1_000, 10_000, 100_000, 1_000_000)
CURVE = 64  # points of a curve of norms


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def norms(state: Any) -> dict[str, float]:
    """Largest Frobenius norm of a head's layer, over all memories of the state."""
    found = {"memory": 0.0, "surprise": 0.0}

    def visit(node: Any) -> None:
        if isinstance(node, tuple):
            for name in found:
                if hasattr(node, "chunk_memory"):
                    for w in getattr(node, name):
                        size = torch.linalg.matrix_norm(w).max().item()
                        found[name] = max(found[name], size)
            for child in node:
                visit(child)

    visit(state)
    return found


def is_finite(state: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in named_tensors(state).values())


@torch.no_grad()
def stream(run: Path, data: Path, tokens: int, singles: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model, tokenizer, config = load_run(run, torch.device("cpu"))
    text = torch.from_numpy(tokenizer.encode(data.read_bytes()))
    text = text.repeat(-(-(tokens + singles) // len(text)))[: tokens + singles]
    # The first calls of a process take longer than any later ones: no row shall hold them.
    warm = model(text[None, :PIECE])[1]
    model(text[None, :1], warm)
    state = model.backbone.fresh_state(1)
    rows: list[dict[str, float]] = []
    curve: list[dict[str, float]] = []
    times: list[float] = []
    read, finite = 0, True
    marks = [mark for mark in MARKS if mark <= tokens]

    def feed(piece: Tensor) -> None:
        nonlocal state, read, finite
        began = time.perf_counter()
        logits, state = model(piece[None], state)
        times.append((time.perf_counter() - began) / len(piece))
        read += len(piece)
        finite = finite and bool(logits.isfinite().all())
        # After a single token, a look at the state would take longer than the token.
        if len(piece) > 1 or len(times) % 1_000 == 0:
            finite = finite and is_finite(state)

    for piece in text[:tokens].split(PIECE):
        feed(piece)
        if len(curve) * tokens < read * CURVE:
            curve.append({"tokens": read, **norms(state)})
        if marks and read >= marks[0]:
            recent = times[max(0, len(times) // 2) :]
            rows.append({
                "tokens": marks.pop(0), "state_bytes": state_bytes(state),
                "resident_mib": resident_mib(), "us_per_token": 1e6 * statistics.median(recent),
                **norms(state),
            })  # fmt: skip
    times.clear()
    single_rows = []
    for token in text[tokens:]:
        feed(token[None])
        if len(times) in (1_000, singles):
            single_rows.append({
                "tokens": len(times), "state_bytes": state_bytes(state),
                "resident_mib": resident_mib(),
                "us_per_token": 1e6 * statistics.median(times[-1_000:]),
            })  # fmt: skip
    finite = finite and is_finite(state)
    return {
        "mixer": config.model.mixer, "pieces": rows, "one at a time": single_rows,
        "finite": finite, "curve": curve,
    }  # fmt: skip


def draw(cells: list[dict[str, Any]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, name in zip(panels, ("memory", "surprise"), strict=True):
        for run in cells:
            x = [point["tokens"] for point in run["curve"]]
            panel.plot(x, [point[name] for point in run["curve"]], label=run["mixer"], lw=1)
        title = "what was added to the initial memory" if name == "memory" else "running surprise"
        panel.set(title=title, xlabel="tokens read", ylabel="largest norm of a layer")
        panel.grid(alpha=0.3)
        panel.margins(y=0.2)
        panel.legend(fontsize=8, ncols=5, loc="upper center")
    figure.savefig(picture, dpi=110)


def table(cells: list[dict[str, Any]]) -> str:
    lines = ["| mixer | tokens | state, KiB | process, MiB | µs per token | memory | surprise |"]
    lines.append("|---" * 7 + "|")
    for run in cells:
        for row in [*run["pieces"], *run["one at a time"]]:
            single = "memory" not in row
            columns = [
                run["mixer"], f"{'+ ' * single}{row['tokens']:,}{' singly' * single}",
                f"{row['state_bytes'] / 1024:,.1f}", f"{row['resident_mib']:,.0f}",
                f"{row['us_per_token']:.0f}",
                *("" if single else f"{row[name]:.2f}" for name in ("memory", "surprise")),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--stream"]:
        run, data, tokens, singles = sys.argv[2:]
        print(json.dumps(stream(Path(run), Path(data), int(tokens), int(singles))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--singles", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    path = options.out / "long_stream.json"
    text = options.data.read_bytes()
    made_of = {
        "book": options.data.name,
        "text": hashlib.sha256(text).hexdigest()[:16],
        "tokens": options.tokens,
        "singles": options.singles,
    }

    def measure(run: Path) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, __file__, "--stream", run, options.data,
             str(options.tokens), str(options.singles)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return dict(json.loads(done.stdout))

    cells = []
    for run in options.runs:
        cells.append(cell(path, run, made_of, lambda run=run: measure(run)))
        print(run.name, cells[-1]["pieces"], flush=True)
    print(table(cells))
    if options.picture:
        draw(cells, options.picture)


if __name__ == "__main__":
    main()
