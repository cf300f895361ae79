"""Draws memory.svg, what the memory does with one token: python docs/drawings/memory.py"""

from pathlib import Path

from canvas import ATTENTION, INPUT, MEMORY, arrow, blank, box, save


def draw(folder: Path | None = None) -> None:
    figure, axes = blank(8.2, 3.9)
    box(axes, 0.75, 2.0, "token\nx", INPUT, (0.8, 0.7))
    for y, name in ((3.3, "value v"), (2.3, "write key k"), (0.8, "read key q")):
        box(axes, 2.25, y, name, INPUT, (1.15, 0.45))
        arrow(axes, (1.15, 2.0), (1.67, y))
    box(axes, 4.15, 2.3, "recall\nf(M; k)", MEMORY, (1.2, 0.65))
    arrow(axes, (2.83, 2.3), (3.55, 2.3))
    box(axes, 5.75, 3.3, "momentary surprise\ngradient of |f(M; k) - v|²", MEMORY, (2.2, 0.7))
    arrow(axes, (2.83, 3.3), (4.65, 3.3))
    arrow(axes, (4.75, 2.4), (5.35, 2.94))
    box(
        axes,
        7.25,
        2.1,
        "running surprise S\nmomentum · S\n- step size · gradient",
        MEMORY,
        (1.8, 0.85),
    )
    arrow(axes, (6.4, 2.94), (6.95, 2.54))
    box(axes, 4.65, 0.8, "memory M\n(1 - forget) · M + S", MEMORY, (2.3, 0.75))
    arrow(axes, (7.0, 1.66), (5.82, 0.9), "write", at=(6.55, 1.02))
    arrow(axes, (4.3, 1.19), (4.2, 1.96), colour=MEMORY)
    axes.text(4.36, 1.56, "next token's M", fontsize=9, color=MEMORY, va="center")
    arrow(axes, (2.83, 0.8), (3.48, 0.8), "read", at=(3.15, 0.95))
    box(axes, 7.25, 0.35, "output y = f(M; q)", ATTENTION, (1.6, 0.45))
    arrow(axes, (5.82, 0.6), (6.43, 0.38))
    save(figure, __file__, folder)


if __name__ == "__main__":
    draw()
