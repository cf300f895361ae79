"""What a training step of a stack takes in memory, from small steps that are really done.

A stack of one layer and one of two are trained for a step, a row of it or two; every allocation is counted.
Deeper stacks, more rows, wider layers and longer sequences follow, since each of them adds the same again.
B rows, T tokens of a row.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titans_core.allocations import Allocations
from titans_core.backbone import Backbone
from titans_core.mixers import BackboneConfig
from titans_core.narrowing import narrower, reach_of
from titans_core.segments import build_backbone
from titans_core.state import state_bytes

LONGEST = 1024
"""Longer sequences are carried over from shorter ones, where those are long enough to show how it goes on."""
MOST_WORK = 2**29
"""Width squared, times tokens: layers with more of it are carried over from narrower ones."""
TRIES = 3
"""Timings of a step; the first, in which libraries begin, is left out."""


class Taken(NamedTuple):
    """Bytes of a step, beyond what there was before it."""

    kept: float  # when the forward has ended
    forward: float  # the most during it
    put_down: float  # the most while the state for the next step is made
    backward: float  # the most during the backward, with the gradients that it makes
    carried: float = 0.0  # the state that was there before it

    def map(self, function: Callable[..., float], *others: "Taken") -> "Taken":
        return Taken(*(function(*parts) for parts in zip(self, *others, strict=True)))


class Recipe(NamedTuple):
    """How the stack is trained."""

    dtype: torch.dtype = torch.float32
    bf16: bool = False  # under autocast
    checkpoint: bool = False
    carry: bool = True  # from sequence to sequence


Forward = Callable[[], tuple[Tensor, Any]]
"""Gives a loss, and what goes on beside it."""


def taken(forward: Forward, put_down: Callable[[Any], Any] = lambda left: left) -> Taken:
    """Of a forward, of what is made of its state, and of the loss's backward."""
    with Allocations() as memory:
        loss, left = forward()
        most = memory.most
        memory.restart()
        left = put_down(left)
        kept, after = memory.now, memory.most
        memory.restart()
        loss.backward()
    return Taken(kept, most, after, memory.most)


@cache
def layer_step(config: BackboneConfig, rows: int, length: int, recipe: Recipe) -> Taken:
    """Of a stack as it is, without what stands before and after it."""
    model = build_backbone(config).to(recipe.dtype)
    model.checkpoint_activations = recipe.checkpoint
    forward, carried = trainable(model, rows, length, recipe)
    found = taken(forward, model.put_down) if recipe.carry else taken(forward)
    return found._replace(carried=state_bytes(carried))


def trainable(
    model: Backbone, rows: int, length: int, recipe: Recipe
) -> tuple[Forward, tuple[Any, ...]]:
    """A forward in the middle of a stream, and the state that it goes on from.

    A document begins in the middle of every row.
    """
    config, grid = model.config, model.config.grid
    x = torch.randn(rows, length, config.dim, dtype=recipe.dtype, requires_grad=True)
    reset = torch.zeros(rows, length, dtype=torch.bool)
    begin = length // 2 // grid * grid
    reset[:, begin] = True
    mask = None
    if grid > 1 and begin:
        # What is left of the grid before it is empty.
        mask = torch.ones_like(reset)
        mask[:, begin - 1] = False
    carried: tuple[Any, ...] = ()
    if recipe.carry:
        with torch.no_grad(), autocast(recipe):
            carried = model.put_down(model(x)[1])

    def forward() -> tuple[Tensor, Any]:
        with autocast(recipe):
            state = model.take_up(carried) if recipe.carry else None
            y, state = model(x.clone(), state, mask=mask, reset=reset)
            return y.square().mean(), state if recipe.carry else ()

    return forward, carried


def autocast(recipe: Recipe) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bf16)


def stack_step(config: BackboneConfig, rows: int, length: int, recipe: Recipe) -> Taken:
    """Of a stack of any depth and width, and as many rows and tokens."""
    kinds = [config.layer(i) for i in range(config.num_layers)]
    steps: dict[str, tuple[Taken, Taken]] = {}
    for kind in kinds:
        if kind.mixer not in steps:
            one, two = (
                _of_rows(replace(kind, num_layers=depth), rows, length, recipe) for depth in (1, 2)
            )
            steps[kind.mixer] = one, two
    pairs = [steps[kind.mixer] for kind in kinds]
    kept, after = (
        sum(getattr(two, name) - getattr(one, name) for one, two in pairs)
        + max(2 * getattr(one, name) - getattr(two, name) for one, two in pairs)
        for name in ("kept", "put_down")
    )
    # Every layer adds what it keeps, and one of them is at work.
    return Taken(
        kept,
        kept + max(two.forward - two.kept for _, two in pairs),
        after,
        kept + max(one.backward - one.kept for one, _ in pairs),
        sum(one.carried for one, _ in pairs),
    )


