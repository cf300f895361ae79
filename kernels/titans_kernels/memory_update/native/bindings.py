"""Tensors as the C functions take them: the structure of `call.h`, in its order."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Pointer = ctypes.c_void_p
Number = ctypes.c_int64


class View(ctypes.Structure):
    """A tensor [B, T, H, G] with any strides but the last of the tokens', which is 1."""

    _fields_ = (("data", Pointer), *((name, Number) for name in ("batch", "time", "head", "gate")))


class Weights(ctypes.Structure):
    """A matrix per layer, each [B, H, out, in]."""

    _fields_ = (("data", Pointer), ("batch", Pointer))


STREAMS = ("q", "k", "v", "step", "momentum", "forget")
BEGINNINGS = ("base", "start_memory", "start_surprise", "memory", "held", "surprise")
ENDS = ("last_memory", "last_held", "last_surprise")


class Call(ctypes.Structure):
    """What the C functions read and where they write; see `call.h`."""

    _fields_ = (
        *((name, Number) for name in ("rows", "heads", "time", "width", "layers", "chunk")),
        *((name, Number) for name in ("residual", "silu", "dot", "toward_initial", "threads")),
        ("max_surprise", ctypes.c_double),
        *((name, Number) for name in ("pieces", "every")),
        *((name, Pointer) for name in ("sizes", "phase", "mask", "reset")),
        *((name, View) for name in STREAMS),
        *((name, Pointer) for name in ("gain", "bias")),
        *((name, Weights) for name in BEGINNINGS),
        ("y", Pointer),
        *((name, Weights) for name in ENDS),
        *((name, Pointer) for name in ("sums", "states", "dy")),
        *((f"d_{name}", Weights) for name in ENDS),
        *((f"d_{name}", View) for name in STREAMS),
        *((f"d_{name}", Pointer) for name in ("gain", "bias")),
        *((f"d_{name}", Weights) for name in BEGINNINGS),
    )


def view(x: Tensor) -> View:
    batch, time, head, gate = x.stride()
    return View(x.data_ptr(), batch, time, head, gate if x.shape[3] > 1 else 0)


def weights(parts: Sequence[Tensor], kept: list[Any]) -> Weights:
    """One per layer [B, H, out, in], a row's in order; one row may stand for all.

    What the result points to is added to `kept`, and must live as long.
    """
    parts = [by_row(w) for w in parts]
    data = (Pointer * len(parts))(*(w.data_ptr() for w in parts))
    batch = numbers([w.stride(0) if len(w) > 1 else 0 for w in parts])
    kept += [parts, data, batch]
    return Weights(address(data), address(batch))


def numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (Number * len(values))(*values)


def address(array: Any) -> int:
    return ctypes.addressof(array)


def by_row(w: Tensor) -> Tensor:
    """The same weights with every row's matrices in order; one row may stand for all."""
    return w if w.is_contiguous() or w[0].is_contiguous() else w.contiguous()


def by_token(x: Tensor) -> Tensor:
    """The same tokens with a head's numbers side by side."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def run(name: str, library: ctypes.CDLL, call: Any, threads: int) -> None:
    """Calls a function with as much workspace for each thread as it asks for."""
    size = getattr(library, f"{name}_workspace")
    size.restype = Number
    room = workspace(size(ctypes.byref(call)) * threads + 64)
    start = room.data_ptr()
    getattr(library, name)(ctypes.byref(call), Pointer(start + -start % 64))
    rooms.append(room)


rooms: list[Tensor] = []
"""Workspaces that no call uses: fresh memory costs more to touch first than to compute in."""


def workspace(size: int) -> Tensor:
    try:
        room = rooms.pop()
    except IndexError:
        room = torch.empty(0, dtype=torch.uint8)
    return room if room.numel() >= size else torch.empty(size, dtype=torch.uint8)
