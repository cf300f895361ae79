"""What a caller of a mixer may pass, checked before anything is computed.

B batch, T time, S cached tokens. Errors say what was expected, what came, and what to do.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from titans_core.state import cache_names, named_tensors, settings_of
from titans_kernels.memory_update.checks import check_flags

CACHED = -1
"""In a shape: as many tokens as are cached."""

NUMBERS: dict[type, tuple[type | tuple[type, ...], str]] = {
    int: (int, "an integer"),
    float: ((int, float), "a number"),
    bool: (bool, "True or False"),
}


def check_numbers(config: Any, section: str = "") -> None:
    """Every int, float and bool of a dataclass is one: 8.0 and "8" are no integers, nor is True."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        allowed = get_args(field.type) or (field.type,)
        if value is None and type(None) in allowed:
            continue
        for kind, (kinds, words) in NUMBERS.items():
            flag = isinstance(value, bool) and kind is not bool
            if kind in allowed and (flag or not isinstance(value, kinds)):
                raise ValueError(f"{section}{field.name} must be {words}: got {value!r}.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{section}{field.name} must be below 2**63: got a larger number.")


def fingerprint(*parts: Any) -> str:
    """Configurations, or tables of plain values, in a few letters; 1 and 1.0 are one setting."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(part: Any) -> Any:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        part = dataclasses.asdict(part)
    if isinstance(part, dict):
        return {key: _plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(value) for value in part]
    return float(part) if isinstance(part, int) and not isinstance(part, bool) else part


class Pattern(NamedTuple):
    """What all states of a mixer have in common."""

    kind: type
    shapes: dict[str, tuple[int, ...]]  # of every tensor, without the batch
    settings: dict[str, str]


def pattern_of(state: Any) -> Pattern:
    """What `check_state` expects of states that are like this one."""
    caches = cache_names(state)
    shapes = {
        name: (CACHED, *x.shape[2:]) if name in caches else tuple(x.shape[1:])
        for name, x in named_tensors(state).items()
    }
    return Pattern(type(state), shapes, settings_of(state))


def check_call(x: Tensor, weight: Tensor, mask: Tensor | None, reset: Tensor | None) -> None:
    """x stands beside the weights, one of which, [..., dim], is `weight`; and there is one flag for
    each token, with padding on the right of a document."""
    dim = weight.shape[-1]
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(f"x must have shape [B, T, dim] = [B, T, {dim}]: got {list(x.shape)}.")
    if len(x) == 0:
        raise ValueError(
            f"x must have at least one row: got shape [B, T, dim] = {list(x.shape)}. Leave the call out "
            "where there is nothing to read."
        )
    if x.device != weight.device:
        raise ValueError(
            f"x must be on the model's device {weight.device}: got {x.device}. Move x or the model."
        )
    if x.dtype != weight.dtype and not _autocasts(x, weight):
        raise TypeError(
            f"x must have the dtype of the model's weights, {weight.dtype}: got {x.dtype}. Convert x "
            "or the model, or call it under torch.autocast for half precision."
        )
    check_flags(mask, reset, x, "x")


def _autocasts(x: Tensor, weight: Tensor) -> bool:
    """Whether autocast brings the two together; it leaves float64 alone."""
    return (
        torch.is_autocast_enabled(x.device.type)
        and x.is_floating_point()
        and torch.float64 not in (x.dtype, weight.dtype)
    )


def frozen_reset() -> ValueError:
    """What to raise where a read that may not write meets the start of a document."""
    return ValueError("A frozen memory cannot be reset: pass reset=None with write=False.")


def check_kind(state: Any, kind: type) -> None:
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be a {kind.__name__}: got {type(state).__name__}. It belongs to another "
            "mixer: pass what this one gave back, or None to begin afresh."
        )


def check_settings(settings: Any, expected: Any) -> None:
    if settings != expected:
        raise ValueError(
            "state must come from a mixer with this one's settings (chunk_size, window and the "
            "rest): got another's. It belongs to another configuration: pass what this mixer gave "
            "back, or None to begin afresh."
        )


def check_state(state: Any, pattern: Pattern, x: Tensor, most_cached: int | None = None) -> None:
    """A state of this mixer, and of x's batch, precision and device."""
    check_kind(state, pattern.kind)
    if most_cached is None and _fits(state, pattern, x):
        return
    check_settings(settings_of(state), pattern.settings)
    tensors, shapes = named_tensors(state), pattern.shapes
    if odd := sorted(tensors.keys() ^ shapes.keys()):
        raise ValueError(
            f"state must hold {'no' if odd[0] in tensors else 'a'} {odd[0]}. It belongs to another "
            "model: pass what this one gave back, or None to begin afresh."
        )
    lengths = [tensors[name].shape[1] for name, shape in shapes.items() if CACHED in shape[:1]]
    cached = lengths[0] if lengths else 0
    for name, shape in shapes.items():
        _check_tensor(name, tensors[name], [len(x), *(cached if n < 0 else n for n in shape)], x)
    if most_cached is not None and cached > most_cached:
        raise ValueError(
            f"state must hold at most {most_cached} cached tokens: got {cached}. It belongs to a "
            "model with a longer window or segment."
        )


def _fits(state: Any, pattern: Pattern, x: Tensor) -> bool:
    """Whether there is nothing to complain of; quick, for it is asked at every token of a stream."""
    leaves = [*_leaves(state)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    settings = [leaf for leaf in leaves if isinstance(leaf, str)]
    shapes, batch, exact = pattern.shapes.values(), len(x), x.dtype == torch.float64
    if len(tensors) != len(shapes) or settings != [*pattern.settings.values()]:
        return False
    return all(
        part.shape == (batch, *shape)
        and part.device == x.device
        and (part.dtype == torch.float64) == (exact and part.is_floating_point())
        for part, shape in zip(tensors, shapes, strict=True)
    )


def _leaves(state: Any) -> Iterator[Any]:
    for child in state:
        if isinstance(child, tuple):
            yield from _leaves(child)
        else:
            yield child


def _check_tensor(name: str, part: Tensor, expected: list[int], x: Tensor) -> None:
    if list(part.shape) != expected:
        raise ValueError(
            f"state.{name} must have shape {expected}: got {list(part.shape)}. It belongs to another "
            "model or batch size."
        )
    if part.device != x.device:
        raise ValueError(
            f"state.{name} must be on x's device {x.device}: got {part.device}. Move the state or x."
        )
    if part.is_floating_point() and (part.dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(
            f"state.{name} must have x's precision {x.dtype}: got {part.dtype}. Convert one."
        )
