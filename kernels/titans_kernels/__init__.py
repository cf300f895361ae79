"""Tensor operations of memories, each in its own folder with a reference and fast forms."""

from titans_kernels.linear_recurrence import linear_recurrence
from titans_kernels.memory_update import (
    BACKENDS,
    MemoryState,
    UpdateRule,
    available_backends,
    fresh_state,
    memory_read,
    memory_update,
    momentary_surprise,
)
from titans_kernels.selective_scan import selective_scan

__all__ = [
    "BACKENDS",
    "MemoryState",
    "UpdateRule",
    "available_backends",
    "fresh_state",
    "linear_recurrence",
    "memory_read",
    "memory_update",
    "momentary_surprise",
    "selective_scan",
]
