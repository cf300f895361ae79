"""The walk back, from the last chunk to the first.

The sides are those of `triton_forward.py`, the names those of the README: a gradient by X is called dX.
"""

# mypy: disallow-untyped-defs=False
# ruff: noqa: SIM102
# A condition known at compile time leaves nothing of what it encloses only by itself.

import triton
import triton.language as tl

from titans_kernels.memory_update.triton_parts import (
    add_product,
    height_of,
    load_row,
    load_slope,
    load_tile,
    matrix_at,
    meet,
    outer_backward,
    place_of,
    product,
    put_row,
    put_tile,
    store_row,
    store_tile,
    sum_rows,
    sum_tiles,
)


@triton.jit
def advance_back(
    dW, dS, own, decay, ends, weight, narrow, wide, d_narrow, d_wide, by_coefs, by_decay, tall,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, ES: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients by a layer's memory and surprise before a chunk, from those after it.

    Those by its factors go to `d_narrow`, which is added to, and `d_wide`, which is with ADD; `narrow` has
    the slice's side. Returns that by the weights.
    """
    g, pi = load_row(ends, C), load_row(ends + C, C)
    by_weight = load_row(by_coefs, C)
    total = load_tile(d_narrow, C, tall, E, C, ES)
    part = product(wide, tl.trans(dW), PRECISION)
    total += (g * weight)[:, None] * part
    by_end = tl.sum(narrow * part, 1)
    store_row(by_coefs + 3 * C, weight * by_end)
    by_weight += g * by_end
    part = product(wide, tl.trans(dS), PRECISION)
    total += (pi * weight)[:, None] * part
    by_end = tl.sum(narrow * part, 1)
    store_row(by_coefs + 4 * C, weight * by_end)
    by_weight += pi * by_end
    store_row(by_coefs, by_weight)
    store_tile(d_narrow, total, C, tall, E)
    part = product(narrow * (g * weight)[:, None], dW, PRECISION)
    part = add_product(part, narrow * (pi * weight)[:, None], dS, PRECISION)
    if ADD:
        part += load_tile(d_wide, C, D, D, C, DP)
    store_tile(d_wide, part, C, D, D)
    W = load_tile(own, tall, D, D, ES, DP)
    tl.store(by_decay, tl.sum(dW * W))
    W = load_tile(own + E * D, tall, D, D, ES, DP)
    tl.store(by_decay + 1, tl.sum(dW * W))
    tl.store(by_decay + 2, tl.sum(dS * W))
    retain, past, keep = tl.load(decay), tl.load(decay + 1), tl.load(decay + 2)
    return retain * dW, keep * dS + past * dW, by_weight


@triton.jit
def add_queries(
    dW, dS, firsts, narrow, wide, tall, T, STRIDE: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, ES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the queries owe to a layer's memory and surprise, besides: c and p weigh tokens.

    A sum over tokens, here and below, takes a few at a time: all at once they want too many registers.
    """
    for token in tl.range(0, T, 16, disable_licm=True):
        c, p = load_row(firsts + token, 16)[:, None], load_row(firsts + C + token, 16)[:, None]
        left = tl.trans(load_tile(narrow + token * STRIDE, 16, tall, STRIDE, 16, ES))
        right = load_tile(wide + token * D, 16, D, D, 16, DP)
        dW = add_product(dW, left, c * right, PRECISION)
        dS = add_product(dS, left, p * right, PRECISION)
    return dW, dS


@triton.jit
def add_tokens(
    total, narrow, wide, tall, T, E: tl.constexpr, C: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    ES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds narrow^T wide."""
    for token in tl.range(0, T, 16, disable_licm=True):
        left = load_tile(narrow + token * E, 16, tall, E, 16, ES)
        right = load_tile(wide + token * D, 16, D, D, 16, DP)
        total = add_product(total, tl.trans(left), right, PRECISION)
    return total


@triton.jit
def add_tile(target, x, tall, D: tl.constexpr):
    store_tile(target, load_tile(target, tall, D, D, x.shape[0], x.shape[1]) + x, tall, D, D)


@triton.jit
def pull_of(clamp, weight, by_weight, C: tl.constexpr):
    """Where the clamp bites, a weight falls as its two factors grow: by this over a factor's square."""
    return tl.where(load_row(clamp, C) < 1.0, -weight * by_weight, 0.0)


@triton.jit
def along(pull, square):
    return (pull / tl.maximum(square, 1e-37))[:, None]


@triton.jit
def outer_gradients(
    tiles, z, given, slope, d_given, d_z, T, C: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    DP: tl.constexpr, SLICES: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """From the slices' parts of dD_L, a few tokens at a time; every slice stores the same in `d_given`."""
    for token in tl.range(0, T, 16, disable_licm=True):
        at = token * D
        total = sum_tiles(tiles, token, SLICES, C, 16, DP)
        found = load_tile(z + at, 16, D, D, 16, DP)
        fixed = load_tile(given + at, 16, D, D, 16, DP)
        by_given, by_z = outer_backward(total, found, fixed, load_slope(slope, D, DP), WIDTH, NORM)
        store_tile(d_given + at, by_given, 16, D, D)
        store_tile(d_z + at, by_z, 16, D, D)
    tl.debug_barrier()


@triton.jit
def walk_backward(
    q, k, given, slope, coefs, decay, base, held, slots, reset, last, z, error, clamps, squares, dy, units,
    d_error, d_after, d_held_after, dk, d_given, by_coefs, by_decay, d_state, d_base, d_held, d_start,
    room, counters,
    N, R, H, T, first,
    C: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr, DP: tl.constexpr,
    ES: tl.constexpr, SLICES: tl.constexpr, DEPTH: tl.constexpr, NORM: tl.constexpr, LIMIT: tl.constexpr,
    BASE: tl.constexpr, HELD: tl.constexpr, RESETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back over a segment: the gradients by a slice of memory and surprise stay in registers.

    All else goes by way of global memory as soon as it is known: there is no room for more. Parts of sums
    over the slices: dk, `by_decay`, and in the rows of `by_coefs` the gradients by w, which is completed, g
    and P's last row. Added to: d_base, d_start. T is C in a form
    that lets no loop be unrolled.
    """
    row, part = place_of(counters + R, SLICES)
    head = row % H
    row = tl.cast(row, tl.int64)
    tall, matrix = height_of(part, E, ES), E * D
    mine, kind = tl.cast(part, tl.int64) * N * R, tl.cast(N * R, tl.int64) * C * E
    skip = part * ES * D
    base += head * DEPTH * matrix + skip
    held += row * DEPTH * matrix + skip
    d_held += row * DEPTH * matrix + skip
    d_held_after += row * DEPTH * matrix + skip
    d_base += row * DEPTH * matrix + skip
    d_start += row * 2 * DEPTH * matrix + skip
    d_after += row * 2 * DEPTH * matrix + skip
    dW1, dS1 = (
        load_tile(d_after, tall, D, D, ES, DP),
        load_tile(d_after + matrix, tall, D, D, ES, DP),
    )
    if DEPTH == 2:
        dW2 = load_tile(d_after + 2 * matrix, tall, D, D, ES, DP)
        dS2 = load_tile(d_after + 3 * matrix, tall, D, D, ES, DP)
    room += row * 2 * SLICES * C * (DP + 2)
    arrivals = 0
    for back in tl.range(N, disable_licm=True):
        n = N - 1 - back
        at = row + n * R
        tokens, vectors, fall = at * C * D, coefs + at * DEPTH * 5 * C, decay + at * DEPTH * 3
        own, cells = slots + at * 2 * DEPTH * matrix + skip, units + at * C * E + part * ES
        by_own, by_fall = (
            by_coefs + (mine + at) * DEPTH * 5 * C,
            by_decay + (mine + at) * DEPTH * 3,
        )
        dk_own, d_error_own = dk + mine * C * D + tokens, d_error + mine * C * D + tokens
        tiles = room + (n % 2) * SLICES * C * (DP + 2)
        rows = tiles + SLICES * C * DP
        w1 = -load_row(vectors, C)
        if LIMIT > 0:
            w1 *= load_row(clamps + at * DEPTH * C, C)

        # What the chunk gave to the next state.
        if DEPTH == 2:
            narrow = load_tile(cells + 6 * kind, C, tall, E, C, ES)
        else:
            narrow = load_tile(error + tokens, C, D, D, C, DP)
        wide = load_tile(k + tokens, C, D, D, C, DP)
        dW1, dS1, by_w1 = advance_back(
            dW1, dS1, own, fall, vectors + 3 * C, w1, narrow, wide, cells, dk_own, by_own, by_fall, tall,
            C, D, E, DP, ES, False, PRECISION,
        )  # fmt: skip
        if DEPTH == 2:
            w2 = -load_row(vectors + 5 * C, C)
            if LIMIT > 0:
                w2 *= load_row(clamps + at * 2 * C + C, C)
            narrow = load_tile(cells + 7 * kind, C, tall, E, C, ES)
            wide = load_tile(error + tokens, C, D, D, C, DP)
            dW2, dS2, by_w2 = advance_back(
                dW2, dS2, own + 2 * matrix, fall + 3, vectors + 8 * C, w2, narrow, wide, cells + kind,
                d_error_own, by_own + 5 * C, by_fall + 3, tall, C, D, E, DP, ES, True, PRECISION,
            )  # fmt: skip

        # What its queries owe to the state.
        narrow_at = dy + tokens
        if DEPTH == 2:
            narrow_at = cells + 3 * kind
        dW1, dS1 = add_queries(
            dW1, dS1, vectors + C, narrow_at, q + tokens, tall, T, E, C, D, DP, ES, PRECISION
        )  # fmt: skip
        if DEPTH == 2:
            dW2, dS2 = add_queries(
                dW2, dS2, vectors + 6 * C, cells + 2 * kind, dy + tokens, tall, T, E, C, D, DP, ES, PRECISION
            )  # fmt: skip

        if LIMIT > 0:
            if DEPTH == 2:
                if SLICES > 1:
                    put_row(rows, by_w1, part)
                    put_row(rows + SLICES * C, by_w2, part)
                    arrivals += SLICES
                    meet(counters + row, arrivals, SLICES)
                    by_w1 = sum_rows(rows, SLICES, C)
                    by_w2 = sum_rows(rows + SLICES * C, SLICES, C)
                pull2 = pull_of(clamps + at * 2 * C + C, w2, by_w2, C)
            pull1 = pull_of(clamps + at * DEPTH * C, w1, by_w1, C)
        tl.debug_barrier()

        # Errors.
        wide = load_tile(error + tokens, C, D, D, C, DP)
        dD = load_tile(cells, C, tall, E, C, ES)
        if DEPTH == 2:
            if LIMIT > 0:
                narrow = load_tile(cells + 6 * kind, C, tall, E, C, ES)
                dD += along(pull1, load_row(squares + at * 2 * C + C, C)) * narrow
            store_tile(cells, dD * load_tile(cells + 5 * kind, C, tall, E, C, ES), C, tall, E)
            dD *= load_tile(cells + 4 * kind, C, tall, E, C, ES)
            store_tile(cells + 5 * kind, dD, C, tall, E)
            V = matrix_at(
                own + 2 * matrix, base + matrix, held + matrix, n, tall, D, DP, ES, BASE, HELD
            )
            # Read again, an operand need not pass through registers.
            tl.debug_barrier()
            dD = product(load_tile(cells + 5 * kind, C, tall, E, C, ES), V, PRECISION)
            dD += load_tile(d_error_own, C, D, D, C, DP)
            if LIMIT > 0:
                if part == 0:
                    dD += along(pull2, tl.sum(wide * wide, 1)) * wide
        elif LIMIT > 0:
            dD += along(pull1, tl.sum(wide * wide, 1)) * wide
        put_tile(tiles, dD, part)
        arrivals += SLICES
        meet(counters + row, arrivals, SLICES)
        outer_gradients(
            tiles, z + tokens, given + tokens, slope + head * D, d_given + tokens, d_error_own, T, C, D,
            WIDTH, DP, SLICES, NORM,
        )  # fmt: skip

        # Keys.
        dZ = load_tile(d_error_own, C, D, D, C, DP)
        if DEPTH == 2:
            V = matrix_at(
                own + 2 * matrix, base + matrix, held + matrix, n, tall, D, DP, ES, BASE, HELD
            )
            dZ = product(dZ, tl.trans(V), PRECISION) + load_tile(cells + kind, C, tall, E, C, ES)
            if LIMIT > 0:
                narrow = load_tile(cells + 7 * kind, C, tall, E, C, ES)
                dZ += along(pull2, load_row(squares + at * 2 * C, C)) * narrow
            dZ *= load_tile(cells + 4 * kind, C, tall, E, C, ES)
            dZ += load_tile(cells, C, tall, E, C, ES)
        store_tile(cells, dZ, C, tall, E)
        V = matrix_at(own, base, held, n, tall, D, DP, ES, BASE, HELD)
        tl.debug_barrier()
        dZ = product(load_tile(cells, C, tall, E, C, ES), V, PRECISION)
        dZ += load_tile(dk_own, C, D, D, C, DP)
        if LIMIT > 0:
            if part == 0:
                wide = load_tile(k + tokens, C, D, D, C, DP)
                dZ += along(pull1, tl.sum(wide * wide, 1)) * wide
        store_tile(dk_own, dZ, C, D, D)

        # The memory that errors and keys saw.
        dV1 = tl.zeros_like(dW1)
        dV1 = add_tokens(dV1, cells, k + tokens, tall, T, E, C, D, DP, ES, PRECISION)
        if DEPTH == 2:
            dV2 = tl.zeros_like(dW2)
            dV2 = add_tokens(
                dV2, cells + 5 * kind, error + tokens, tall, T, E, C, D, DP, ES, PRECISION
            )  # fmt: skip
            dV2 = add_tokens(
                dV2, cells + 7 * kind, d_error_own, tall, T, E, C, D, DP, ES, PRECISION
            )  # fmt: skip
        if BASE:
            add_tile(d_base, dV1, tall, D)
            if DEPTH == 2:
                add_tile(d_base + matrix, dV2, tall, D)
        seen = 1.0
        if HELD:
            if n == 0:
                seen = 0.0
                store_tile(d_held, dV1, tall, D, D)
                if DEPTH == 2:
                    store_tile(d_held + matrix, dV2, tall, D, D)
        dW1 += seen * dV1
        if DEPTH == 2:
            dW2 += seen * dV2
        if n + first == tl.load(last + row):
            dW1 += load_tile(d_held_after, tall, D, D, ES, DP)
            if DEPTH == 2:
                dW2 += load_tile(d_held_after + matrix, tall, D, D, ES, DP)
        if RESETS:
            if tl.load(reset + at) != 0:
                add_tile(d_start, dW1, tall, D)
                add_tile(d_start + matrix, dS1, tall, D)
                dW1, dS1 = tl.zeros_like(dW1), tl.zeros_like(dS1)
                if DEPTH == 2:
                    add_tile(d_start + 2 * matrix, dW2, tall, D)
                    add_tile(d_start + 3 * matrix, dS2, tall, D)
                    dW2, dS2 = tl.zeros_like(dW2), tl.zeros_like(dS2)
    d_state += row * 2 * DEPTH * matrix + skip
    store_tile(d_state, dW1, tall, D, D)
    store_tile(d_state + matrix, dS1, tall, D, D)
    if DEPTH == 2:
        store_tile(d_state + 2 * matrix, dW2, tall, D, D)
        store_tile(d_state + 3 * matrix, dS2, tall, D, D)
