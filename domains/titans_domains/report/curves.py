"""Curves of a log: thinned to what a screen shows, with ticks, and as SVG that stretches with its place."""

import math
from typing import NamedTuple

from titans_domains.page import Html, join, tag
from titans_domains.report.read import Column

MOST_POINTS = 400
WIDTH, HEIGHT = 1000, 400
SMALLEST = 1e-100
"""Values nearer to each other are drawn as one: their differences have no logarithm."""


class Curve(NamedTuple):
    """Points of one line: means of stretches of steps, with the least and the most where it was thinned."""

    name: str
    color: str
    steps: list[int]
    means: list[float]
    lows: list[float] | None
    highs: list[float] | None
    dots: bool

    @property
    def extremes(self) -> list[float]:
        every = [*self.means, *(self.lows or ()), *(self.highs or ())]
        return [value for value in every if math.isfinite(value)]


def curve(name: str, column: Column, color: str, *, dots: bool = False) -> Curve:
    """The column as a curve of at most `MOST_POINTS`: every value counts, in the mean of its stretch."""
    count = len(column.steps)
    if count <= MOST_POINTS:
        return Curve(name, color, column.steps, column.values, None, None, dots)
    steps, means, lows, highs = [], [], [], []
    for index in range(MOST_POINTS):
        part = slice(index * count // MOST_POINTS, (index + 1) * count // MOST_POINTS)
        finite = [value for value in column.values[part] if math.isfinite(value)]
        steps.append(column.steps[part][-1])
        means.append(sum(finite) / len(finite) if finite else math.nan)
        lows.append(min(finite, default=math.nan))
        highs.append(max(finite, default=math.nan))
    return Curve(name, color, steps, means, lows, highs, dots)


class Axis(NamedTuple):
    """Maps values to 0..1."""

    low: float
    high: float
    log: bool
    ticks: list[float]

    def at(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(values: list[float]) -> Axis:
    """Linear; logarithmic where the largest value would press half of them into the lowest tenth."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > SMALLEST and high > 10 * sorted(values)[len(values) // 2]:
        ticks = log_ticks(low, high)
        return Axis(min(low, ticks[0]), max(high, ticks[-1]), True, ticks)
    if high - low < SMALLEST:
        spare = max(abs(low), abs(high)) * 0.1
        spare = spare if spare > SMALLEST else 1.0
        low, high = low - spare, high + spare
    ticks = linear_ticks(low, high)
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), False, ticks)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from the last one below `low` to the first above `high`."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 5)
    return [10.0**power for power in range(first, last + every, every)]


def shown(value: float) -> str:
    """A number for the eye: four digits, thousands set apart."""
    if not math.isfinite(value):
        return "not finite"
    if (value == int(value) and abs(value) < 1e15) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def draw(curves: list[Curve], floors: dict[str, float], x: Axis) -> Html:
    """The plot of a figure: gridlines, curves and floors, with labels that do not stretch."""
    y = axis([value for one in curves for value in one.extremes] + list(floors.values()))
    lines: list[Html] = []
    labels: list[Html] = []
    for tick in y.ticks:
        lines.append(tag("path", class_="rule", d=f"M0 {_y(y, tick)}H{WIDTH}"))
        labels.append(tag("span", shown(tick), class_="y", style=f"top:{_percent(1 - y.at(tick))}"))
    for tick in x.ticks:
        if x.low <= tick <= x.high:
            place = f"left:{_percent(x.at(tick))}"
            labels.append(tag("span", shown(tick), class_="x", style=place))
    lines += [tag("path", class_="floor", d=f"M0 {_y(y, v)}H{WIDTH}") for v in floors.values()]
    for one in curves:
        if one.lows and one.highs:
            lines.append(tag("path", class_=f"band {one.color}", d=_band(one, x, y)))
        lines.append(tag("path", class_=f"line {one.color}", d=_line(one, x, y)))
        if one.dots or len(one.steps) < 3:
            lines.append(tag("path", class_=f"dots {one.color}", d=_dots(one, x, y)))
    svg = tag(
        "svg",
        *lines,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return join(svg, *labels)


def _x(x: Axis, step: float) -> str:
    return f"{x.at(step) * WIDTH:.1f}"


def _y(y: Axis, value: float) -> str:
    return f"{(1 - y.at(value)) * HEIGHT:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _line(one: Curve, x: Axis, y: Axis) -> str:
    """Straight from point to point; a value that is not finite breaks the line."""
    parts, pen = [], "M"
    for step, value in zip(one.steps, one.means, strict=True):
        if math.isfinite(value):
            parts.append(f"{pen}{_x(x, step)} {_y(y, value)}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _dots(one: Curve, x: Axis, y: Axis) -> str:
    points = zip(one.steps, one.means, strict=True)
    return "".join(f"M{_x(x, s)} {_y(y, v)}h0" for s, v in points if math.isfinite(v))


def _band(one: Curve, x: Axis, y: Axis) -> str:
    assert one.lows is not None
    assert one.highs is not None
    points = [
        (step, low, high)
        for step, low, high in zip(one.steps, one.lows, one.highs, strict=True)
        if math.isfinite(low)
    ]
    there = [f"{_x(x, step)} {_y(y, high)}" for step, _, high in points]
    back = [f"{_x(x, step)} {_y(y, low)}" for step, low, _ in reversed(points)]
    return f"M{'L'.join(there + back)}Z" if points else ""
