"""The memory update as products of matrices: the numbers of `reference.py`, no weights per token.

Within a chunk every gradient is taken at one memory, so a layer's gradients are rank-1 and their sum
is a product of two matrices. The derivation is in this folder's README; the names are its names.

B batch, T time, H memory heads, D width of a head, N chunks, C tokens in a chunk, L layers, R = B H,
G gates per head: one for each layer, or one for all.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    first_phase,
    rows_where,
)
from titans_kernels.memory_update.walk import Coefficients, Layout, walk


def memory_update(
    q: Float[Tensor, "B T H D"],
    k: Float[Tensor, "B T H D"],
    v: Float[Tensor, "B T H D"],
    step_size: Float[Tensor, "B T H _"],
    momentum: Float[Tensor, "B T H _"],
    forget: Float[Tensor, "B T H _"],
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None,
    mask: Bool[Tensor, "B T"],
    reset: Bool[Tensor, "B T"] | None,
    state: MemoryState,
    start: MemoryState,
) -> tuple[Float[Tensor, "B T H D"], MemoryState]:
    """Writes every token into the memory and reads it after, a chunk at a time."""
    batch, time, heads, _ = q.shape
    if time == 0:
        return q, state
    phase = first_phase(state.position, mask, reset, rule.chunk_size)
    offsets = phase.tolist()
    one_chunk = max(offsets) + time <= rule.chunk_size
    size = time if one_chunk else rule.chunk_size
    if one_chunk:
        offsets = [0] * batch
    length = -(-(max(offsets) + time) // size) * size

    def to_chunks(x: Tensor) -> Tensor:
        """[B, T, H, ...] to [N, R, C, ...], every row shifted to its own place on the grid."""
        x = shift(x, offsets, length).unflatten(1, (-1, size))  # [B, N, C, H, ...]
        return x.movedim(3, 1).flatten(0, 1).movedim(1, 0)

    written = to_chunks(mask[..., None].expand(batch, time, heads))  # [N, R, C]
    coefficients = coefficients_of(
        *(to_chunks(gate).movedim(-1, -2) for gate in (step_size, momentum, forget)),
        written=written,
    )
    touched = shift(mask, offsets, length).unflatten(1, (-1, size)).any(-1)  # [B, N]
    touched[:, 0] &= phase == 0
    layout = Layout(
        opens=touched,
        resets=None if reset is None else shift(reset, offsets, length)[:, ::size],
    )
    q, k, v = (to_chunks(x) for x in (q, k, v))
    y, memory, chunk_memory, surprise = walk(
        q, k, v, coefficients, initial, norm, rule, layout, state, start
    )
    y = y.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)  # [B, N C, H, D]
    y = unshift(y, offsets, time)
    position = final_position(state.position, mask, reset)
    closed = position % rule.chunk_size == 0
    chunk_memory = rows_where(closed, memory, chunk_memory)
    return y, MemoryState(memory, chunk_memory, surprise, position)


def coefficients_of(
    step: Tensor, momentum: Tensor, forget: Tensor, *, written: Tensor
) -> Coefficients:
    """From gates [N, R, G, C], G = L or 1 for all layers, what every chunk needs of them."""
    live = written[:, :, None]  # [N, R, 1, C]
    retain = cumulative_products(
        torch.where(live, 1 - forget, 1.0)
    )  # A with the start: [.., C, C+1]
    kept = cumulative_products(torch.where(live, momentum, 1.0))  # P with the start
    mixed = (retain[..., 1:] * live[..., None, :]) @ kept  # p and G of the README, side by side
    return Coefficients(
        step=torch.where(live, step, 0.0)[..., None],
        retain=retain[..., :1],
        past=mixed[..., :1],
        mix=mixed[..., 1:],
        momentum=kept[..., -1:, :1],
        last=kept[..., -1, 1:, None],
    )


def cumulative_products(factors: Float[Tensor, "... C"]) -> Float[Tensor, "... C C+1"]:
    """Entry [t, j] is the product of factors j to t; 1 at j = t + 1, and 0 beyond.

    By doubling, so that only products occur: a factor of exactly 0 is exact, its gradient too.
    """
    size = factors.shape[-1]
    rows = torch.arange(size, device=factors.device)[:, None]
    columns = torch.arange(size + 1, device=factors.device)
    products = torch.where(rows >= columns, factors[..., None], 1.0)
    reach = 1
    while reach < size:
        products = products * F.pad(products[..., :-reach, :], (0, 0, reach, 0), value=1.0)
        reach *= 2
    return products.tril(1)


def shift(x: Tensor, offsets: list[int], length: int) -> Tensor:
    """Row b of x [B, T, ...] moved right by offsets[b], with zeros up to `length` around it."""
    time = x.shape[1]
    if length == time:
        return x
    tail = (0, 0) * (x.ndim - 2)
    if len(set(offsets)) == 1:
        return F.pad(x, (*tail, offsets[0], length - time - offsets[0]))
    return torch.stack(
        [F.pad(row, (*tail, o, length - time - o)) for row, o in zip(x, offsets, strict=True)]
    )


def unshift(x: Tensor, offsets: list[int], time: int) -> Tensor:
    if len(set(offsets)) == 1:
        return x[:, offsets[0] : offsets[0] + time]
    return torch.stack([row[o : o + time] for row, o in zip(x, offsets, strict=True)])


def final_position(position: Tensor, mask: Tensor, reset: Tensor | None) -> Tensor:
    """Tokens written since each row's last reset."""
    if reset is None:
        return position + mask.sum(1)
    since = reset.flip(1).cumsum(1).flip(1)  # 0 from the last reset's next token on
    current = (since - reset.long()) == 0
    return torch.where(reset.any(1), 0, position) + (mask & current).sum(1)
