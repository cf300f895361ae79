"""Growth of a 1e-12 perturbation of the memories' initial weights over 4,096 bytes of real text.

Each preset reads the same text twice in float64, untrained, the second time with every initial memory
moved by 1e-12 times a normal draw; what is reported is the largest difference of the logits of a chunk.
Done for both values that forgetting may return to, with and without the clamp on surprise; then for the
hybrids in the two small sizes as they begin, and for trained runs.

    python benchmarks/perturbation_growth.py --out benchmarks/results --picture docs/stability.png [RUN ...]
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from torch import Tensor

from titans_core import PRESETS, BackboneConfig
from titans_domains.language.corpus import EMBEDDED, documents
from titans_domains.language.model import LanguageModel
from titans_domains.language.task import load_run
from titans_domains.language.tokenizers import ByteTokenizer

SIZE = 1e-12
AT = (64, 256, 512, 1024, 2048, 4096)
CHUNK = 16
PIECE = 512


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    options = parser.parse_args()
    text = b"".join(documents(EMBEDDED))[: AT[-1]]
    tokens = torch.from_numpy(ByteTokenizer().encode(text))
    path = options.out / "perturbation_growth.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in ("cells", "hybrids"):
        results.setdefault(part, {})

    def measure(part: str, cell: str, build: Callable[[], LanguageModel]) -> None:
        if cell not in results[part]:
            results[part][cell] = growth(build(), tokens)
            results.update(perturbation=SIZE, **provenance())
            path.write_text(json.dumps(results) + "\n")
            print(cell, flush=True)

    for preset, forget, clamp in product(options.presets, ("initial", "zero"), (1.0, None)):
        memory = replace(PRESETS[preset].memory, forget=forget, max_surprise=clamp)
        config = replace(PRESETS[preset], memory=memory)
        name = f"{preset} {forget} {'none' if clamp is None else clamp}"
        measure("cells", name, partial(untrained, config))
    for preset, mixer in product(("tiny", "small"), ("mac", "mag", "mal", "mac+mal")):
        config = replace(PRESETS[preset], mixer=mixer)
        measure("hybrids", f"{preset} {mixer}", partial(untrained, config))
    for run in options.runs:
        measure("hybrids", f"trained {run.name}", partial(trained, run))
    print(table(results))
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
