"""What the drawings share: colours, boxes and arrows, and an SVG that is the same at every run."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

INK = "#22303c"
GREY = "#8a97a3"
MEMORY = "#d1495b"
ATTENTION = "#2e6f9e"
INPUT = "#5b8c5a"
PALE = {MEMORY: "#fbe4e7", ATTENTION: "#e0edf6", INPUT: "#e5f0e4", GREY: "#eef1f3"}

plt.rcParams.update(
    {
        "svg.hashsalt": "titans",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def blank(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches with one axis over all of it, in the same units, and no frame."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Any,
    x: float,
    y: float,
    text: str,
    colour: str = GREY,
    size: tuple[float, float] = (1.3, 0.5),
) -> None:
    """A rounded box around its middle."""
    width, height = size
    axes.add_patch(
        matplotlib.patches.FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=PALE[colour],
            edgecolor=colour,
            linewidth=1.4,
        )  # fmt: skip
    )
    axes.text(x, y, text, ha="center", va="center", linespacing=1.25)


def arrow(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    colour: str = INK,
    bend: float = 0.0,
    at: tuple[float, float] | None = None,
) -> None:
    """An arrow, with a text beside its middle or `at` a place of its own."""
    axes.annotate(
        "", end, start,
        arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0,
            "connectionstyle": f"arc3,rad={bend}",
        },
    )  # fmt: skip
    if text:
        x, y = at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.13)
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color=colour)


def save(figure: Figure, script: str, folder: Path | None = None) -> None:
    """Writes the SVG of a script's name, beside the script unless told otherwise."""
    path = Path(script)
    figure.savefig(
        (folder or path.parent) / f"{path.stem}.svg", facecolor="white", metadata={"Date": None}
    )
    plt.close(figure)
