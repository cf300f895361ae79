"""How the Triton kernels are launched: tile sizes, warps, precision, and the length of a segment."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BUDGET_BYTES = 256 * 2**20
"""A segment has as many chunks as leave about so much behind them; one alone keeps it for the backward."""

SLICE = 32
"""Hidden units of one program, at most."""

SHARED_BYTES = 232_448
"""Of shared memory that one program may have on sm_90, for which the tiles are made."""

WARPS = {"walk_backward": 8}
"""Of a kernel's programs, where 4 have too few registers."""


def warps_of(kernel: str) -> int:
    return WARPS.get(kernel, 4)


class Sizes(NamedTuple):
    """Sides of the tensors, and of the tiles that they are taken in; D is WIDTH, or as a walk pads it."""

    N: int
    R: int
    H: int
    C: int
    E: int
    D: int
    WIDTH: int
    DP: int
    ES: int
    SLICES: int
    DEPTH: int

    @classmethod
    def of(
        cls, shape: Sequence[int], depth: int, hidden: int, heads: int, width: int | None = None
    ) -> "Sizes":
        """For tokens [N, R, C, D]; at depth 1 the hidden width is D."""
        chunks, rows, tokens, wide = shape
        most, slices = slice_of(depth, hidden, wide), slices_of(depth, hidden, wide)
        return cls(
            chunks,
            rows,
            heads,
            tokens,
            hidden,
            wide,
            width or wide,
            side(wide),
            most,
            slices,
            depth,
        )


def slice_of(depth: int, hidden: int, width: int) -> int:
    """Hidden units of one program."""
    return side(width) if depth == 1 else min(side(hidden), SLICE)


def slices_of(depth: int, hidden: int, width: int) -> int:
    """Programs of one row and head, which wait for each other."""
    return -(-hidden // slice_of(depth, hidden, width))


def side(length: int) -> int:
    """Of a tile that holds so much: a power of two, and no less than a product on tensor cores takes."""
    return max(16, 1 << (length - 1).bit_length())


def precision(dtype: torch.dtype) -> str:
    """Of the products, as `torch.set_float32_matmul_precision` has it.

    The highest is three products of parts on tensor cores, near float32's own error: without tensor cores
    the operands of a chunk of 64 would not fit the registers.
    """
    if dtype == torch.float64:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def segments(sizes: Sizes, state: Tensor, training: bool) -> list[tuple[int, int]]:
    """First and last chunk of each; a training keeps the states between, and makes those within again."""
    chunk = sizes.R * sizes.C * sizes.SLICES * (2 * sizes.D + 2 * sizes.C)
    bytes_of_chunk = (state.numel() + chunk) * state.element_size()
    size = max(1, BUDGET_BYTES // bytes_of_chunk)
    starts = -(-sizes.N // size) * state.numel() * state.element_size()
    if training and starts > BUDGET_BYTES:
        size = max(size, math.isqrt(sizes.N - 1) + 1)
    return [(at, min(at + size, sizes.N)) for at in range(0, sizes.N, size)]


def launch(kernel: Any, programs: int, given: dict[str, Any]) -> None:
    """Runs so many programs of a kernel, which takes what it asks for by name."""
    names = {name: given[name] for name in kernel.arg_names}
    # Triton launches on the current device, which may be another.
    with torch.cuda.device_of(next(x for x in names.values() if isinstance(x, Tensor))):
        kernel[(programs,)](**names, num_warps=warps_of(kernel.__name__), num_stages=1)
