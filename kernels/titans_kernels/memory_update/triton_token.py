"""One token alone in Triton, without a backward: it is written, then the memory that this made is read.

R rows times heads, H heads, D width of a head, E hidden width, L layers, G gates per head.
"""

# mypy: disallow-untyped-defs=False

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update.triton_launch import Sizes, launch
from titans_kernels.memory_update.triton_parts import (
    clamp_of,
    derivatives,
    height_of,
    load_slope,
    load_tile,
    meet,
    normalize,
    outer_error,
    place_of,
    put_row,
    store_tile,
    sum_rows,
)
from titans_kernels.memory_update.types import InitialWeights, MemoryState, Norm, UpdateRule


@triton.jit
def written_to(
    memory, surprise, memory_after, surprise_after, base, update, retain, keep, written, tall, wide,
    STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BASE: tl.constexpr,
):  # fmt: skip
    """Stores a matrix and its surprise after the token; returns the weights that are read then."""
    W = load_tile(memory, tall, wide, STRIDE, HEIGHT, WIDTH)
    S = load_tile(surprise, tall, wide, STRIDE, HEIGHT, WIDTH)
    S_after = keep * S + update
    W = tl.where(written, retain * W + S_after, W)
    store_tile(memory_after, W, tall, wide, STRIDE)
    store_tile(surprise_after, tl.where(written, S_after, S), tall, wide, STRIDE)
    if BASE:
        W += load_tile(base, tall, wide, STRIDE, HEIGHT, WIDTH)
    return W


@triton.jit
def shared_sum(x, room, counter, part, arrivals, SLICES: tl.constexpr):
    """The sum over a row's programs, in every one of them."""
    size: tl.constexpr = x.shape[0]
    put_row(room, x, part)
    meet(counter, arrivals, SLICES)
    return sum_rows(room, SLICES, size)