def _of_rows(config: BackboneConfig, rows: int, length: int, recipe: Recipe) -> Taken:
    narrow = [narrower(config, times) for times in (1, 2, 3)]
    easy = config.dim**2 * min(length, LONGEST) <= MOST_WORK
    if easy or narrow[-1].dim >= config.dim:
        one = _of_length(config, 1, length, recipe)
        if rows == 1:
            return one
        two = _of_length(config, 2, length, recipe)
        return one.map(lambda a, b: a + (rows - 1) * (b - a), two)
    steps = [_of_length(other, 1, length, recipe) for other in narrow]
    widths = [other.dim for other in narrow]
    kept = _widened(widths, [step.kept for step in steps], config.dim, rows)
    carried = rows * _through(widths, [step.carried for step in steps], config.dim)

    def beyond(name: str) -> float:
        """What comes and goes is a maximum, and no parabola: it goes up with the width."""
        (a, x), (b, y) = (
            (w, getattr(s, name) - s.kept) for w, s in zip(widths[1:], steps[1:], strict=True)
        )
        return kept + rows * max(y, x + (y - x) * (config.dim - a) / (b - a))

    weights = sum(p.numel() for p in _planned(config).parameters()) * recipe.dtype.itemsize
    return Taken(kept, beyond("forward"), beyond("put_down"), beyond("backward") + weights, carried)


def _planned(config: BackboneConfig) -> Backbone:
    """Without memory for its numbers."""
    with torch.device("meta"):
        return build_backbone(config)


def _widened(widths: Sequence[int], found: Sequence[float], width: int, rows: int) -> float:
    """Activations go with the width; copies of weights with its square, once for all rows."""
    level, slope, square = _parabola(widths, found)
    return rows * (level + slope * width) + square * width**2


def _through(sizes: Sequence[int], found: Sequence[float], size: int) -> float:
    level, slope, square = _parabola(sizes, found)
    return level + slope * size + square * size**2


def _parabola(sizes: Sequence[int], found: Sequence[float]) -> tuple[float, float, float]:
    """Level, slope and square of the parabola through three points."""
    (a, b, c), (x, y, z) = sizes, found
    square = ((z - y) / (c - b) - (y - x) / (b - a)) / (c - a)
    slope = (y - x) / (b - a) - square * (a + b)
    return x - slope * a - square * a**2, slope, square


def _of_length(config: BackboneConfig, rows: int, length: int, recipe: Recipe) -> Taken:
    if length <= LONGEST:
        return layer_step(config, rows, length, recipe)
    if not config.bounded:
        # Scores are kept where documents begin in a row: they go with the square of its length.
        thirds = [LONGEST // 2, LONGEST * 3 // 4, LONGEST]
        steps = [layer_step(config, rows, size, recipe) for size in thirds]
        return Taken(*(_through(thirds, part, length) for part in zip(*steps, strict=True)))
    size = -(-max(LONGEST // 2, 2 * reach_of(config)) // config.grid) * config.grid
    if length <= 2 * size:
        return layer_step(config, rows, length, recipe)
    one, two = (layer_step(config, rows, times * size, recipe) for times in (1, 2))
    return one.map(lambda a, b: a + (length / size - 1) * (b - a), two)


def layer_seconds(
    config: BackboneConfig, rows: int, length: int, recipe: Recipe
) -> tuple[float, float]:
    """Of a step of a stack of one layer, and of one of two; the quicker of a few tries, taken in turns."""
    steps = []
    for depth in (1, 2):
        model = build_backbone(replace(config, num_layers=depth)).to(recipe.dtype)
        model.checkpoint_activations = recipe.checkpoint
        steps.append(trainable(model, rows, length, recipe)[0])
    found = [[seconds(step) for step in steps] for _ in range(TRIES + 1)][1:]
    one, two = (min(times) for times in zip(*found, strict=True))
    return one, two


def seconds(forward: Forward) -> float:
    """Of a forward and its backward."""
    begun = time.perf_counter()
    loss, _kept = forward()
    loss.backward()
    return time.perf_counter() - begun
