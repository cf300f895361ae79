"""The page of a run: what it reached, its curves, samples, settings, and what made it."""

import math
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from titans_core.files import write_whole
from titans_domains.page import Html, flat_rows, page, table, tag
from titans_domains.report.curves import Axis, Curve, curve, draw, linear_ticks, shown
from titans_domains.report.read import Column, RunFiles, read_run

REPORT = "report.html"
HERE = Path(__file__).parent
MOST_SAMPLES = 12
TITLES = {
    "lr": "learning rate",
    "tokens_per_s": "tokens per second",
    "skipped": "steps left out, all so far",
}
MEASURED = tuple(TITLES)
"""Columns of the trainer's own; every other one is the domain's."""


def write_report(run: Path, to: Path | None = None) -> Path:
    """Writes `report.html` into a run's folder, or the same page elsewhere, whole or not at all."""
    path = run / REPORT if to is None else to
    write_whole(path, build_report(run))
    return path


def build_report(run: Path) -> str:
    """The page, of nothing but the files of the run's folder: the same files make the same page."""
    files = read_run(run)
    figures = figures_of(files)
    x = Axis(0, max(1, files.step), False, linear_ticks(0, max(1, files.step)))
    parts = [
        tag("h1", files.name),
        tag("p", f"{files.table['domain']}: {files.describe or 'a run of titans'}", class_="soft"),
        tag("div", *tiles(files), class_="tiles"),
        section(
            "Curves",
            [tag("div", *(card(one, x) for one in figures), class_="grid")] * bool(figures),
        ),
        section("Floors", floors_of(files)),
        section("Throughput", throughput(files.columns.get("tokens_per_s"))),
        section("Samples", samples_of(files.samples)),
        section("Configuration", configuration(files.table["config"])),
        section("What made it", made_of(files.table)),
    ]
    return page(
        f"{files.name}: training report",
        *parts,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "hover.js").read_text(encoding="utf-8") if figures else "",
        data={"axis": [x.low, x.high], "figures": [[plain(c) for c in f.curves] for f in figures]},
    )


class Figure(NamedTuple):
    title: str
    curves: list[Curve]
    floors: dict[str, float]


def figures_of(files: RunFiles) -> list[Figure]:
    """A figure of each column, with that of the same name on held-out data; the trainer's own last."""
    columns = {name: column for name, column in files.columns.items() if column.steps}
    found = []
    ours = [name for name in columns if name not in MEASURED]
    for name in dict.fromkeys(name.removeprefix("valid_") for name in ours):
        curves = []
        if name in columns:
            curves.append(curve("training", columns[name], "a"))
        if held_out := columns.get(f"valid_{name}"):
            curves.append(curve("held out", held_out, "b", dots=True))
        floors = {
            key: v for key, v in files.floors.get(f"valid_{name}", {}).items() if math.isfinite(v)
        }
        found.append(Figure(title_of(name), curves, floors if held_out else {}))
    for name, color in zip(MEASURED, "dcb", strict=True):
        if name in columns:
            column = counted(columns[name]) if name == "skipped" else columns[name]
            found.append(Figure(title_of(name), [curve(title_of(name), column, color)], {}))
    return found


def counted(column: Column) -> Column:
    """A count that is logged from the first event on: where it changes, from zero, and where it ends."""
    steps, values = [0], [0.0]
    for step, value in zip(column.steps, column.values, strict=True):
        if value != values[-1]:
            steps += [step - 1, step]
            values += [values[-1], value]
    return Column([*steps, column.steps[-1]], [*values, column.values[-1]])


def title_of(name: str) -> str:
    return TITLES.get(name, name).replace("_", " ")


def plain(one: Curve) -> dict[str, Any]:
    """A curve as JSON, which has no number for what is not finite."""
    whole = {"name": one.name, "color": one.color, "steps": one.steps}
    for key in ("means", "lows", "highs"):
        values = getattr(one, key)
        if values is not None:
            whole[key] = [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]
    return whole


def card(figure: Figure, x: Axis) -> Html:
    legend = [tag("li", one.name, class_=one.color) for one in figure.curves]
    legend += [
        tag("li", f"{name} ", tag("small", shown(value)), class_="floor")
        for name, value in sorted(figure.floors.items(), key=lambda item: item[1])
    ]
    area = tag(
        "div", draw(figure.curves, figure.floors, x), class_="area", tabindex="0", role="img",
        aria_label=f"{figure.title} by step; the arrow keys read it",
    )  # fmt: skip
    many = len(figure.curves) + len(figure.floors) > 1
    return tag(
        "figure", tag("h3", figure.title), area, tag("ul", *legend, class_="legend") if many else None,
        class_="card",
    )  # fmt: skip


