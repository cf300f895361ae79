"""The linear recurrence by chunks: products within a chunk, one step from chunk to chunk.

B batch, T time, H heads, G heads of queries and keys (H or 1), K, V widths of keys and values, N chunks,
C tokens of a chunk. `README.md` beside this file derives it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

HEAD_CHUNK = 64
CHANNEL_CHUNK = 16
"""Tokens of a chunk; shorter where each pair of them has a decay for every channel of the keys."""


class Chunks(NamedTuple):
    """Streams cut into chunks, and how tokens of one chunk see each other and what came before."""

    q: Float[Tensor, "B G N C K"]
    k: Float[Tensor, "B G N C K"]
    v: Float[Tensor, "B H N C V"]
    log_decay: Float[Tensor, "B H N C _"]
    alike: Bool[Tensor, "B 1 N C C"]  # one document, and the second token no later than the first
    carried: Bool[Tensor, "B 1 N C 1"]  # the document began before the chunk


def linear_recurrence(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H #V #K"],
    beta: Float[Tensor, "B T H"] | None,
    mask: Bool[Tensor, "B T"],
    reset: Bool[Tensor, "B T"] | None,
    state: Float[Tensor, "B H V K"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H V K"]]:
    """The same numbers as `reference.linear_recurrence`."""
    time = v.shape[1]
    if time == 0:
        return v, state
    # What is masked decays nothing and writes nothing: the caller has made it zeros.
    alone = log_decay.shape[3:] == (1, 1)
    size = min(time, HEAD_CHUNK if alone else CHANNEL_CHUNK)
    chunks = cut(q, k, v, log_decay.flatten(3), reset, size)
    if beta is not None:
        y, state = by_delta_rule(chunks, in_chunks(beta[..., None], size), state)
    elif alone:
        y, state = by_heads(chunks, state)
    elif log_decay.shape[3] == 1:
        y, state = by_channels_of_keys(chunks, state)
    else:
        y, state = by_channels_of_values(chunks, state)
    return y.flatten(2, 3)[:, :, :time].transpose(1, 2), state


def in_chunks(x: Float[Tensor, "B T H _"], size: int) -> Float[Tensor, "B H N C _"]:
    """Cut into chunks; the last is filled up with zeros, which neither decay nor write."""
    extra = -x.shape[1] % size
    x = F.pad(x, (0, 0, 0, 0, 0, extra)) if extra else x
    return x.unflatten(1, (-1, size)).movedim(3, 1)


def cut(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, reset: Tensor | None, size: int
) -> Chunks:
    q, k, v, log_decay = (in_chunks(x, size) for x in (q, k, v, log_decay))
    blocks, device = v.shape[2], v.device
    alike = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if reset is None:
        carried = torch.ones(1, 1, 1, size, 1, dtype=torch.bool, device=device)
        return Chunks(q, k, v, log_decay, alike[None, None, None], carried)
    begun = F.pad(reset, (0, blocks * size - reset.shape[1])).unflatten(1, (blocks, size))
    document = begun.long().cumsum(-1)[:, None]  # [B, 1, N, C], counted within the chunk
    alike = alike & (document[..., None] == document[..., None, :])
    return Chunks(q, k, v, log_decay, alike, (document == 0)[..., None])


def decays(chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """By one value per head: from a token to a later one [B, H, N, C, C], from the chunk's start to
    each token and from each token to the chunk's end, [B, H, N, C, 1]."""
    log = chunks.log_decay
    # Sums over each span, since a difference of two sums from the start has lost its digits.
    steps = log.expand(*log.shape[:4], log.shape[3]).tril(-1)
    between = steps.cumsum(3).exp() * chunks.alike
    return between, since_start(chunks), between[..., -1, :, None]


def since_start(chunks: Chunks) -> Float[Tensor, "B H N C _"]:
    return chunks.log_decay.cumsum(3).exp() * chunks.carried


