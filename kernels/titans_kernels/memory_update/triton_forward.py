"""The walk forward, from chunk to chunk.

N chunks, R rows times heads, H heads, C tokens in a chunk, D width of a head, E hidden width, L layers. A
program has a slice of a row's hidden units. Matrices stand with the hidden side first: [E, D] at both layers
of depth 2 (the second's are transposed), [out, in] at depth 1, where the slice is everything.
"""

# mypy: disallow-untyped-defs=False
# ruff: noqa: SIM102
# A condition known at compile time leaves nothing of what it encloses only by itself.

import triton
import triton.language as tl

from titans_kernels.memory_update.triton_parts import (
    add_product,
    clamp_of,
    derivatives,
    height_of,
    load_row,
    load_slope,
    load_tile,
    meet,
    outer_error,
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
def advance(
    memory, surprise, decay, ends, weight, narrow, wide, C: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """A layer's memory and surprise after a chunk; at `ends` are the last rows of G and P."""
    g, pi = load_row(ends, C), load_row(ends + C, C)
    retain, past, keep = tl.load(decay), tl.load(decay + 1), tl.load(decay + 2)
    memory = retain * memory + past * surprise
    memory = add_product(memory, tl.trans(narrow * (g * weight)[:, None]), wide, PRECISION)
    surprise = keep * surprise
    surprise = add_product(surprise, tl.trans(narrow * (pi * weight)[:, None]), wide, PRECISION)
    return memory, surprise


@triton.jit
def outer_errors(
    tiles, given, slope, z, error, T, C: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr,
    SLICES: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """From the slices' parts their sum and D_L, a few tokens at a time; every slice stores the same."""
    for token in tl.range(0, T, 16, disable_licm=True):
        at = token * D
        total = sum_tiles(tiles, token, SLICES, C, 16, DP)
        store_tile(z + at, total, 16, D, D)
        fixed = load_tile(given + at, 16, D, D, 16, DP)
        store_tile(
            error + at, outer_error(total, fixed, load_slope(slope, D, DP), WIDTH, NORM), 16, D, D
        )
    tl.debug_barrier()


@triton.jit
def walk_forward(
    k, given, slope, coefs, decay, state, base, held, start, reset, last,
    z, error, clamps, squares, after, held_after, slots, room, counters,
    N, R, H, T, first,
    C: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr, DP: tl.constexpr,
    ES: tl.constexpr, SLICES: tl.constexpr, DEPTH: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr,
    LIMIT: tl.constexpr, BASE: tl.constexpr, HELD: tl.constexpr, RESETS: tl.constexpr,
    REPLAY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the state before a segment to that after it, through registers; those between go to `slots`.

    REPLAY: errors and clamps are known, so that no program has to wait for others. T is C in a form that lets
    no loop be unrolled.
    """
    row, part = place_of(counters + R, SLICES)
    head = row % H
    row = tl.cast(row, tl.int64)
    tall, matrix = height_of(part, E, ES), E * D
    skip = part * ES * D
    own = state + row * 2 * DEPTH * matrix + skip
    base += head * DEPTH * matrix + skip
    start += head * 2 * DEPTH * matrix + skip
    held += row * DEPTH * matrix + skip
    W1 = load_tile(own, tall, D, D, ES, DP)
    S1 = load_tile(own + matrix, tall, D, D, ES, DP)
    if DEPTH == 2:
        W2 = load_tile(own + 2 * matrix, tall, D, D, ES, DP)
        S2 = load_tile(own + 3 * matrix, tall, D, D, ES, DP)
    room += row * 2 * SLICES * C * (DP + 2)
    arrivals = 0
    for n in tl.range(N, disable_licm=True):
        at = row + n * R
        tokens, vectors = at * C * D, coefs + at * DEPTH * 5 * C
        tiles = room + (n % 2) * SLICES * C * (DP + 2)
        rows = tiles + SLICES * C * DP
        if RESETS:
            if tl.load(reset + at) != 0:
                W1 = load_tile(start, tall, D, D, ES, DP)
                S1 = load_tile(start + matrix, tall, D, D, ES, DP)
                if DEPTH == 2:
                    W2 = load_tile(start + 2 * matrix, tall, D, D, ES, DP)
                    S2 = load_tile(start + 3 * matrix, tall, D, D, ES, DP)
        own = slots + at * 2 * DEPTH * matrix + skip
        store_tile(own, W1, tall, D, D)
        store_tile(own + matrix, S1, tall, D, D)
        if DEPTH == 2:
            store_tile(own + 2 * matrix, W2, tall, D, D)
            store_tile(own + 3 * matrix, S2, tall, D, D)
        if not REPLAY:
            if n + first == tl.load(last + row):
                own = held_after + row * DEPTH * matrix + skip
                store_tile(own, W1, tall, D, D)
                if DEPTH == 2:
                    store_tile(own + matrix, W2, tall, D, D)

        # Keys and errors, at the memory that the chunk begins with.
        K = load_tile(k + tokens, C, D, D, C, DP)
        V = W1
        if HELD:
            if n == 0:
                V = load_tile(held, tall, D, D, ES, DP)
        if BASE:
            V += load_tile(base, tall, D, D, ES, DP)
        Z = product(K, tl.trans(V), PRECISION)
        if DEPTH == 2:
            V = W2
            if HELD:
                if n == 0:
                    V = load_tile(held + matrix, tall, D, D, ES, DP)
            if BASE:
                V += load_tile(base + matrix, tall, D, D, ES, DP)
        if not REPLAY:
            last_sum = Z
            if DEPTH == 2:
                X1, _, _ = derivatives(Z, GELU)
                last_sum = product(X1, V, PRECISION)
                if LIMIT > 0:
                    put_row(rows, tl.sum(X1 * X1, 1), part)
            put_tile(tiles, last_sum, part)
            arrivals += SLICES
            meet(counters + row, arrivals, SLICES)
            outer_errors(
                tiles, given + tokens, slope + head * D, z + tokens, error + tokens, T, C, D, WIDTH, DP,
                SLICES, NORM,
            )  # fmt: skip
        DL = load_tile(error + tokens, C, D, D, C, DP)
        w1 = -load_row(vectors, C)
        D1 = DL
        if DEPTH == 2:
            w2 = -load_row(vectors + 5 * C, C)
            X1, slope1, _ = derivatives(Z, GELU)
            D1 = product(DL, tl.trans(V), PRECISION) * slope1
        if LIMIT > 0:
            own = clamps + at * DEPTH * C
            if REPLAY:
                w1 *= load_row(own, C)
                if DEPTH == 2:
                    w2 *= load_row(own + C, C)
            else:
                d_square = tl.sum(D1 * D1, 1)
                if DEPTH == 2:
                    put_row(rows + SLICES * C, d_square, part)
                    arrivals += SLICES
                    meet(counters + row, arrivals, SLICES)
                    d_square = sum_rows(rows + SLICES * C, SLICES, C)
                    x_square = sum_rows(rows, SLICES, C)
                    clamp2 = clamp_of(tl.sum(DL * DL, 1) * x_square, LIMIT)
                    w2 *= clamp2
                clamp1 = clamp_of(tl.sum(K * K, 1) * d_square, LIMIT)
                w1 *= clamp1
                if part == 0:
                    store_row(own, clamp1)
                    if DEPTH == 2:
                        store_row(own + C, clamp2)
                        store_row(squares + at * 2 * C, x_square)
                        store_row(squares + at * 2 * C + C, d_square)

        fall = decay + at * DEPTH * 3
        W1, S1 = advance(W1, S1, fall, vectors + 3 * C, w1, D1, K, C, PRECISION)
        if DEPTH == 2:
            W2, S2 = advance(W2, S2, fall + 3, vectors + 8 * C, w2, X1, DL, C, PRECISION)
    own = after + row * 2 * DEPTH * matrix + skip
    store_tile(own, W1, tall, D, D)
    store_tile(own + matrix, S1, tall, D, D)
    if DEPTH == 2:
        store_tile(own + 2 * matrix, W2, tall, D, D)
        store_tile(own + 3 * matrix, S2, tall, D, D)
