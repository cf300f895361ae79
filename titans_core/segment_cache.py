"""Attention caches whose rows begin and end their segments at different times.

B batch.
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from titans_core.attend import EMPTY
from titans_core.attention import AttentionState, gather_valid


def rows_of(condition: Bool[Tensor, " B"], chosen: Any, other: Any) -> Any:
    """Two nested tuples of tensors row by row: `chosen` where the condition holds."""
    if isinstance(other, Tensor):
        return torch.where(condition.view(-1, *(1,) * (other.ndim - 1)), chosen, other)
    if other is None:
        return None
    parts = [rows_of(condition, a, b) for a, b in zip(chosen, other, strict=True)]
    return type(other)(*parts) if hasattr(other, "_fields") else tuple(parts)


def begun(cache: AttentionState, fresh: AttentionState, rows: Bool[Tensor, " B"]) -> AttentionState:
    """The cache with some rows as before their first token; the length stays."""
    gone = rows[:, None, None, None]
    return cache._replace(
        keys=cache.keys.masked_fill(gone, 0),
        values=cache.values.masked_fill(gone, 0),
        at=cache.at.masked_fill(rows[:, None], EMPTY),
        position=cache.position.masked_fill(rows, 0),
        conv_tail=rows_of(rows, fresh.conv_tail, cache.conv_tail),
    )


def longer(cache: AttentionState, read: AttentionState, rows: Bool[Tensor, " B"]) -> AttentionState:
    """The cache with what some rows, whose own is empty, have read; the others get empty places."""
    keep = rows[:, None, None, None]
    return cache._replace(
        keys=torch.cat([cache.keys, read.keys.masked_fill(~keep, 0)], 1),
        values=torch.cat([cache.values, read.values.masked_fill(~keep, 0)], 1),
        at=torch.cat([cache.at, read.at.masked_fill(~rows[:, None], EMPTY)], 1),
        position=rows_of(rows, read.position, cache.position),
        conv_tail=rows_of(rows, read.conv_tail, cache.conv_tail),
    )


def compact(cache: AttentionState) -> AttentionState:
    """The cache as long as its longest row, with the empty places of the others in front."""
    filled = cache.at != EMPTY
    if bool(filled.all()):
        return cache
    keys, values, at = gather_valid(cache.keys, cache.values, cache.at)
    first = filled.shape[1] - int(filled.sum(1).max())
    # Copies: views would hold all of the segment for as long as the state is kept.
    return cache._replace(
        keys=keys[:, first:].clone(), values=values[:, first:].clone(), at=at[:, first:].clone()
    )
