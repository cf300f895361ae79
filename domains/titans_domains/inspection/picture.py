"""Surprise along a file as a picture: the tokens on their colours, and curves of the gates.

N tokens that are drawn.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from titans_domains.inspection.along import Along, Record
from titans_domains.inspection.charts import limits
from titans_domains.inspection.tokens import edges, visible
from titans_domains.page import readable

COLUMNS = 100
MOST_ROWS = 60
CURVES = {
    "surprise": "surprise",
    "step_size": "step size",
    "momentum": "momentum",
    "forget": "forgetting",
}


def along_picture(along: Along) -> bytes:
    """A PNG; of a long text its first lines, and of curves all that is drawn."""
    from matplotlib.figure import Figure

    surprise = along.measure("surprise").mean(1)
    series = along.run.subject.kind == "series"
    records = [r for r in along.records if r.end > r.begin][:6]
    letters, values = ("", np.zeros(0)) if series else _spread(along.labels, surprise)
    rows = min(MOST_ROWS, -(-len(letters) // COLUMNS))
    heights = [1.5] * len(records) if series else [max(0.6, 0.21 * rows)]
    heights += [0.9] * len(CURVES)
    figure = Figure(figsize=(11, sum(heights) + 1.2), layout="constrained")
    panels = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    if series:
        for axes, record in zip(panels, records, strict=False):
            _draw_series(axes, along, record, surprise)
    else:
        letter_grid(panels[0], letters[: rows * COLUMNS], values[: rows * COLUMNS], COLUMNS)
    for axes, (name, label) in zip(panels[-len(CURVES) :], CURVES.items(), strict=True):
        axes.plot(along.measure(name).mean(1), linewidth=0.8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.margins(x=0)
    panels[-1].set_xlabel(f"tokens from {along.first:,} on, means over all memories", fontsize=8)
    name = readable(along.path.name)
    title = f"Surprise along {name}: {len(along.labels):,} of {along.tokens:,} tokens"
    figure.suptitle(title, fontsize=10, parse_math=False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that no installed font has are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def letter_grid(axes: Any, letters: str, values: Float[ndarray, " N"], columns: int) -> Any:
    """Lines of `columns` letters, each on a colour for its value; the image, for a colour bar."""
    from matplotlib.colors import Normalize

    rows = -(-len(letters) // columns)
    grid = np.full(rows * columns, np.nan)
    grid[: len(values)] = values
    image = axes.imshow(
        grid.reshape(rows, columns),
        cmap="YlOrRd",
        norm=Normalize(*limits(values)),
        aspect="auto",
        alpha=0.75,
    )
    for index, letter in enumerate(letters):
        axes.text(
            index % columns, index // columns, letter if letter.isprintable() else "\u00b6",
            ha="center", va="center", family="monospace", fontsize=8, parse_math=False,
        )  # fmt: skip
    axes.set_axis_off()
    return image


def _spread(
    labels: Sequence[str], values: Float[ndarray, " N"]
) -> tuple[str, Float[ndarray, " letters"]]:
    """The letters of all tokens, each with its token's value."""
    seen = [label if label.isprintable() else visible(label).replace("\n", "") for label in labels]
    return "".join(seen), np.repeat(values, [len(label) for label in seen])


def _draw_series(axes: Any, along: Along, record: Record, surprise: Float[ndarray, " N"]) -> None:
    values = np.concatenate(record.values)
    bounds = edges(record)
    low, high = limits(surprise)
    shares = np.clip((surprise[record.begin : record.end] - low) / (high - low), 0, 1)
    for begin, end, share in zip(bounds, bounds[1:], shares, strict=False):
        axes.axvspan(begin, end, color="tab:red", alpha=0.75 * float(share), linewidth=0)
    axes.plot(np.arange(len(values)) + 0.5, values, color="0.15", linewidth=0.8)
    axes.set_title(record.name, fontsize=8, loc="left", parse_math=False)
    axes.tick_params(labelsize=7)
    axes.set_xlim(0, len(values))
