"""How many key-value pairs a memory holds, by depth, width and expansion of its MLP.

Keys are random unit vectors and values normal with variance 1, both as wide as a head. N pairs are written
once each, in one stream, and then every key is asked: a pair is right when, of the N values, its own is
the nearest to what is recalled. The capacity is the largest N of which at least 90 % are right, measured at
powers of two and interpolated to the next. The step size is the best of `STEPS`, by capacity, on other
pairs and other initial memories.

plain: every pair written alike, nothing forgotten, no momentum, no clamp. default: forgetting and momentum
that a layer starts with, and its clamp; beside it what the largest step of the defaults holds. bare: as
plain, without the residual and the layer norm that stand around the MLP. trained: as plain, with initial
memory, norm and a step size per layer learned for it. The matrices have as many floats as the MLP and rows
for the same values, so their keys are wider.

    python benchmarks/capacity.py --out benchmarks/results --picture docs/capacity.png
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cells import kept
from learned_start import TRAINING, trained
from memories import (
    ENOUGH,
    Draw,
    Matrix,
    Mlp,
    Setting,
    Shape,
    capacity,
    curve,
    on_sphere,
    pairs,
    score,
)
from provenance import provenance

from titans_core.memory import FORGET_BIAS, MOMENTUM_BIAS, MemoryConfig

LARGEST = MemoryConfig().max_step_size
STEPS = (*sorted([LARGEST / 2, LARGEST, *(2.0**i for i in range(-12, 6))]),)
SHAPES = [
    Shape(depth, width, expansion)
    for depth, width, expansion in product((1, 2, 3, 4), (16, 32, 64), (1, 2, 4))
    if depth > 1 or expansion == 1
]
CHUNKS = (1, 16)
SETTINGS = {
    "plain": Setting(),
    "default": Setting(
        momentum=1 / (1 + math.exp(-MOMENTUM_BIAS)),
        forget=1 / (1 + math.exp(-FORGET_BIAS)),
        clamp=MemoryConfig().max_surprise,
    ),
    "bare": Setting(normed=False),
}
# What two minutes allow.
TRAINED = [
    (shape, chunk)
    for shape, chunk in product(SHAPES, CHUNKS)
    if (shape.width == 16 or (shape.width == 32 and chunk == 16))
    and shape.expansion == (4 if shape.depth > 1 else 1)
]
MATRICES: dict[str, tuple[float, ...] | None] = {"linear": None, "delta": (0.25, 0.5, 1.0)}


CHOOSING, ASKING = Draw(1, 4, 4), Draw(2, 16, 8)


def chosen(
    steps: tuple[float, ...], points: list[dict[str, Any]]
) -> tuple[float, dict[str, float]]:
    """The step size that holds the most, and what each of them holds."""
    held = {f"{step:g}": capacity(points, n) for n, step in enumerate(steps)}
    return max(steps, key=lambda step: held[f"{step:g}"]), held


def mlp(shape: Shape, setting: Setting, chunk: int) -> dict[str, Any]:
    def of(draw: Draw, steps: tuple[float, ...]) -> list[dict[str, Any]]:
        memory = Mlp.fresh(shape, setting, chunk, torch.tensor(steps), draw.heads, draw.seed)
        return curve(memory, pairs(draw, shape.width, shape.width))

    step, tried = chosen(STEPS, of(CHOOSING, STEPS))
    points = of(ASKING, (step,))
    return {"step": step, "tried": tried, "capacity": capacity(points), "points": points}


def matrix(shape: Shape, steps: tuple[float, ...] | None) -> dict[str, Any]:
    """A matrix of as many floats, with rows for the same values."""
    keys = shape.floats // shape.width

    def of(seed: int, steps: tuple[float, ...] | None) -> list[dict[str, Any]]:
        # Many pairs in a wide matrix need no repetition.
        return curve(Matrix(steps), pairs(Draw(seed, max(2, 2048 // keys), 1), keys, shape.width))

    tried: dict[str, float] = {}
    if steps is not None:
        best, tried = chosen(steps, of(CHOOSING.seed, steps))
        steps = (best,)
    points = of(ASKING.seed, steps)
    return {
        "step": steps and steps[0], "tried": tried, "keys": keys,
        "capacity": capacity(points), "points": points,
    }  # fmt: skip


def floor(width: int, count: int) -> tuple[float, float]:
    """Share right and error of `count` pairs where each recall is the nearest that there can be."""
    k, v = pairs(ASKING, width, width)(count)
    return score(on_sphere(k, v), v)


def cells(path: Path, only: str) -> dict[str, dict[str, Any]]:
    """Every cell whose name has `only` in it, measured where it is not there yet."""
    found: dict[str, dict[str, Any]] = {}

    def measure(name: str, made_of: dict[str, Any], figures: Callable[[], dict[str, Any]]) -> None:
        if only not in name:
            return

        def timed() -> dict[str, Any]:
            began = time.perf_counter()
            return {**figures(), "seconds": time.perf_counter() - began, **provenance()}

        made_of = json.loads(json.dumps(made_of))
        new = found[name] = kept(path, "cells", name, made_of, timed)
        print(f"{name}: {new['capacity']:.1f}, {new['seconds']:.1f} s", file=sys.stderr, flush=True)

    for shape in SHAPES:
        asked = {"shape": shape, "draws": [CHOOSING, ASKING], "enough": ENOUGH}
        for kind, setting in SETTINGS.items():
            for chunk in CHUNKS:
                made_of = {**asked, "setting": setting, "chunk": chunk, "steps": STEPS}
                measure(
                    f"{shape.name} {kind} {chunk}", made_of, partial(mlp, shape, setting, chunk)
                )
        for kind, rates in MATRICES.items():
            measure(
                f"{shape.name} {kind} 1", {**asked, "steps": rates}, partial(matrix, shape, rates)
            )
        for chunk in CHUNKS:
            plain = found.get(f"{shape.name} plain {chunk}")
            if plain and (shape, chunk) in TRAINED:
                made_of = {**asked, "chunk": chunk, "training": TRAINING, "from": plain["capacity"]}
                name = f"{shape.name} trained {chunk}"
                measure(name, made_of, partial(trained, shape, chunk, plain, ASKING))
    return found


COLUMNS = [
    *(f"{kind} {chunk}" for kind in (*SETTINGS, "trained") for chunk in CHUNKS),
    *(f"{kind} 1" for kind in MATRICES),
]


def table(found: dict[str, dict[str, Any]]) -> str:
    """Capacities, and the error of `plain 1` at the last power of two of which enough were right."""
    first = ["depth", "D", "E", "weights", "state"]
    head = [*first, *COLUMNS, f"default 16, step {LARGEST}", "error", "least error"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for shape in SHAPES:
        ours = {column: found.get(f"{shape.name} {column}") for column in COLUMNS}
        if not any(ours.values()):
            continue
        held = [f"{cell['capacity']:.1f}" if cell else "" for cell in ours.values()]
        hidden = str(shape.expansion * shape.width) if shape.depth > 1 else ""
        sizes = [shape.depth, shape.width, hidden, f"{shape.floats:,}", f"{shape.state_floats:,}"]
        row = [*map(str, sizes), *held, "", "", ""]
        if default := ours["default 16"]:
            row[-3] = f"{default['tried'][f'{LARGEST:g}']:.1f}"
        if plain := ours["plain 1"]:
            enough = [p for p in plain["points"] if p["right"][0] >= ENOUGH]
            if enough:
                least = floor(shape.width, enough[-1]["pairs"])[1]
                row[-2:] = [f"{enough[-1]['error'][0]:.2f}", f"{least:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Any]], picture: Path) -> None:
    """A panel for each width: capacity over the floats that it takes."""
    from matplotlib.figure import Figure

    widths = sorted({shape.width for shape in SHAPES})
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    kinds = {"plain 16": ("o", "-"), "default 16": ("s", ":"), "trained 16": ("*", "--")}
    for panel, width in zip(panels, widths, strict=True):
        ours = [shape for shape in SHAPES if shape.width == width]
        for kind, (marker, line) in kinds.items():
            for depth in (1, 2, 3, 4):
                at = [s for s in ours if s.depth == depth and f"{s.name} {kind}" in found]
                x, y = [s.floats for s in at], [found[f"{s.name} {kind}"]["capacity"] for s in at]
                name, chunk = kind.split()
                label = f"depth {depth}, {name}, chunk {chunk}"
                panel.loglog(x, y, marker + line, color=f"C{depth - 1}", ms=5, lw=1, label=label)
        for kind, line in zip(MATRICES, ("-", "--"), strict=True):
            at = sorted((s for s in ours if f"{s.name} {kind} 1" in found), key=lambda s: s.floats)
            x, y = [s.floats for s in at], [found[f"{s.name} {kind} 1"]["capacity"] for s in at]
            panel.loglog(x, y, line, color="0.6", lw=1, label=f"matrix, {kind}")
        panel.set(title=f"values of {width} floats", xlabel="floats of the weights")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("pairs held")
    figure.legend(
        *panels[0].get_legend_handles_labels(), fontsize=7, ncols=5, loc="outside lower center"
    )
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="part of the names of the cells to measure")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = cells(options.out / "capacity.json", options.only)
    print(table(found))
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
