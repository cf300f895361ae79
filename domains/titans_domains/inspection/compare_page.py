"""The report on two memories of one run."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from titans_domains.inspection.charts import bar, percent, short
from titans_domains.inspection.compare import KEYS
from titans_domains.inspection.meanings import COMPARED, glossary
from titans_domains.inspection.memory_page import head_name
from titans_domains.page import Html, join, page, table, tag


def compare_page(found: dict[str, Any]) -> str:
    names = [Path(found[side]).name for side in ("a", "b")]
    css = (files("titans_domains.inspection") / "assets" / "inspect.css").read_text(
        encoding="utf-8"
    )
    return page(
        f"Memories of {names[0]} and {names[1]}",
        tag("h1", "Two memories: A of ", tag("span", names[0]), ", B of ", tag("span", names[1])),
        tag(
            "p", f"{found['run']}, {found['domain']}, {found['mixer']}, {found['parameters']:,} parameters. "
            f"A is {found['a']} ({found['position_a']:,} tokens read), B is {found['b']} "
            f"({found['position_b']:,}).", class_="soft",
        ),
        tag("h2", "Which parts differ most"),
        _matrices(found["matrices"]),
        *(_keys(name, rows) for name, rows in found["keys"].items()),
        _chance(found["chance"]),
        tag("h2", "What the figures are"),
        glossary(COMPARED),
        style=css,
    )  # fmt: skip


def _matrices(rows: list[dict[str, Any]]) -> Html:
    names = {
        "difference": "difference", "share": "of A's weights", "learned_a": "A learned",
        "learned_b": "B learned", "cosine": "cosine of these", "rank": "effective rank",
        "directions": "shared directions", "by_chance": "by chance",
    }  # fmt: skip
    ordered = sorted(rows, key=lambda row: -(row["change"] or 0.0))
    cells = [
        [
            row["unit"],
            join(bar((row["change"] or 0.0) / 2), short(row["change"])),
            *(short(row[name]) for name in names),
        ]
        for row in ordered
    ]
    return table(cells, ["", "change", *names.values()], class_="figures")


def _keys(name: str, rows: list[dict[str, Any]]) -> Html:
    cells = [
        [
            head_name(row),
            join(bar(row["recall_a"]), short(row["recall_a"])),
            join(bar(row["recall_b"]), short(row["recall_b"])),
            short(row["before"]),
            percent(row["found_a"]),
            percent(row["found_b"]),
            short(row["agree"]),
        ]
        for row in rows
    ]
    names = [
        "",
        "recall in A",
        "recall in B",
        "before reading",
        "found in A",
        "found in B",
        "A with B",
    ]
    return join(
        tag("h2", "Keys of ", tag("span", Path(name).name), " in both"),
        table(cells, names, class_="figures"),
    )


def _chance(rows: list[dict[str, Any]] | None) -> Html | None:
    if rows is None:
        return None
    return join(
        tag("h2", "Keys of chance in both"),
        tag(
            "p", f"Neither side is a file that was read, so {KEYS} random directions are asked for: give "
            "--text for the recall of real keys.", class_="soft",
        ),
        table([[head_name(row), short(row["agree"])] for row in rows], ["", "A with B"], class_="figures"),
    )  # fmt: skip
