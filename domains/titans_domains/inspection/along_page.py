"""The report on surprise along a file.

N tokens that are drawn.
"""

import base64
import math
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from titans_domains.inspection.along import MEASURES, Along
from titans_domains.inspection.along_table import notes, unit_rows, written
from titans_domains.inspection.charts import (
    HEIGHT,
    LEVELS,
    WIDTH,
    across,
    chart,
    levels,
    limits,
    line,
    path_of,
    percent,
    short,
)
from titans_domains.inspection.meanings import ALONG, glossary
from titans_domains.inspection.tokens import shown, visible
from titans_domains.page import Html, join, page, table, tag

NUMBERS = 1_000_000
"""At most so many numbers stand in a page, which opens fast so."""
NAMES = {
    "surprise": "surprise",
    "write": "written",
    "before": "surprise before reading",
    "step_size": "step size",
    "momentum": "momentum",
    "forget": "forgetting",
    "bits": "bits",
}


def tokens_in_page(units: int) -> int:
    return max(1, NUMBERS // (len(MEASURES) * units))


def along_page(along: Along) -> str:
    means = {name: along.measure(name).mean(1) for name in MEASURES}
    if (wrote := written(along)) is not None:
        means["write"] = wrote.mean(1)
    if (bits := along.all_bits()) is not None:
        means["bits"] = bits
    surprise, count = means["surprise"], len(along.labels)
    low, high = limits(surprise)
    drawn = f"tokens {along.first:,} to {along.first + count - 1:,}"
    about = along.run.about()
    folder = files("titans_domains.inspection") / "assets"
    return page(
        f"Surprise along {along.path.name}",
        tag("h1", "Surprise along ", tag("span", along.path.name)),
        tag(
            "p", f"{about['run']}, {about['domain']}, {about['mixer']}, {about['parameters']:,} parameters. ",
            f"{along.tokens:,} tokens were read; {drawn} are drawn.", class_="soft",
        ),
        _cap(along, count),
        _controls(along, list(means)),
        _legend(low, high),
        tag("section", shown(along, levels(surprise)), id="tokens", tabindex=0, aria_label="Tokens"),
        tag("output", "Point at a token, tap it, or use the arrow keys.", id="at", aria_live="polite"),
        tag("h2", "Along the tokens that are drawn"),
        *_charts(means, count),
        _track(along, count),
        tag("h2", "By memory, head and layer"),
        _unit_table(along),
        _most(along),
        tag("h2", "What the figures are"),
        glossary({NAMES[name]: ALONG[name] for name in means}),
        tag("ul", *(tag("li", note) for note in notes(along))),
        style=(folder / "inspect.css").read_text(encoding="utf-8"),
        script=(folder / "along.js").read_text(encoding="utf-8"),
        data=_data(along),
    )  # fmt: skip


def _cap(along: Along, count: int) -> Html | None:
    left = along.tokens - count
    if not left:
        return None
    return tag(
        "p", f"{left:,} of {along.tokens:,} tokens are not drawn: choose others with --first, or more with "
        "--draw. The averages below are over all of them.", class_="cap",
    )  # fmt: skip


def _controls(along: Along, measures: list[str]) -> Html:
    units = along.run.units
    choices: dict[str, list[tuple[Any, Any]]] = {
        "measure": [(name, NAMES[name]) for name in measures],
        "reading": [("", "all")] + [(r, r) for r in along.run.subject.readings],
        "memory": [("", "all")] + [(m, m) for m in dict.fromkeys(u.memory for u in units)],
        "head": [("", "all")] + [(h, h) for h in sorted({u.head for u in units})],
        "layer": [("", "all")] + [(n, n) for n in sorted({u.layer for u in units})],
    }
    choices["shade"] = [("value", "by value"), ("rank", "by rank")]
    if len(along.run.subject.readings) == 1:
        del choices["reading"]
    fields = [
        tag(
            "label",
            f"{name} ",
            tag("select", *(tag("option", b, value=a) for a, b in options), id=name),
        )
        for name, options in choices.items()
    ]
    return tag("form", *fields, id="choices", hidden="hidden")


def _legend(low: float, high: float) -> Html:
    shades = [tag("i", class_=f"s{level}") for level in range(LEVELS)]
    return tag(
        "p", tag("span", "surprise, mean over all of them", id="what"), " ",
        tag("span", short(low), id="low"), " ", tag("span", *shades, class_="scale", aria_hidden="true"),
        " ", tag("span", short(high), id="high"),
        class_="legend",
    )  # fmt: skip


def _charts(means: dict[str, Float[ndarray, " N"]], count: int) -> list[Html]:
    xs = across(count)
    found = []
    for name, values in means.items():
        if name == "before":
            continue
        both = np.concatenate([values, means["before"]]) if name == "surprise" else values
        low, high = limits(both)
        shapes = [line(path_of(xs, values.tolist(), low, high), "a")]
        if name == "surprise":
            shapes.insert(0, line(path_of(xs, means["before"].tolist(), low, high), "before"))
        cursor = tag("line", x1=-9, x2=-9, y1=0, y2=HEIGHT, class_="cursor")
        title = NAMES[name] + (", and before reading (dashed)" if name == "surprise" else "")
        found.append(chart(title, low, high, *shapes, cursor, id_=f"chart-{name}"))
    return found


def _track(along: Along, count: int) -> Html | None:
    """The whole file, where not all of it is drawn."""
    if count == along.tokens:
        return None
    means, wide = along.track.means(), WIDTH / along.tokens
    low, high = limits(means)
    xs = [min(WIDTH, (i + 0.5) * along.track.size * wide) for i in range(len(means))]
    part = tag(
        "rect",
        x=f"{along.first * wide:.2f}",
        y=0,
        width=f"{count * wide:.2f}",
        height=HEIGHT,
        class_="part",
    )
    name = f"surprise over the whole file, means of {along.track.size:,} tokens; what is drawn is shaded"
    shape = line(path_of(xs, means.tolist(), low, high), "a")
    return join(
        tag("h2", "The whole file"),
        chart(name, low, high, part, shape, foot=("0", f"{along.tokens:,}")),
    )


def _unit_table(along: Along) -> Html:
    heads = [
        "",
        "surprise",
        "before reading",
        "clamped",
        "step size",
        "momentum",
        "forgetting",
        "half-life",
    ]
    rows = unit_rows(along)
    with_bits = any(row["with_bits"] is not None for row in rows)
    names = (
        "surprise",
        "before",
        "clamped",
        "step_size",
        "momentum",
        "forget",
        "half_life",
        "with_bits",
    )
    return table(
        [
            [
                row["unit"],
                *(_cell(name, row[name]) for name in names[: None if with_bits else -1]),
            ]
            for row in rows
        ],
        heads + (["with bits"] if with_bits else []),
        class_="figures",
    )


def _cell(name: str, value: float | None) -> str:
    if name == "half_life" and value == math.inf:
        return "never"
    return percent(value) if name == "clamped" and value is not None else short(value)


def _most(along: Along) -> Html:
    rows = []
    for value, at, context in sorted(along.most_surprising, reverse=True):
        before, label = context
        place = -at - along.first
        inside = 0 <= place < len(along.labels)
        number = tag("a", f"{-at:,}", href="#tokens", data_at=place) if inside else f"{-at:,}"
        rows.append(
            [
                number,
                short(value),
                tag("code", visible(before), tag("mark", visible(label) or "...")),
            ]
        )
    return join(
        tag("h2", "The most surprising tokens of the whole file"),
        table(
            rows,
            ["token", "surprise", "steps" if along.run.subject.kind == "series" else "where"],
            class_="most",
        ),
    )


def _data(along: Along) -> dict[str, Any]:
    bits = along.all_bits()
    return {
        "names": NAMES,
        "units": [[u.reading, u.memory, u.head, u.layer] for u in along.run.units],
        "first": along.first,
        "count": len(along.labels),
        "clamps": [None if math.isinf(clamp) else clamp for clamp in along.run.clamps],
        "series": along.labels if along.run.subject.kind == "series" else None,
        "bits": None if bits is None else _packed(bits),
        **{name: _packed(along.measure(name)) for name in MEASURES},
    }


def _packed(values: ndarray) -> str:
    """Float32, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
