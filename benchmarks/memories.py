"""The memories that `capacity.py` writes pairs into, an MLP and a matrix of any size, and how it asks them.

S step sizes tried at once, R rows and H heads of pairs, T of them, D their width.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_core.state import named_tensors
from titans_kernels import UpdateRule, fresh_state, memory_read, memory_update

ENOUGH = 0.9
HOPELESS = 0.75  # with fewer right, more pairs are not tried
MOST = 2**14


class Shape(NamedTuple):
    depth: int
    width: int
    expansion: int = 1

    @property
    def name(self) -> str:
        return f"depth {self.depth} D {self.width} E/D {self.expansion}"

    @property
    def sizes(self) -> list[int]:
        return [self.width, *[self.expansion * self.width] * (self.depth - 1), self.width]

    @property
    def floats(self) -> int:
        """Of the weights that pairs are written into."""
        return sum(a * b for a, b in pairwise(self.sizes))

    @property
    def state_floats(self) -> int:
        """Of all that a layer carries on for a head: with surprise, and the weights of the chunk's start."""
        state = fresh_state(begin(self, 1, 0)[0], 1, rule=UpdateRule())
        return sum(x.numel() for x in named_tensors(state).values() if x.is_floating_point())


class Setting(NamedTuple):
    momentum: float = 0.0
    forget: float = 0.0
    clamp: float | None = None
    normed: bool = True  # with the residual and the layer norm


class Mlp:
    """The neural memory. Pairs are [R, T, H, D], what is recalled [S, R, T, H, D]."""

    def __init__(
        self,
        shape: Shape,
        setting: Setting,
        chunk: int,
        steps: Tensor,  # [S], or [S, depth] for one per layer
        initial: tuple[Tensor, ...],
        norm: tuple[Tensor, Tensor],
    ) -> None:
        self.setting, self.initial = setting, initial
        self.steps = steps if steps.ndim == 2 else steps[:, None].expand(-1, shape.depth)
        self.norm = norm if setting.normed else None
        self.rule = UpdateRule(
            chunk_size=chunk, residual=setting.normed, max_surprise=setting.clamp
        )

    @classmethod
    def fresh(
        cls, shape: Shape, setting: Setting, chunk: int, steps: Tensor, heads: int, seed: int
    ) -> "Mlp":
        """As a layer begins: see `Recall.reset_parameters`."""
        return cls(shape, setting, chunk, steps, *begin(shape, heads, seed))

    def write(self, k: Tensor, v: Tensor, state: Any) -> Any:
        count = len(self.steps)
        k, v = (x.repeat(count, 1, 1, 1) for x in (k, v))
        steps = self.steps.repeat_interleave(len(k) // count, 0)[:, None, None]
        steps = steps.expand(*k.shape[:3], -1)
        momentum, forget = (
            steps.new_full(k.shape[:3], gate)
            for gate in (self.setting.momentum, self.setting.forget)
        )
        rule, norm = self.rule, self.norm
        return memory_update(
            k, k, v, steps, momentum, forget, self.initial, rule=rule, norm=norm, state=state
        )[1]

    def read(self, k: Tensor, state: Any) -> Tensor:
        q = k.repeat(len(self.steps), 1, 1, 1)
        y = memory_read(q, state, self.initial, rule=self.rule, norm=self.norm)
        return y.unflatten(0, (len(self.steps), -1))


def begin(shape: Shape, heads: int, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Initial memory and norm before any training."""
    generator = torch.Generator().manual_seed(seed)
    initial = tuple(
        torch.randn(heads, outside, inside, generator=generator) / math.sqrt(inside)
        for inside, outside in pairwise(shape.sizes)
    )
    return initial, (torch.ones(heads, shape.width), torch.zeros(heads, shape.width))


class Matrix:
    """A matrix that begins at zero, and holds sums of outer products.

    With step sizes it follows the delta rule, else linear attention.
    """

    def __init__(self, steps: tuple[float, ...] | None) -> None:
        self.steps = steps

    def write(self, k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
        k, v = k.movedim(2, 1), v.movedim(2, 1)  # [R, H, T, D]
        count = len(self.steps or (1.0,))
        if state is None:
            state = k.new_zeros(count, *k.shape[:2], v.shape[-1], k.shape[-1])
        if self.steps is None:
            return state + v.mT @ k
        overlap = (k @ k.mT).tril(-1)
        added = []
        for step, w in zip(self.steps, state, strict=True):
            # What a token changes depends on what those before it have changed: a triangular system.
            system = step * overlap + torch.eye(k.shape[2])
            u = torch.linalg.solve_triangular(
                system, step * (v - k @ w.mT), upper=False, unitriangular=True
            )
            added.append(u.mT @ k)
        return state + torch.stack(added)

    def read(self, k: Tensor, state: Tensor) -> Tensor:
        return (k.movedim(2, 1) @ state.mT).movedim(3, 2)


def on_sphere(k: Tensor, v: Tensor) -> Tensor:
    """What a memory with residual and layer norm (gain 1, bias 0) can recall that is nearest to v."""
    target = v - k
    centred = target - target.mean(-1, keepdim=True)
    return k + centred / centred.square().mean(-1, keepdim=True).sqrt()


class Draw(NamedTuple):
    """Pairs of as many memories as rows times heads, always the same for a seed."""

    seed: int
    rows: int
    heads: int


def pairs(draw: Draw, keys: int, values: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The next so many keys and values, [R, T, H, D]."""
    generator = torch.Generator().manual_seed(draw.seed)

    def more(count: int) -> tuple[Tensor, Tensor]:
        size = (draw.rows, count, draw.heads)
        k, v = (torch.randn(*size, width, generator=generator) for width in (keys, values))
        return F.normalize(k, dim=-1), v

    return more


def score(y: Tensor, v: Tensor) -> tuple[float, float]:
    """Share whose own value is the nearest, and the relative error, of recalls and values [R, N, H, D]."""
    right = [
        (torch.cdist(ours, theirs).argmin(-1) == torch.arange(len(ours))).float().mean().item()
        for ours, theirs in zip(
            y.movedim(2, 1).flatten(0, 1), v.movedim(2, 1).flatten(0, 1), strict=True
        )
    ]
    return sum(right) / len(right), ((y - v).square().sum() / v.square().sum()).sqrt().item()


@torch.no_grad()
def curve(memory: Any, more: Callable[[int], tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Share right and error for 2, 4, 8 ... pairs, of each step size, until none has nearly enough right.

    The pairs of a point are the first of the next one's.
    """
    k, v = more(0)
    state, points = None, []
    while not points or (max(points[-1]["right"]) >= HOPELESS and k.shape[1] < MOST):
        fresh = more(max(2, k.shape[1]))
        state = memory.write(*fresh, state)
        k, v = (torch.cat(both, 1) for both in zip((k, v), fresh, strict=True))
        scores = [score(y, v) for y in memory.read(k, state)]
        points.append({
            "pairs": k.shape[1],
            "right": [right for right, _ in scores],
            "error": [error for _, error in scores],
        })  # fmt: skip
    return points


def capacity(points: list[dict[str, Any]], step: int = 0) -> float:
    """The most pairs of which at least 90 % are right, for one of the step sizes. One pair always is."""
    shares = {1: 1.0, **{point["pairs"]: point["right"][step] for point in points}}
    held = max(count for count, share in shares.items() if share >= ENOUGH)
    right, then = shares[held], shares.get(2 * held, ENOUGH)
    return held * 2 ** ((right - ENOUGH) / (right - then)) if then < ENOUGH else float(held)
