"""Configurations as frozen dataclasses: to JSON and back, and changed by `key=value`."""

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(kind: type[ConfigT], values: Any, where: str = "config") -> ConfigT:
    """An instance of the dataclass `kind`; ValueError names the key that does not fit."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table of settings: got {values!r}.")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ValueError(f"{where} has no setting {key!r}{_near(key, names)}.")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if bare and field.name not in values:
            raise ValueError(f"{where} lacks the setting {field.name!r}.")
    prefix = "" if where == "config" else f"{where}."
    return kind(**{key: _convert(hints[key], v, f"{prefix}{key}") for key, v in values.items()})


def override(config: ConfigT, assignments: list[str]) -> ConfigT:
    """The configuration with every `key.inner=value` carried out; values are JSON or bare words."""
    values = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set must be key=value: got {assignment!r}.")
        table = values
        *outer, last = path.strip().split(".")
        for depth, key in enumerate(outer, 1):
            if key in table and not isinstance(table[key], dict):
                single = ".".join(outer[:depth])
                raise ValueError(f"{single} is a single setting: write {single}=VALUE.")
            if key not in table:
                raise ValueError(f"There is no group of settings {key!r}{_near(key, table)}.")
            table = table[key]
        if last not in table:
            raise ValueError(f"There is no setting {path.strip()!r}{_near(last, table)}.")
        table[last] = _parse(text.strip())
    return from_dict(type(config), values)


def difference(ours: Any, theirs: Any) -> str | None:
    """The first setting in which two configurations differ, as `key: a against b`."""
    a, b = _flat(to_dict(ours)), _flat(to_dict(theirs))
    for key in a:
        if a[key] != b[key]:
            return f"{key}: {a[key]!r} against {b[key]!r}"
    return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _near(key: str, names: Any) -> str:
    near = difflib.get_close_matches(key, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else f": there are {', '.join(names)}"


def _parse(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (part for part in inner if part is not type(None))
        return _convert(hint, value, where)
    if origin is tuple:
        if isinstance(value, str) and inner[0] is str and not value.startswith("["):
            # One name may stand without a list.
            value = [value]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list: got {value!r}.")
        return tuple(_convert(inner[0], part, f"{where}[{i}]") for i, part in enumerate(value))
    if origin is Literal:
        if value is None and "none" in inner:
            # `--set key=none` reads as no value; here it is a name.
            return "none"
        if value not in inner:
            raise ValueError(
                f"{where} must be one of {', '.join(map(repr, inner))}: got {value!r}."
            )
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where} must be finite: got a number too large.") from None
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is int and isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError(f"{where} must be below 2**64: got a larger number.")
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{where} must be {hint.__name__}: got {value!r}.")
    return value