def by_heads(chunks: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """Dot-product writes, one decay per head."""
    between, before, after = decays(chunks)
    written = chunks.v.mT @ (chunks.k * after)
    states, state = walk(state, before[..., -1:, :], written)
    y = (chunks.q @ chunks.k.mT * between) @ chunks.v
    return y + before * (chunks.q @ states.mT), state


def decays_by_channels(chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """With an axis of channels: from a token to a later one [B, H, N, C, C, D], where those of other
    pairs mean nothing; from the chunk's start and to its end, [B, H, N, C, D]."""
    log, size = chunks.log_decay, chunks.v.shape[3]
    # Sums over each span as one product, with ones where a token stands after one and up to another.
    row = torch.arange(size, device=log.device)
    inside = (row > row[:, None]) & (
        row <= row[:, None, None]
    )  # [C, C, C]: later, earlier, between
    sums = inside.flatten(0, 1).to(log.dtype) @ log
    between = sums.exp().unflatten(3, (size, size))
    after = between[..., -1, :, :] * chunks.alike[..., -1, :, None]
    return between, since_start(chunks), after


def by_channels_of_keys(chunks: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """Dot-product writes, one decay per channel of the keys."""
    between, before, after = decays_by_channels(chunks)
    written = chunks.v.mT @ (chunks.k * after)
    states, state = walk(state, before[..., -1:, :], written)
    keys = between * chunks.k[..., None, :, :]
    scores = (keys @ chunks.q[..., None])[..., 0] * chunks.alike
    return scores @ chunks.v + (before * chunks.q) @ states.mT, state


def by_channels_of_values(chunks: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """Dot-product writes, one decay per channel of the values."""
    between, before, after = decays_by_channels(chunks)
    written = (chunks.v * after).mT @ chunks.k
    states, state = walk(state, before[..., -1, :, None], written)
    values = between * chunks.v[..., None, :, :]
    scores = chunks.q @ chunks.k.mT * chunks.alike
    y = (scores[..., None, :] @ values)[..., 0, :]
    return y + before * (chunks.q @ states.mT), state


def by_delta_rule(chunks: Chunks, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Errors instead of values: one triangular system for each chunk, then as by heads."""
    between, before, after = decays(chunks)
    system = beta * between * (chunks.k @ chunks.k.mT)
    width = chunks.v.shape[-1]
    # The solver takes the diagonal for ones. Both right sides at once: values, and decayed keys.
    known = torch.cat([beta * chunks.v, (beta * before) * chunks.k], -1)
    solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    errors, seen = solved.split([width, solved.shape[-1] - width], -1)
    late = chunks.k * after
    step = before[..., -1:, :] * torch.eye(late.shape[-1], dtype=late.dtype, device=late.device)
    states, state = walk_by_matrices(state, step - seen.mT @ late, errors.mT @ late)
    errors = errors - seen @ states.mT
    y = (chunks.q @ chunks.k.mT * between) @ errors
    return y + before * (chunks.q @ states.mT), state


def walk(
    state: Tensor, decay: Float[Tensor, "B H N _ _"], written: Float[Tensor, "B H N V K"]
) -> tuple[Float[Tensor, "B H N V K"], Float[Tensor, "B H V K"]]:
    """The state before each chunk, and after the last."""
    states = []
    for d, w in zip(decay.unbind(2), written.unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(w, d, state)
    return torch.stack(states, 2), state


def walk_by_matrices(
    state: Tensor, step: Float[Tensor, "B H N K K"], written: Float[Tensor, "B H N V K"]
) -> tuple[Float[Tensor, "B H N V K"], Float[Tensor, "B H V K"]]:
    """The state before each chunk, and after the last, where a chunk mixes the channels of the keys."""
    states = []
    for d, w in zip(step.unbind(2), written.unbind(2), strict=True):
        states.append(state)
        state = w + state @ d
    return torch.stack(states, 2), state
