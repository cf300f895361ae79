"""Drawings of reports as SVG that stretches with the page; numbers beside them are HTML text.

N places from left to right.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from titans_domains.page import Html, tag

WIDTH, HEIGHT = 1000, 100
LEVELS = 10
"""Shades of surprise, by classes s0 to s9."""


def short(value: float | None) -> str:
    """A number as people read it: three digits, and a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """A share, of which neither all nor none is said where that is not so."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{share:.1%}".replace("%", " %")


def limits(values: Float[ndarray, " N"]) -> tuple[float, float]:
    """Between which nearly all finite values lie, 2 % on either side left out; of unequal ends."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = (float(x) for x in np.quantile(finite, (0.02, 0.98)))
    return (low, high) if high > low else (low, low + max(abs(low), 1e-12))


def levels(values: Float[ndarray, " N"]) -> list[int]:
    """The shade of each value between the limits; 0 for what is no number."""
    low, high = limits(values)
    share = (np.clip(np.where(np.isnan(values), low, values), low, high) - low) / (high - low)
    return np.minimum((share * LEVELS).astype(int), LEVELS - 1).tolist()


def path_of(xs: Sequence[float], ys: Iterable[float], low: float, high: float) -> str:
    """The d of a line over a drawing; what is no number is a gap, what is outside stands at the edge."""
    parts, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        at = HEIGHT - 2 - (HEIGHT - 4) * min(1.0, max(0.0, (y - low) / (high - low)))
        parts.append(f"{pen}{x:.1f} {at:.1f}")
        pen = "L"
    # A single place has no length of its own.
    return "".join(parts) + ("h0.01" if len(parts) == 1 else "")


def across(count: int) -> list[float]:
    """The middles of `count` places of equal width."""
    return [(i + 0.5) * WIDTH / count for i in range(count)]


def drawing(*shapes: Html, label: str, class_: str = "line") -> Html:
    return tag(
        "svg", *shapes,
        viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", class_=class_, role="img",
        aria_label=label,
    )  # fmt: skip


def line(d: str, class_: str) -> Html:
    return tag("path", d=d, class_=class_)


def chart(
    name: str,
    low: float,
    high: float,
    *shapes: Html,
    id_: str | None = None,
    foot: Iterable[str] = (),
) -> Html:
    """A drawing with the ends of its axis on the left, and words below it from left to right."""
    ends = tag("div", tag("span", short(high)), tag("span", short(low)), class_="ends")
    feet = [tag("span", word) for word in foot]
    return tag(
        "figure",
        tag("figcaption", name),
        ends,
        drawing(*shapes, label=f"{name}, from {short(low)} to {short(high)}"),
        tag("div", *feet, class_="feet") if feet else None,
        class_="chart",
        id=id_,
    )


def bar(share: float) -> Html:
    """A bar for a table's cell, full at 1."""
    filled = tag("span", style=f"width:{100 * min(1.0, max(0.0, share)):.1f}%")
    return tag("span", filled, class_="bar", aria_hidden="true")
