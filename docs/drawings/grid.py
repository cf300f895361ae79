"""Draws grid.svg, what chunk, segment and window mean for one token: python docs/drawings/grid.py"""

from pathlib import Path

from canvas import ATTENTION, GREY, INK, INPUT, MEMORY, PALE, blank, save
from matplotlib.patches import Rectangle

TOKENS, CHUNK, SEGMENT, WINDOW, HERE = 32, 4, 16, 12, 22
SIDE, LEFT = 0.23, 0.25


def draw(folder: Path | None = None) -> None:
    figure, axes = blank(8.2, 4.1)
    begin = HERE // CHUNK * CHUNK
    part = HERE // SEGMENT * SEGMENT
    rows = (
        (
            3.35, f"chunk of {CHUNK}: gradients are taken at the memory before the chunk",
            CHUNK, MEMORY, range(begin, HERE + 1),
            "the token's gradient, and those of its chunk\nso far, are taken at this memory",
        ),
        (
            1.95,
            f"segment of {SEGMENT} (MAC): its tokens attend to each other, and to what the memory gave them",
            SEGMENT, ATTENTION, range(part, HERE + 1),
            "attention sees these; older ones\ncome back through the memory",
        ),
        (
            0.55, f"window of {WINDOW} (MAG, MAL): a token attends to itself and the {WINDOW - 1} before it",
            0, INPUT, range(HERE - WINDOW + 1, HERE + 1),
            "attention sees these;\nthe window moves with the token",
        ),
    )  # fmt: skip
    for y, title, every, colour, seen, note in rows:
        axes.text(LEFT, y + 0.42, title, fontsize=10, va="bottom")
        for t in range(TOKENS):
            inside = t in seen
            axes.add_patch(
                Rectangle(
                    (LEFT + t * SIDE, y),
                    SIDE,
                    0.3,
                    linewidth=0.6,
                    edgecolor="white",
                    facecolor=colour if t == HERE else (PALE[colour] if inside else PALE[GREY]),
                )  # fmt: skip
            )
        for t in range(0, TOKENS + 1, every or TOKENS):
            axes.plot([LEFT + t * SIDE] * 2, [y - 0.07, y + 0.37], color=INK, linewidth=1.1)
        middle = LEFT + (seen[0] + seen[-1] + 1) / 2 * SIDE
        axes.text(middle, y - 0.1, note, fontsize=9, ha="center", va="top", color=colour)
        axes.text(
            LEFT + (HERE + 0.5) * SIDE, y + 0.15, "t", color="white", ha="center", va="center"
        )
    save(figure, __file__, folder)


if __name__ == "__main__":
    draw()
