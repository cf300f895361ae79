"""Draws surprise.svg, a memory that meets one fact, another, and the first again:
python docs/drawings/surprise.py

Computed by titans_kernels: one head of 16 channels, one key whose value changes at token 100 and comes back
at 200; from 300 on the memory reads keys of which it has no news, and only forgets.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from canvas import ATTENTION, GREY, INK, MEMORY, plt, save
from torch import Tensor

from titans_kernels import UpdateRule, fresh_state, memory_update, momentary_surprise

WIDTH, TOKENS, LAST = 16, 400, 300
RULE = UpdateRule(chunk_size=1, max_surprise=1.0)


def read() -> tuple[list[float], list[float], list[float]]:
    """By token: momentary surprise, norm of the running surprise, distance from the initial memory."""
    torch.manual_seed(0)
    initial = tuple(
        torch.randn(1, outside, inside, dtype=torch.float64) / inside**0.5
        for inside, outside in ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
    )
    norm = (torch.ones(1, WIDTH, dtype=torch.float64), torch.zeros(1, WIDTH, dtype=torch.float64))
    key, first, second = torch.randn(3, 1, 1, 1, WIDTH, dtype=torch.float64)
    key = F.normalize(key, dim=-1)
    # A memory that ends in a layer norm recalls vectors of one length, and only those without error.
    first, second = (key + F.layer_norm(value, (WIDTH,)) for value in (first, second))
    state = fresh_state(initial, 1, rule=RULE)
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for t in range(TOKENS):
        value = second if 100 <= t < 200 else first
        seen = momentary_surprise(key, value, state, initial, rule=RULE, norm=norm)
        step, momentum, forget = gates(t)
        _, state = memory_update(
            key, key, value, step, momentum, forget, initial, rule=RULE, norm=norm, state=state
        )
        for line, weights in zip(found[1:], (state.surprise, state.memory), strict=True):
            line.append(float(sum(w.square().sum() for w in weights).sqrt()))
        found[0].append(float(seen.square().sum().sqrt()) if t < LAST else float("nan"))
    return found


def gates(t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step size, momentum, forget; from `LAST` on nothing is written."""
    values = (0.05 if t < LAST else 0.0, 0.73, 0.01)
    step, momentum, forget = (torch.full((1, 1, 1), x, dtype=torch.float64) for x in values)
    return step, momentum, forget


def draw(folder: Path | None = None) -> None:
    figure, panels = plt.subplots(3, 1, figsize=(8.2, 4.6), sharex=True, layout="constrained")
    names = ("momentary\nsurprise", "running\nsurprise", "distance\nfrom start")
    for axes, line, name, colour in zip(
        panels, read(), names, (MEMORY, ATTENTION, INK), strict=True
    ):
        axes.plot(line, color=colour, linewidth=1.6)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        for t in (100, 200, LAST):
            axes.axvline(t, color=GREY, linewidth=0.8, linestyle=":")
    top = panels[0].get_ylim()[1]
    for t, text in (
        (50, "a fact, over and over"),
        (150, "it changes"),
        (250, "it changes back"),
        (350, "no news"),
    ):
        panels[0].text(t, top, text, ha="center", va="bottom", fontsize=9)
    panels[-1].set_xlabel("token")
    save(figure, __file__, folder)


if __name__ == "__main__":
    draw()
