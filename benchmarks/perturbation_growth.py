"""Growth of a 1e-12 perturbation of the memories' initial weights over 4,096 bytes of real text.

Each preset reads the same text twice in float64, untrained, the second time with every initial memory
moved by 1e-12 times a normal draw; what is reported is the largest difference of the logits of a chunk.
Done for both values that forgetting may return to, with and without the clamp on surprise; then for the
hybrids in the two small sizes as they begin, and for trained runs. `--part memories` does it for the LMM
of preset tiny by depth and chunk of its memories, as it begins, and for trained runs beside it.

    python benchmarks/perturbation_growth.py --out benchmarks/results --picture docs/stability.png [RUN ...]
    python benchmarks/perturbation_growth.py --part memories --out benchmarks/results \\
        --picture docs/growth.png [RUN ...]
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cells import write_results
from provenance import provenance
from torch import Tensor

from titans_core import PRESETS, BackboneConfig, MemoryConfig
from titans_domains.language.corpus import EMBEDDED, documents
from titans_domains.language.model import LanguageModel
from titans_domains.language.task import load_run
from titans_domains.language.tokenizers import ByteTokenizer

SIZE = 1e-12
AT = (64, 256, 512, 1024, 2048, 4096)
CHUNK = 16
PIECE = 512
DEPTHS, CHUNKS = (1, 2, 3, 4), (1, 4, 16, 64)
FORGETTING = tuple(product(("initial", "zero"), (1.0, None)))


@torch.no_grad()
def logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits [T, vocab] of one stream, read piece by piece."""
    state, parts = None, []
    for piece in tokens.split(PIECE):
        y, state = model(piece[None], state)
        parts.append(y[0])
    return torch.cat(parts)


@torch.no_grad()
def move(model: LanguageModel, size: float) -> None:
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if ".initial." in name:
            weight.add_(torch.randn_like(weight), alpha=size)


def untrained(config: BackboneConfig) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(config, ByteTokenizer.vocab_size)


def trained(run: Path) -> LanguageModel:
    return load_run(run, torch.device("cpu"))[0]


def growth(model: LanguageModel, tokens: Tensor) -> list[float]:
    """Largest difference of the logits in each chunk."""
    model = model.double()
    before = logits(model, tokens)
    move(model, SIZE)
    apart = (logits(model, tokens) - before).abs().amax(-1)
    chunks = apart.unflatten(0, (-1, CHUNK)).amax(-1).tolist()
    return [float(f"{figure:.3g}") for figure in chunks]


def table(results: dict[str, Any]) -> str:
    lines = ["preset | forget | clamp | " + " | ".join(map(str, AT))]
    for cell, chunks in results["cells"].items():
        figures = [f"{chunks[at // CHUNK - 1]:.0e}" for at in AT]
        lines.append(" | ".join([*cell.split(), *figures]))
    lines.append("hybrid | " + " | ".join(map(str, AT)))
    for cell, chunks in results["hybrids"].items():
        lines.append(" | ".join([cell, *(f"{chunks[at // CHUNK - 1]:.0e}" for at in AT)]))
    return "\n".join(lines)


def name_of(memory: MemoryConfig, of: str) -> str:
    clamp = "none" if memory.max_surprise is None else memory.max_surprise
    return f"{memory.depth} {memory.chunk_size} {memory.forget} {clamp} {of}"


