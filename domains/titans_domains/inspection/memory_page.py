"""The report on one memory: what it holds, what it returns for stored keys, how long it does.

H memory heads, L layers.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from titans_domains.inspection.charts import WIDTH, bar, drawing, line, path_of, percent, short
from titans_domains.inspection.facts import facts
from titans_domains.inspection.meanings import MATRICES, RECALL, glossary
from titans_domains.inspection.recall import Watched, heads, recalled
from titans_domains.inspection.states import Memories
from titans_domains.inspection.subject import Run
from titans_domains.page import Html, join, page, table, tag

MOST_CURVES = 32
"""Heads whose curves are drawn; the table has all of them."""
SAME = 1e-3
"""Relative distance below which a memory counts as the one that reading a file has left."""


def memory_table(
    run: Run,
    memories: Memories,
    *,
    memory: Path | None = None,
    path: Path | None = None,
    watched: Watched | None = None,
) -> dict[str, Any]:
    """All numbers on memories; with `watched` tokens of the file at `path`, what they return for these."""
    apart = None if watched is None else distance(watched.memories, memories)
    return {
        **run.about(),
        "memory": None if memory is None else str(memory),
        "position": int(next(iter(memories.values())).position[0]),
        "file": None if path is None else str(path),
        "record": None if watched is None else watched.record,
        "tokens": None if watched is None else watched.tokens,
        "watched": None if watched is None else len(watched.numbers),
        "apart": apart,
        "matrices": facts(run, memories),
        "heads": (
            None
            if watched is None or apart is None
            else heads(run, watched, recalled(run, watched, memories), same=apart < SAME)
        ),
    }


def distance(one: Memories, other: Memories) -> float:
    """Between two memories, relative to the first one's size."""
    pairs = [
        (a.double(), b.double())
        for name in one
        for a, b in zip(one[name].memory, other[name].memory, strict=True)
    ]
    apart = sum((a - b).square().sum().item() for a, b in pairs)
    whole = sum(a.square().sum().item() for a, _ in pairs)
    return (apart / max(whole, 1e-300)) ** 0.5


def memory_page(found: dict[str, Any], notes: tuple[str, ...]) -> str:
    name = Path(found["memory"] or found["file"] or found["run"]).name
    css = (files("titans_domains.inspection") / "assets" / "inspect.css").read_text(
        encoding="utf-8"
    )
    return page(
        f"Memory of {name}",
        tag("h1", "Memory of ", tag("span", name)),
        tag(
            "p", f"{found['run']}, {found['domain']}, {found['mixer']}, {found['parameters']:,} parameters. ",
            _source(found), class_="soft",
        ),
        _another(found),
        _tiles(found),
        _recall(found),
        tag("h2", "Every matrix"),
        _matrices(found),
        tag("h2", "What the figures are"),
        glossary(MATRICES | (RECALL if found["heads"] else {})),
        tag("ul", *(tag("li", note) for note in notes)) if found["file"] else None,
        style=css,
    )  # fmt: skip


def _source(found: dict[str, Any]) -> str:
    read = f"{found['tokens']:,} tokens of {found['file']}" if found["file"] else ""
    if found["file"] and found["record"] and found["record"] != Path(found["file"]).name:
        read += f", record {found['record']}"
    if found["memory"]:
        return f"The memory is that of {found['memory']}." + (
            f" It is asked for {read}." if read else ""
        )
    return (
        f"The memory has read {read}."
        if read
        else "Nothing was read: this is what training has left."
    )


def _another(found: dict[str, Any]) -> Html | None:
    if found["apart"] is None or found["apart"] < SAME:
        return None
    return tag(
        "p", f"This memory is not the one that reading {found['file']} leaves (relative distance "
        f"{short(found['apart'])}): it has read something else, or more. So nothing is said of how old its "
        "tokens are in it, or how long they last.", class_="cap",
    )  # fmt: skip


