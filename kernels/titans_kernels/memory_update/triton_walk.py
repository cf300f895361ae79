"""The walk over all chunks by Triton kernels: what surrounds them in torch, differentiable by autograd.

N chunks, R rows times heads, H heads, C tokens in a chunk, D width of a head, E hidden width, L layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_kernels.memory_update.call import Layout
from titans_kernels.memory_update.coefficients import shares_of
from titans_kernels.memory_update.network import EPSILON
from titans_kernels.memory_update.triton_function import Call, Given, Walk
from titans_kernels.memory_update.triton_launch import side
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    Weights,
)


def triton_walk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Sequence[Tensor],
    initial: InitialWeights,
    norm: Norm | None,
    rule: UpdateRule,
    layout: Layout,
    state: MemoryState,
    start: MemoryState | None,
) -> tuple[Tensor, MemoryState]:
    """`group_walk`, on a GPU."""
    batch, heads = state.memory[0].shape[:2]
    layers, tokens = range(len(initial)), q.shape[2]
    width, whole_q = q.shape[-1], q
    given, slope = loss(k, v, norm, rule)
    # What fills a chunk up to a tile is masked, what fills a width is zero.
    short, wide = side(tokens) - tokens, side(width) - width
    q, k, given = (F.pad(x, (0, wide, 0, short)) for x in (q, k, given))
    live = F.pad(layout.written, (0, short))[:, None]
    step, momentum, forget = (F.pad(gate, (0, short)).transpose(1, 2) for gate in gates)
    step = torch.where(live, step, 0.0)
    shares, kept = shares_of(momentum, forget, live)  # [N, G, R, C, C+2] and [N, G, R, C+1]
    gate = [layer % step.shape[1] for layer in layers]
    ends = torch.stack((*shares[..., -1, :2].unbind(-1), kept[..., 0]), -1)
    coefs = torch.stack(
        (step, shares[..., 0], shares[..., 1], shares[..., -1, 2:], kept[..., 1:]), -2
    )
    mixes = [shares[:, index, ..., 2:] for index in gate]
    pairs = pack(state.memory, state.surprise).flatten(0, 1)
    held = pack(state.chunk_memory).flatten(0, 1)
    fresh = None
    if start is not None and layout.resets is not None:
        fresh = pack(start.memory, start.surprise)[0]
    if layout.resets is not None and fresh is not None and layout.any_reset[0]:
        first = fresh.expand(batch, *fresh.shape).flatten(0, 1)
        pairs = torch.where(layout.resets[:, 0, ..., None], first, pairs)
    begun = held
    if not layout.all_open[0]:
        opens = layout.opens[:, 0, ..., None]
        begun = torch.where(opens, pairs[:, ::2], held)
    tensors = Given(
        q=q, k=k, given=given, slope=F.pad(slope, (0, wide)).expand(heads, -1),
        score=mixes[0] * (q @ k.mT), mix=mixes[-1],
        coefs=torch.stack([coefs[:, i] for i in gate], 2),
        decay=torch.stack([ends[:, i] for i in gate], 2),
        state=pairs, held=begun, start=fresh,
        base=pack(initial) if rule.forget_toward == "initial" else None,
    )  # fmt: skip
    last = last_open(layout)
    z, after, at_last = Walk.apply(
        Call(rule, norm is not None, heads, width, layout, last), *tensors
    )
    held = torch.where(last[:, None, None, None] >= 0, at_last, held)
    memory, at_start, surprise = (
        unpack(x.unflatten(0, (batch, heads)), width) for x in (after[:, ::2], held, after[:, 1::2])
    )
    y = outputs(whole_q, z[:, :, :tokens, :width], norm, rule)
    return y, MemoryState(memory, at_start, surprise, state.position)


def pack(*parts: Weights) -> Tensor:
    """Matrices [..., out, in] of every layer in one tensor [..., L * parts, E, D], D filled up to a tile."""
    layers = enumerate(zip(*parts, strict=True))
    packed = torch.stack([w.mT if layer else w for layer, both in layers for w in both], -3)
    width = packed.shape[-1]
    wide = side(width) - width
    return F.pad(packed, (0, wide, 0, wide if len(parts[0]) == 1 else 0)) if wide else packed


def unpack(packed: Tensor, width: int) -> Weights:
    """Of [B, H, L, E, D] the layers."""
    layers = packed.unbind(2)
    if len(layers) == 1:
        return (layers[0][..., :width, :width],)
    return tuple(w[..., :width].mT if layer else w[..., :width] for layer, w in enumerate(layers))


def loss(k: Tensor, v: Tensor, norm: Norm | None, rule: UpdateRule) -> tuple[Tensor, Tensor]:
    """The loss's derivative by the normed sum: the first, and the second [1 or H, D] times that sum."""
    gain, bias = norm or (v.new_ones(1, v.shape[-1]), v.new_zeros(1, v.shape[-1]))
    if rule.objective == "dot":
        return -v * over_rows(gain, v), torch.zeros_like(gain)
    distance = over_rows(bias, v) - v + (k if rule.residual else 0)
    return 2 * over_rows(gain, v) * distance, 2 * gain * gain


def outputs(q: Tensor, z: Tensor, norm: Norm | None, rule: UpdateRule) -> Tensor:
    """f(M_t; q_t) from the last layer's sums."""
    if norm is not None:
        gain, bias = (over_rows(part, q) for part in norm)
        z = torch.addcmul(bias, F.layer_norm(z, z.shape[-1:], eps=EPSILON), gain)
    return q + z if rule.residual else z


def over_rows(part: Tensor, x: Tensor) -> Tensor:
    """[H, D] for every row of x [N, R, C, D]."""
    return part.repeat(x.shape[1] // len(part), 1)[:, None]


def last_open(layout: Layout) -> Tensor:
    """The last chunk in which each row begins to write, or -1 [R]."""
    opens = layout.opens[..., 0, 0]
    count = torch.arange(1, opens.shape[1] + 1, device=opens.device)
    return ((opens * count).amax(1) - 1).int()
