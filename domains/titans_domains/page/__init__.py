"""Self-contained HTML pages: escaped by construction, nothing fetched, readable in light and dark.

`tag("p", text)` escapes its text; what is HTML already has the type `Html`. `page` puts the parts below a
title, with the style that all pages share.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EMPTY = ("meta", "br", "hr", "input", "line", "path", "rect")
# Not even by a mistake is anything fetched, or sent, by whoever opens a page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is HTML already and is put in as it is."""

    __slots__ = ()


def join(*parts: Any) -> Html:
    """The parts in a row, those that are no `Html` escaped; None stands for nothing."""
    return Html(
        "".join(
            part if isinstance(part, Html) else escaped(part) for part in parts if part is not None
        )
    )


def escaped(value: Any) -> str:
    return html.escape(readable(str(value)))


def readable(text: str) -> str:
    """With replacement characters where a file's name is no UTF-8."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `class_` and `data_x` are the attributes class and data-x; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in EMPTY and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def table(
    rows: Iterable[Iterable[Any]], heads: Iterable[Any] = (), class_: str | None = None
) -> Html:
    """A table whose first column names its rows; it scrolls by itself where a page is narrow."""
    named = [tag("th", head, scope="col") for head in heads]
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    whole = tag("table", tag("thead", tag("tr", *named)) if named else None, tag("tbody", *body))
    return tag("div", whole, class_=" ".join(filter(None, ("table", class_))))


def flat_rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested table of settings as rows of dotted name and value, written as JSON."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += flat_rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def page(title: str, *parts: Any, style: str = "", script: str = "", data: Any = None) -> str:
    """A whole page. `script` is code, which finds `data` as JSON in the element with the id data."""
    shared = (HERE / "style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>\n{shared}{style}</style>"),
    )
    scripts = []
    if data is not None:
        scripts.append(Html(f'<script type="application/json" id="data">{as_json(data)}</script>'))
    if script:
        scripts.append(Html(f"<script>\n{script}</script>"))
    body = tag("body", tag("main", *parts), *scripts)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def as_json(data: Any) -> str:
    """JSON that can stand in a script element, whatever its texts hold; NaN and infinities are refused."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")
