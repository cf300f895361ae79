"""What a caller of the linear recurrence may pass, checked once."""

import torch
from torch import Tensor

from titans_kernels.memory_update.types import state_dtype


def check_streams(q: Tensor, k: Tensor, v: Tensor) -> None:
    if v.ndim != 4 or not v.is_floating_point():
        raise ValueError(
            f"v must be floating point, of shape [B, T, H, V]: got {v.dtype} {list(v.shape)}."
        )
    for name, x in (("q", q), ("k", k)):
        heads = x.shape[2:3]
        if x.ndim != 4 or x.shape[:2] != v.shape[:2] or heads not in (v.shape[2:3], (1,)):
            raise ValueError(
                f"{name} must have shape [B, T, H, K] = [{', '.join(map(str, v.shape[:3]))}, K], or one "
                f"head for all: got {list(x.shape)}."
            )
    if q.shape != k.shape:
        raise ValueError(f"q and k must have one shape: got {list(q.shape)} and {list(k.shape)}.")
    for name, x in (("q", q), ("k", k)):
        check_beside(name, x, v)


def check_gates(
    k: Tensor, v: Tensor, log_decay: Tensor | None, channels: str, beta: Tensor | None
) -> None:
    heads = v.shape[:3]
    if channels not in ("keys", "values"):
        raise ValueError(f"channels must be 'keys' or 'values': got {channels!r}.")
    if log_decay is not None:
        each = (*heads, (k if channels == "keys" else v).shape[3])
        if log_decay.shape not in (heads, each):
            raise ValueError(
                f"log_decay must have one value per head, [B, T, H] = {list(heads)}, or per channel "
                f"of the {channels}, {list(each)}: got {list(log_decay.shape)}."
            )
        check_beside("log_decay", log_decay, v)
    if beta is None:
        return
    if beta.shape != heads:
        raise ValueError(
            f"beta must have one value per head, [B, T, H] = {list(heads)}: got {list(beta.shape)}."
        )
    if log_decay is not None and log_decay.ndim == 4:
        raise ValueError(
            "log_decay must have one value per head, [B, T, H], where beta is given: got one per "
            "channel. The delta rule is computed with a decay per head."
        )
    check_beside("beta", beta, v)


def check_state(state: Tensor, q: Tensor, v: Tensor) -> None:
    expected = [v.shape[0], v.shape[2], v.shape[3], q.shape[3]]
    if list(state.shape) != expected:
        raise ValueError(
            f"state must have shape [B, H, V, K] = {expected}: got {list(state.shape)}. It belongs to "
            "another layer or batch size."
        )
    check_state_kind(state, v)


def check_state_kind(state: Tensor, x: Tensor) -> None:
    dtype = state_dtype(x.dtype)
    if state.dtype != dtype or state.device != x.device:
        raise ValueError(
            f"state must be {dtype} on {x.device}: got {state.dtype} on {state.device}. Convert one."
        )


def check_beside(name: str, x: Tensor, other: Tensor) -> None:
    if not x.is_floating_point() or x.device != other.device:
        raise ValueError(
            f"{name} must be floating point on {other.device}: got {x.dtype} on {x.device}."
        )
    if (x.dtype == torch.float64) != (other.dtype == torch.float64):
        raise TypeError(
            f"{name} must have the other inputs' precision, {other.dtype}: got {x.dtype}. Convert one."
        )
