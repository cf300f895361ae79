"""Turns `$...$` in the pages into HTML as the site is built, without a script: few formulas, and simple ones.

mkdocs calls `on_page_markdown`. A command of LaTeX that is not in `SIGNS` is an error.
"""

import re
from typing import Any

SIGNS = {
    "alpha": "\u03b1", "approx": "≈", "cdot": "·", "dots": "…", "eta": "η", "ge": "≥", "in": "∈",
    "infty": "∞", "ldots": "…", "le": "≤", "odot": "⊙", "pm": "±", "theta": "θ", "times": "\u00d7", "to": "→",
}  # fmt: skip
CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"(?<![\\\w$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])")


def on_page_markdown(markdown: str, **_: Any) -> str:
    parts = CODE.split(markdown)
    parts[::2] = [FORMULA.sub(lambda found: html(found[1]), part) for part in parts[::2]]
    return "".join(parts)


def html(formula: str) -> str:
    text = formula.replace("&", "&amp;").replace("<", "&lt;").replace("*", "&#42;")
    text = re.sub(r"\\(?:mathrm|text|mathbf)\{([^{}]*)\}", r"<span>\1</span>", text)
    for mark, tag in (("_", "sub"), ("\\^", "sup")):
        text = re.sub(rf"{mark}\{{([^{{}}]*)\}}", rf"<{tag}>\1</{tag}>", text)
        text = re.sub(rf"{mark}(\w)", rf"<{tag}>\1</{tag}>", text)
    text = re.sub(r"\\([a-zA-Z]+)", lambda found: sign(found[1], formula), text)
    return f'<span class="formula">{text}</span>'


def sign(command: str, formula: str) -> str:
    if command not in SIGNS:
        raise ValueError(
            f"docs/formulas.py knows no \\{command} of ${formula}$: write it otherwise."
        )
    return SIGNS[command]
