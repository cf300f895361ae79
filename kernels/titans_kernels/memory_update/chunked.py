"""The memory update as products of matrices: the numbers of `reference.py`, no weights per token.

Within a chunk every gradient is taken at one memory, so a layer's gradients are rank-1 and their sum
is a product of two matrices. The derivation is in this folder's README; the names are its names.

B batch, T time, H memory heads, D width of a head, N chunks, C tokens in a chunk, L layers, R = B H,
G gates per head: one for each layer, or one for all.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update.call import Layout
from titans_kernels.memory_update.coefficients import coefficients_of
from titans_kernels.memory_update.group_walk import group_walk
from titans_kernels.memory_update.one_token import one_token
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    begin_chunk,
    begin_document,
    first_phase,
)
from titans_kernels.memory_update.walk import walk as chunk_walk


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
    start: MemoryState | None,
    walk: Callable[..., tuple[Tensor, MemoryState]] = group_walk,
    token: Callable[..., tuple[Tensor, MemoryState]] | None = one_token,
) -> tuple[Float[Tensor, "B T H D"], MemoryState]:
    """Writes every token into the memory and reads it after, a chunk at a time.

    `walk` and `token`, None for none, are what goes through chunks and takes one token alone; for one inner
    step and forgetting per head.
    """
    batch, time, heads, _ = q.shape
    if 0 in (batch, time):
        return q, state
    plain = rule.inner_steps == 1 and not rule.channel_forget
    if time == 1 and plain and token is not None:
        tokens = (q, k, v, step_size, momentum, forget)
        return single(tokens, initial, rule, norm, mask[:, 0], reset, state, start, token)
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
        return x.movedim((1, 3), (0, 2)).flatten(1, 2)

    written = to_chunks(mask[..., None].expand(batch, time, heads))  # [N, R, C]
    gates = tuple(to_chunks(gate).mT for gate in (step_size, momentum, forget))
    if not plain and not rule.channel_forget:
        gates = coefficients_of(*gates, written=written)
    touched = shift(mask, offsets, length).unflatten(1, (-1, size)).any(-1)  # [B, N]
    touched[:, 0] &= phase == 0
    begun = None if reset is None else shift(reset, offsets, length)[:, ::size]
    layout = layout_of(touched, begun, written)
    q, k, v = (to_chunks(x) for x in (q, k, v))
    go = walk if plain else chunk_walk
    y, after = go(q, k, v, gates, initial, norm, rule, layout, state, start)
    y = y.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)  # [B, N C, H, D]
    y = unshift(y, offsets, time)
    after = after._replace(position=final_position(state.position, mask, reset))
    return y, begin_chunks((after.position % rule.chunk_size == 0).tolist(), after)


def single(
    tokens: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    initial: InitialWeights,
    rule: UpdateRule,
    norm: Norm | None,
    mask: Bool[Tensor, " B"],
    reset: Bool[Tensor, "B 1"] | None,
    state: MemoryState,
    start: MemoryState | None,
    token: Callable[..., tuple[Tensor, MemoryState]],
) -> tuple[Tensor, MemoryState]:
    """`memory_update` of one token."""
    if reset is not None and start is not None:
        state = begin_document(reset[:, 0], start, state)
    state = begin_chunks((mask & (state.position % rule.chunk_size == 0)).tolist(), state)
    y, state = token(*tokens, initial, rule=rule, norm=norm, written=mask, state=state)
    state = state._replace(position=state.position + mask)
    return y, begin_chunks((state.position % rule.chunk_size == 0).tolist(), state)


def begin_chunks(rows: list[bool], state: MemoryState) -> MemoryState:
    """`begin_chunk`, without a copy where all rows begin one or none does."""
    if not any(rows):
        return state
    if all(rows) and not state.passes:
        return state._replace(chunk_memory=state.memory)
    return begin_chunk(torch.tensor(rows, device=state.position.device), state)


def layout_of(opens: Tensor, resets: Tensor | None, written: Tensor) -> Layout:
    """From opens and resets [B, N] and written [N, R, C]."""
    heads = written.shape[1] // len(opens)

    def per_row(flags: Tensor) -> Tensor:
        return flags.repeat_interleave(heads, 0)[..., None, None]

    return Layout(
        per_row(opens),
        None if resets is None else per_row(resets),
        written,
        all_open=opens.all(0).tolist(),
        any_reset=[] if resets is None else resets.any(0).tolist(),
    )


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