def section(title: str, parts: list[Html]) -> Html | None:
    return tag("section", tag("h2", title), *parts) if parts else None


def tiles(files: RunFiles) -> list[Html]:
    """The figures that one looks for first."""
    columns = files.columns
    steps = files.table["config"].get("train", {}).get("steps")
    found = [("steps" if steps is None else f"of {shown(steps)} steps", shown(files.step))]
    first = next((name for name in columns if not name.startswith("valid_")), None)
    if first and columns[first].steps:
        found.append((f"{title_of(first)} of the last step", shown(columns[first].values[-1])))
    if files.validation and (valid := columns[files.validation]).finite:
        least = min(valid.finite)
        at = valid.steps[valid.values.index(least)]
        name = title_of(files.validation.removeprefix("valid_"))
        found.append((f"{name} held out, the best: step {shown(at)}", shown(least)))
    if (speed := columns.get("tokens_per_s")) and speed.finite:
        found.append(("tokens per second, the median", shown(round(median(speed.finite)))))
    skipped = columns.get("skipped")
    left_out = skipped.values[-1] if skipped and skipped.values else 0
    found.append(("steps left out because something was not finite", shown(left_out)))
    return [tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in found]


def floors_of(files: RunFiles) -> list[Html]:
    """What simple models reach of the validation figures, beside what this one reached."""
    rows = []
    for name, floors in files.floors.items():
        valid = files.columns.get(name)
        if valid is None or not valid.finite:
            continue
        title = title_of(name.removeprefix("valid_"))
        rows.append((f"this run, its last {title}", shown(valid.values[-1])))
        rows += [
            (floor, shown(value)) for floor, value in sorted(floors.items(), key=lambda i: i[1])
        ]
    if not rows:
        return []
    note = "What needs no training of this kind reaches on the same held-out data."
    return [tag("p", note, class_="soft"), table(rows)]


def throughput(speed: Column | None) -> list[Html]:
    if speed is None or len(speed.finite) < 2:
        return []
    low, *_, high = quantiles(speed.finite, n=10)
    return [
        tag(
            "p",
            f"{shown(round(median(speed.finite)))} tokens per second in the median step; eight steps of ten "
            f"between {shown(round(low))} and {shown(round(high))}. Validation is not counted.",
        )
    ]


def samples_of(samples: list[tuple[int, str]]) -> list[Html]:
    """The last sample open, those before it to unfold; of many, some that are spread evenly."""
    kept = samples
    if len(samples) > MOST_SAMPLES:
        places = [i * (len(samples) - 1) // (MOST_SAMPLES - 1) for i in range(MOST_SAMPLES)]
        kept = [samples[place] for place in places]
    parts = [
        tag("details", tag("summary", f"step {shown(step)}"), tag("pre", text), **opened)
        for (step, text), opened in zip(kept, [{}] * (len(kept) - 1) + [{"open": ""}], strict=False)
    ]
    if len(kept) < len(samples):
        note = f"{len(kept)} of {len(samples)}; samples.txt holds all of them."
        parts.insert(0, tag("p", note, class_="soft"))
    return parts


def configuration(config: dict[str, Any]) -> list[Html]:
    """A table for each group of settings, and one for those that stand alone."""
    alone = {key: value for key, value in config.items() if not isinstance(value, dict)}
    groups = {"run": alone} | {key: v for key, v in config.items() if isinstance(v, dict)}
    cards = [
        tag("div", tag("h3", name), table(flat_rows(values)), class_="card")
        for name, values in groups.items()
        if values
    ]
    return [tag("div", *cards, class_="stack")]


def made_of(whole: dict[str, Any]) -> list[Html]:
    made = whole.get("made_with", {})
    rows = {
        "seed": whole["config"].get("seed"),
        "SHA-256 of the data": whole.get("data_sha256") or "unknown: it is streamed",
        "commit": made.get("commit") or "unknown",
        **{name: value for name, value in made.items() if name != "commit"},
    }
    return [tag("div", table(flat_rows(rows)), class_="card")]