def memories_table(cells: dict[str, list[float]]) -> str:
    head = ["depth", "chunk", "forget", "clamp", "model", *map(str, AT)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell, chunks in sorted(cells.items(), key=lambda item: item[0].endswith(" untrained") < 1):
        figures = [f"{chunks[at // CHUNK - 1]:.0e}" for at in AT]
        lines.append(f"| {' | '.join([*cell.split(maxsplit=4), *figures])} |")
    return "\n".join(lines)


def draw_memories(cells: dict[str, list[float]], picture: Path) -> None:
    """A panel for each depth and value that forgetting returns to; trained runs are the thick lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, len(DEPTHS), sharex=True, sharey=True, squeeze=False)
    for cell, chunks in cells.items():
        depth, chunk, forget, clamp, of = cell.split(maxsplit=4)
        if int(depth) in DEPTHS and int(chunk) in CHUNKS and forget != "none":
            panel = panels[int(forget == "zero")][DEPTHS.index(int(depth))]
            x = [CHUNK * (i + 1) for i in range(len(chunks))]
            style = {"ls": ":" if clamp == "none" else "-", "lw": 1 if of == "untrained" else 2.5}
            label = f"chunk {chunk}{', no clamp' * (clamp == 'none')}"
            color = f"C{CHUNKS.index(int(chunk))}"
            panel.loglog(
                x, chunks, color=color, label=label if of == "untrained" else None, **style
            )
    for n, depth in enumerate(DEPTHS):
        panels[0][n].set_title(f"depth {depth}, toward the initial memory", fontsize=9)
        panels[1][n].set_title(f"depth {depth}, toward zero", fontsize=9)
        panels[1][n].set_xlabel("bytes read", fontsize=9)
        for panel in panels[:, n]:
            panel.grid(alpha=0.3)
    figure.supylabel("difference of the logits", fontsize=9)
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=7, ncols=8, loc="outside lower center")
    figure.savefig(picture, dpi=110)


def draw(results: dict[str, Any], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, forget, title in zip(
        panels,
        ("initial", "zero"),
        ("forgetting returns to the initial memory", "forgetting returns to zero"),
        strict=True,
    ):
        for cell, chunks in results["cells"].items():
            preset, kind, clamp = cell.split()
            if kind == forget:
                x = [CHUNK * (i + 1) for i in range(len(chunks))]
                color = f"C{list(PRESETS).index(preset)}"
                label = preset if clamp != "none" else f"{preset}, no clamp"
                panel.loglog(
                    x, chunks, color=color, lw=1, ls="-" if clamp != "none" else ":", label=label
                )
        panel.set(title=title, xlabel="bytes read")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("difference of the logits")
    panels[0].legend(fontsize=7, ncols=2, loc="upper left")
    figure.savefig(picture, dpi=120)


Measured = tuple[str, str, Callable[[], LanguageModel]]  # part of the results, cell, model


def by_preset(presets: list[str], runs: list[Path]) -> Iterator[Measured]:
    for preset, (forget, clamp) in product(presets, FORGETTING):
        memory = replace(PRESETS[preset].memory, forget=forget, max_surprise=clamp)
        config = replace(PRESETS[preset], memory=memory)
        name = f"{preset} {forget} {'none' if clamp is None else clamp}"
        yield "cells", name, partial(untrained, config)
    for preset, mixer in product(("tiny", "small"), ("mac", "mag", "mal", "mac+mal")):
        config = replace(PRESETS[preset], mixer=mixer)
        yield "hybrids", f"{preset} {mixer}", partial(untrained, config)
    for run in runs:
        yield "hybrids", f"trained {run.name}", partial(trained, run)


def by_memory(runs: list[Path]) -> Iterator[Measured]:
    tiny = PRESETS["tiny"]
    for depth, chunk, (forget, clamp) in product(DEPTHS, CHUNKS, FORGETTING):
        memory = replace(
            tiny.memory, depth=depth, chunk_size=chunk, forget=forget, max_surprise=clamp
        )
        config = replace(tiny, memory=memory)
        yield "memories", name_of(memory, "untrained"), partial(untrained, config)
    for run in runs:
        memory = load_run(run, torch.device("cpu"))[2].model.memory
        yield "memories", name_of(memory, run.name), partial(trained, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("presets", "memories"), default="presets")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    options = parser.parse_args()
    text = b"".join(documents(EMBEDDED))[: AT[-1]]
    tokens = torch.from_numpy(ByteTokenizer().encode(text))
    path = options.out / "perturbation_growth.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in ("cells", "hybrids", "memories"):
        results.setdefault(part, {})
    memories = options.part == "memories"
    cells = by_memory(options.runs) if memories else by_preset(options.presets, options.runs)
    for part, cell, build in cells:
        if cell not in results[part]:
            results[part][cell] = growth(build(), tokens)
            made_with = {"perturbation": SIZE, **provenance()}
            results.update({"memories_made_with": made_with} if memories else made_with)
            write_results(path, results, indent=None)
            print(cell, file=sys.stderr, flush=True)
    print(memories_table(results["memories"]) if memories else table(results))
    if options.picture:
        if memories:
            draw_memories(results["memories"], options.picture)
        else:
            draw(results, options.picture)


if __name__ == "__main__":
    main()
