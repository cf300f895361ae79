"""What `--set` can change: every setting of a configuration with its kind, value and meaning.

The meaning is the comment beside a field of the dataclass, or the lines of comment above it, so that it is
written once; a domain of a third party is read in the same way.
"""

import ast
import dataclasses
import inspect
import io
import json
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin


class Setting(NamedTuple):
    key: str  # as `--set` takes it
    kind: str
    value: str  # as `--set` takes it
    meaning: str


def settings_of(config: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a configuration in their order, those of nested ones with dotted keys."""
    hints = typing.get_type_hints(type(config))
    known = meanings(type(config))
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{key}.")
        else:
            yield Setting(
                key, kind_of(hints[field.name]), written(value), known.get(field.name, "")
            )


def written(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str).replace("null", "none")


def kind_of(hint: Any) -> str:
    """A type in the words of the command line."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(kind_of(part) for part in inner)
    if origin is tuple:
        return f"list of {kind_of(inner[0])}"
    names = {
        int: "whole number",
        float: "number",
        bool: "true | false",
        str: "text",
        types.NoneType: "none",
    }
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def meanings(kind: type) -> dict[str, str]:
    """The comments on the fields of a dataclass; those of its bases too."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if dataclasses.is_dataclass(part):
            try:
                found |= comments_on(textwrap.dedent(inspect.getsource(part)))
            except OSError:
                # Installed without its source.
                continue
    return found


def comments_on(source: str) -> dict[str, str]:
    """By field, the comment on its own lines, else the whole lines of comment that end right above it."""
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        beside = [
            comments[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in comments
        ]
        first = node.lineno
        while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        above = [comments[n] for n in range(first, node.lineno)]
        if beside or above:
            found[node.target.id] = " ".join(beside or above)
    return found
