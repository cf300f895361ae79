"""The tokens of a call in pieces of which none crosses the start of a segment.

B batch, T time, P tokens of a piece: a segment, or the part of one that the call holds.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from titans_kernels.memory_update.types import first_phase


class Piece(NamedTuple):
    x: Float[Tensor, "B P dim"]
    mask: Bool[Tensor, "B P"] | None
    reset: Bool[Tensor, "B P"] | None
    place: Int[Tensor, "B P"] | None  # in the call where rows differ, T beyond a row's end


def pieces_of(
    x: Float[Tensor, "B T dim"],
    position: Int[Tensor, " B"],
    mask: Bool[Tensor, "B T"] | None,
    reset: Bool[Tensor, "B T"] | None,
    size: int,
) -> Iterator[Piece]:
    """Pieces of segments of `size` tokens, whose rows may stand at different places of their grids."""
    time = x.shape[1]
    phase = first_phase(position, mask, reset, size)
    check_on_grid(phase, reset, size)
    phases = phase.tolist()
    if len(set(phases)) == 1:
        bounds = [0, *range(size - phases[0], time, size), time]
        for begin, end in itertools.pairwise(bounds):
            yield Piece(
                x[:, begin:end],
                None if mask is None else mask[:, begin:end],
                None if reset is None else reset[:, begin:end],
                None,
            )
        return
    for n in range(-(-(max(phases) + time) // size)):
        begin = (n * size - phase).clamp(0, time)
        end = ((n + 1) * size - phase).clamp(0, time)
        index = begin[:, None] + torch.arange(int((end - begin).max()), device=x.device)
        inside = index < end[:, None]
        index = index.clamp_max(time - 1)
        yield Piece(
            x.take_along_dim(index[..., None], 1).masked_fill(~inside[..., None], 0),
            inside if mask is None else inside & mask.take_along_dim(index, 1),
            None if reset is None else inside & reset.take_along_dim(index, 1),
            torch.where(inside, index, time),
        )


def check_on_grid(phase: Int[Tensor, " B"], reset: Bool[Tensor, "B T"] | None, size: int) -> None:
    if reset is None:
        return
    grid = phase[:, None] + torch.arange(reset.shape[1], device=reset.device)
    off = (reset & (grid % size != 0)).nonzero()
    if len(off):
        row, t = off[0].tolist()
        raise ValueError(
            f"reset must fall on a multiple of segment_len = {size} tokens of its row: got row {row}, "
            f"token {t}. Fill the gap before it with masked tokens, or begin a call with the document."
        )


def rejoined(
    outputs: list[Float[Tensor, "B _ dim"]], places: list[Int[Tensor, "B _"]], time: int
) -> Float[Tensor, "B T dim"]:
    """The pieces' outputs in the order of the call's tokens; `places` is empty where they are in it."""
    y = torch.cat(outputs, 1)
    if not places:
        return y
    source = torch.cat(places, 1)
    order = torch.arange(source.shape[1], device=y.device).expand_as(source)
    where = order.new_zeros(len(y), time + 1).scatter(1, source, order)
    return y.take_along_dim(where[:, :-1, None], 1)
