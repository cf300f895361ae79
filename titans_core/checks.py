"""What a caller of a mixer may pass, checked before anything is computed.

B batch, T time, S cached tokens. Errors say what was expected, what came, and what to do.
"""

from typing import Any

import torch
from torch import Tensor

from titans_core.state import cache_names, named_tensors
from titans_kernels.memory_update.checks import check_flags

CACHED = -1
"""In a shape: as many tokens as are cached."""

Shapes = dict[str, tuple[int, ...]]
"""The shape of every tensor of a state, by its name and without the batch."""


def shapes_of(state: Any) -> Shapes:
    """What `check_state` expects of states that are like this one."""
    caches = cache_names(state)
    return {
        name: (CACHED, *x.shape[2:]) if name in caches else tuple(x.shape[1:])
        for name, x in named_tensors(state).items()
    }


def check_call(x: Tensor, dim: int, mask: Tensor | None, reset: Tensor | None) -> None:
    """Padding stands on the right of a document, and there is one flag for each token."""
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(f"x must have shape [B, T, dim] = [B, T, {dim}]: got {list(x.shape)}.")
    check_flags(mask, reset, x, "x")


def check_kind(state: Any, kind: type) -> None:
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be a {kind.__name__}: got {type(state).__name__}. It belongs to another "
            "mixer: pass what this one gave back, or None to begin afresh."
        )


def check_state(
    state: Any, kind: type, shapes: Shapes, x: Tensor, most_cached: int | None = None
) -> None:
    """A state of this mixer, and of x's batch, precision and device."""
    check_kind(state, kind)
    tensors = named_tensors(state)
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
