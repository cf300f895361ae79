"""Tensor operations of the neural memory, each in its own folder with a reference and fast forms."""

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

__all__ = [
    "BACKENDS",
    "MemoryState",
    "UpdateRule",
    "available_backends",
    "fresh_state",
    "memory_read",
    "memory_update",
    "momentary_surprise",
]