def _tiles(found: dict[str, Any]) -> Html:
    rows = found["heads"] or []
    tiles = [
        (f"{found['position']:,}", "tokens read, with start tokens"),
        (short(_mean(found["matrices"], "share")), "learned, relative to the start (mean)"),
        (
            short(_mean(found["matrices"], "learned_rank")),
            "effective rank of what was learned (mean)",
        ),
    ]
    if rows:
        tiles += [
            (short(_mean(rows, "recall")), "cosine of recalled and written value"),
            (short(_mean(rows, "before")), "the same before reading"),
            (
                percent(_mean(rows, "found") or 0.0),
                "nearer to its own value than to another's; 50 % by chance",
            ),
        ]
    return tag(
        "div",
        *(tag("div", tag("b", a), tag("span", b), class_="tile") for a, b in tiles),
        class_="tiles",
    )


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(values)) if values else None


def _recall(found: dict[str, Any]) -> Html | None:
    rows = found["heads"]
    if not rows:
        return tag("p", "No file was given whose keys could be asked for.", class_="soft")
    drawn = rows[:MOST_CURVES]
    left = len(rows) - len(drawn)
    return join(
        tag("h2", "What stored keys return now"),
        _recall_table(found),
        tag("h2", "By age"),
        tag(
            "p", tag("span", "recall"), tag("span", "before reading", class_="dash"),
            tag("span", "left by the gates, mean of layers", class_="b"),
            class_="keys soft",
        ),
        tag("div", *map(_curves, drawn), class_="grid"),
        tag("p", f"Of {left} more heads the table has the figures.", class_="cap") if left else None,
    )  # fmt: skip


def _recall_table(found: dict[str, Any]) -> Html:
    same = found["apart"] < SAME
    names = ["", "recall", "before reading", "others' values", "found", "squared error", "before"]
    names += ["half-life", "by the gates, per layer"] if same else []
    cells = []
    for row in found["heads"]:
        last = []
        if same:
            last = [
                _life(row["half_life"], found),
                ", ".join(_life(x, found) for x in row["gate_half_life"]),
            ]
        cells.append(
            [
                head_name(row),
                join(bar(row["recall"]), short(row["recall"])),
                *(short(row[name]) for name in ("before", "others")),
                percent(row["found"]),
                short(row["error"]),
                short(row["error_before"]),
                *last,
            ]
        )
    return table(cells, names, class_="figures")


def _life(tokens: float | None, found: dict[str, Any]) -> str:
    if tokens is None:
        return "nothing to lose"
    return f"over {found['tokens'] - 1:,}" if tokens == float("inf") else short(tokens)


def head_name(row: dict[str, Any]) -> str:
    where = f"{row['memory']}, head {row['head']}"
    return f"{row['reading']}, {where}" if row["reading"] else where


def _curves(row: dict[str, Any]) -> Html:
    """Recall and what the gates leave, over the age on a scale of powers of two."""
    ages = np.log2(1 + np.array(row["ages"]))
    xs = (WIDTH * (0.01 + 0.98 * (ages - ages[0]) / max(ages[-1] - ages[0], 1e-9))).tolist()
    low = min(0.0, *row["recall_by_age"], *row["before_by_age"])
    shapes = [
        line(path_of(xs, row["before_by_age"], low, 1.0), "dash"),
        line(path_of(xs, row["recall_by_age"], low, 1.0), "a"),
    ]
    if "retained_by_age" in row:
        retained = np.array(row["retained_by_age"], float).mean(0)
        shapes.append(line(path_of(xs, retained.tolist(), low, 1.0), "b"))
    name = head_name(row)
    return tag(
        "figure",
        tag("h3", name),
        tag(
            "div",
            tag("div", tag("span", "1"), tag("span", short(low)), class_="ends"),
            drawing(*shapes, label=f"{name}: recall by age", class_="line"),
            tag(
                "div", tag("span", "newest"), tag("span", f"{round(row['ages'][-1]):,} tokens ago"),
                class_="feet",
            ),
            class_="chart",
        ),
        class_="card",
    )  # fmt: skip


def _matrices(found: dict[str, Any]) -> Html:
    names = {
        "norm": "norm", "largest": "largest singular value", "rank": "effective rank",
        "distance": "learned", "share": "relative", "learned_rank": "its effective rank",
        "surprise": "running surprise",
    }  # fmt: skip
    rows = [
        [row["unit"], " x ".join(map(str, row["shape"])), *(short(row[name]) for name in names)]
        for row in found["matrices"]
    ]
    return table(rows, ["", "shape", *names.values()], class_="figures")