@triton.jit
def token(
    q, k, v, steps, keeps, forgets, gain, bias, written, y,
    base1, base2, held1, held2, memory1, memory2, surprise1, surprise2,
    memory1_after, memory2_after, surprise1_after, surprise2_after, room, counters,
    R, H,
    D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, ES: tl.constexpr, SLICES: tl.constexpr,
    DEPTH: tl.constexpr, GATES: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr, LIMIT: tl.constexpr,
    BASE: tl.constexpr, L2: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Layers as they are in a state: [E, D], of which a program has rows, and [D, E], of which columns."""
    row, part = place_of(counters + R, SLICES)
    head = row % H
    row = tl.cast(row, tl.int64)
    tall, counter = height_of(part, E, ES), counters + row
    at1, at2 = row * E * D + part * ES * D, row * E * D + part * ES
    base1, base2 = base1 + head * E * D + part * ES * D, base2 + head * E * D + part * ES
    room += row * SLICES * (2 * DP + 32)
    key = load_slope(k + row * D, D, DP)
    scale, shift = tl.full((1, DP), 1.0, key.dtype), tl.zeros_like(key)
    if NORM:
        scale, shift = load_slope(gain + head * D, D, DP), load_slope(bias + head * D, D, DP)

    # Key and error, at the memory that the chunk began with.
    V = load_tile(held1 + at1, tall, D, D, ES, DP)
    if BASE:
        V += load_tile(base1, tall, D, D, ES, DP)
    z = tl.sum(V * key, 1)
    if DEPTH == 2:
        active, slope, _ = derivatives(z, GELU)
        V = load_tile(held2 + at2, D, tall, E, DP, ES)
        if BASE:
            V += load_tile(base2, D, tall, E, DP, ES)
        z = tl.sum(V * active[None, :], 1)
    z = shared_sum(z, room, counter, part, SLICES, SLICES)[None, :]
    target = load_slope(v + row * D, D, DP)
    if L2:
        given, rise = shift - target, 2.0 * scale * scale
        if RESIDUAL:
            given += key
        given *= 2.0 * scale
    else:
        given, rise = -scale * target, tl.zeros_like(scale)
    last_error = outer_error(z, given, rise, D, NORM)
    step1 = -tl.load(steps + row * GATES)
    step2 = -tl.load(steps + row * GATES + GATES - 1)
    # A row's worth of registers is turned on its side by way of memory.
    put_row(room + SLICES * DP, tl.sum(last_error, 0), part)
    tl.debug_barrier()
    column = tl.load(room + (SLICES + part) * DP + tl.arange(0, DP))
    error = column
    if DEPTH == 2:
        error = tl.sum(V * column[:, None], 0) * slope
    if LIMIT > 0:
        lengths = room + SLICES * 2 * DP
        d_square, key_square = tl.sum(error * error), tl.sum(key * key)
        if DEPTH == 2:
            ones = tl.full((16,), 1.0, key.dtype)
            d_square = tl.max(
                shared_sum(ones * d_square, lengths, counter, part, 2 * SLICES, SLICES)
            )
            x_square = tl.sum(active * active)
            lengths += SLICES * 16
            x_square = tl.max(
                shared_sum(ones * x_square, lengths, counter, part, 3 * SLICES, SLICES)
            )
            step2 *= clamp_of(tl.sum(last_error * last_error) * x_square, LIMIT)
        step1 *= clamp_of(key_square * d_square, LIMIT)

    # Write, then read.
    flag = tl.load(written + row // H) != 0
    keep, retain = tl.load(keeps + row * GATES), 1.0 - tl.load(forgets + row * GATES)
    V = written_to(
        memory1 + at1, surprise1 + at1, memory1_after + at1, surprise1_after + at1, base1,
        (step1 * error)[:, None] * key, retain, keep, flag, tall, D, D, ES, DP, BASE,
    )  # fmt: skip
    query = load_slope(q + row * D, D, DP)
    z = tl.sum(V * query, 1)
    if DEPTH == 2:
        keep = tl.load(keeps + row * GATES + GATES - 1)
        retain = 1.0 - tl.load(forgets + row * GATES + GATES - 1)
        V = written_to(
            memory2 + at2, surprise2 + at2, memory2_after + at2, surprise2_after + at2, base2,
            (step2 * column)[:, None] * active[None, :], retain, keep, flag, D, tall, E, DP, ES, BASE,
        )  # fmt: skip
        active, _, _ = derivatives(z, GELU)
        z = tl.sum(V * active[None, :], 1)
    met = 4 if LIMIT > 0 and DEPTH == 2 else 2
    z = shared_sum(z, room + SLICES * DP, counter, part, met * SLICES, SLICES)[None, :]
    if part == 0:
        if NORM:
            z = normalize(z, D)[0] * scale + shift
        if RESIDUAL:
            z += query
        store_tile(y + row * D, z, 1, D, D)


def one_token(
    q: Float[Tensor, "B 1 H D"],
    k: Float[Tensor, "B 1 H D"],
    v: Float[Tensor, "B 1 H D"],
    step_size: Float[Tensor, "B 1 H G"],
    momentum: Float[Tensor, "B 1 H G"],
    forget: Float[Tensor, "B 1 H G"],
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None,
    written: Bool[Tensor, " B"],
    state: MemoryState,
) -> tuple[Float[Tensor, "B 1 H D"], MemoryState]:
    """The outputs, and the state but for its position."""
    batch, _, heads, width = q.shape
    depth, rows = len(initial), batch * heads
    sizes = Sizes.of((1, rows, 1, width), depth, initial[0].shape[1], heads)
    most = max(gate.shape[-1] for gate in (step_size, momentum, forget))
    gates = [gate.expand(*gate.shape[:-1], most) for gate in (step_size, momentum, forget)]
    streams = dict(zip("qkv", (q, k, v), strict=True))
    streams |= dict(zip(("steps", "keeps", "forgets"), gates, strict=True))
    gain, bias = norm or (q, q)
    parts = {
        "base": initial,
        "held": state.chunk_memory,
        "memory": state.memory,
        "surprise": state.surprise,
    }
    weights = {name: [w.contiguous() for w in part] for name, part in parts.items()}
    for name in ("memory", "surprise"):
        weights[f"{name}_after"] = [torch.empty_like(w) for w in weights[name]]
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    by_layer = {
        name.replace("_", f"{layer}_", 1) if "_" in name else f"{name}{layer}": part[
            min(layer, depth) - 1
        ]
        for name, part in weights.items()
        for layer in (1, 2)
    }
    launch(token, rows * sizes.SLICES, {
        **sizes._asdict(), **by_layer, **{name: x.contiguous() for name, x in streams.items()},
        "gain": gain.contiguous(), "bias": bias.contiguous(), "written": written.to(torch.int8), "y": y,
        "room": q.new_empty(rows, sizes.SLICES * (2 * sizes.DP + 32)),
        "counters": torch.zeros(rows + 1, dtype=torch.int32, device=q.device),
        "GATES": most, "NORM": norm is not None, "GELU": rule.activation == "gelu",
        "LIMIT": rule.max_surprise or 0.0, "BASE": rule.forget_toward == "initial",
        "L2": rule.objective == "l2", "RESIDUAL": rule.residual,
    })  # fmt: skip
    memory, surprise = (tuple(weights[f"{name}_after"]) for name in ("memory", "surprise"))
    return y, state._replace(memory=memory, surprise=surprise)
