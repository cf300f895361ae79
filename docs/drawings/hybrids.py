"""Draws hybrids.svg, how data flows in LMM, MAC, MAG and MAL: python docs/drawings/hybrids.py"""

from pathlib import Path
from typing import Any

from canvas import ATTENTION, GREY, INPUT, MEMORY, arrow, blank, box, save

SIZE = (1.25, 0.5)


def column(axes: Any, x: float, title: str) -> None:
    axes.text(x, 5.2, title, ha="center", va="center", fontsize=11, weight="bold")
    box(axes, x, 0.4, "x", INPUT, (0.6, 0.42))
    box(axes, x, 4.65, "y", INPUT, (0.6, 0.42))


def lmm(axes: Any, x: float) -> None:
    column(axes, x, "LMM")
    box(axes, x, 2.5, "memory\nwrite, then read", MEMORY, (1.4, 0.62))
    arrow(axes, (x, 0.63), (x, 2.17))
    arrow(axes, (x, 2.83), (x, 4.42))


def mac(axes: Any, x: float) -> None:
    column(axes, x, "MAC: memory as context")
    box(axes, x - 0.85, 1.35, "memory\nread", MEMORY, (1.0, 0.6))
    box(axes, x - 0.85, 2.2, "p  |  recalled  |  x", ATTENTION, (1.45, 0.36))
    box(axes, x - 0.85, 2.95, "attention in\nthe segment", ATTENTION, (1.3, 0.56))
    box(axes, x + 0.75, 2.95, "memory\nwrite, then read", MEMORY, (1.4, 0.6))
    box(axes, x, 3.95, "product", GREY, (0.95, 0.36))
    arrow(axes, (x - 0.2, 0.63), (x - 0.75, 1.04))
    arrow(axes, (x + 0.05, 0.63), (x - 0.12, 2.1), bend=0.15)
    arrow(axes, (x - 0.85, 1.66), (x - 0.85, 2.01))
    arrow(axes, (x - 0.85, 2.39), (x - 0.85, 2.66))
    arrow(axes, (x - 0.19, 2.95), (x + 0.04, 2.95))
    arrow(axes, (x - 0.7, 3.24), (x - 0.2, 3.76))
    arrow(axes, (x + 0.6, 3.26), (x + 0.2, 3.76))
    arrow(axes, (x, 4.14), (x, 4.42))
    arrow(axes, (x + 0.75, 2.64), (x - 0.34, 1.35), colour=MEMORY, bend=-0.35)
    axes.text(x + 0.72, 1.45, "next\nsegment", fontsize=9, color=MEMORY, ha="center")


def mag(axes: Any, x: float) -> None:
    column(axes, x, "MAG: memory as gate")
    box(axes, x - 0.62, 2.5, "attention\nin a window", ATTENTION, (1.12, 0.62))
    box(axes, x + 0.62, 2.5, "memory", MEMORY, (1.0, 0.62))
    box(axes, x, 3.95, "product", GREY, (0.95, 0.36))
    arrow(axes, (x - 0.1, 0.63), (x - 0.6, 2.17))
    arrow(axes, (x + 0.1, 0.63), (x + 0.6, 2.17))
    arrow(axes, (x - 0.6, 2.83), (x - 0.15, 3.76))
    arrow(axes, (x + 0.6, 2.83), (x + 0.15, 3.76))
    arrow(axes, (x, 4.14), (x, 4.42))


def mal(axes: Any, x: float) -> None:
    column(axes, x, "MAL: memory as layer")
    box(axes, x, 1.7, "memory", MEMORY, SIZE)
    box(axes, x, 3.2, "attention\nin a window", ATTENTION, (1.25, 0.62))
    arrow(axes, (x, 0.63), (x, 1.44))
    arrow(axes, (x, 1.96), (x, 2.87))
    arrow(axes, (x, 3.53), (x, 4.42))


def draw(folder: Path | None = None) -> None:
    figure, axes = blank(9.9, 5.5)
    for part, x in ((lmm, 0.95), (mac, 3.35), (mag, 6.35), (mal, 8.8)):
        part(axes, x)
    save(figure, __file__, folder)


if __name__ == "__main__":
    draw()
