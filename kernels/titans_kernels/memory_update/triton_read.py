"""Reading chunks whose first states are known, all side by side, and back through that.

The sides are those of `triton_forward.py`, the names those of the README: a gradient by X is called dX.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from titans_kernels.memory_update.triton_parts import (
    add_product,
    derivatives,
    height_of,
    load_row,
    load_tile,
    matrix_at,
    product,
    store_row,
    store_tile,
)


@triton.jit
def weights(steps, clamps, C: tl.constexpr, LIMIT: tl.constexpr):
    """What a chunk's tokens weigh, one a column; read again rather than kept."""
    weight = -load_row(steps, C)
    if LIMIT > 0:
        weight *= load_row(clamps, C)
    return weight[None, :]


@triton.jit
def read(
    x, memory, surprise, base, firsts, scores, errors, tall, C: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, ES: tl.constexpr, BASE: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A layer's sums for inputs x, each at its token's memory; at `firsts` are c and p."""
    if not LAST:
        memory, surprise = tl.trans(memory), tl.trans(surprise)
    c, p = load_row(firsts, C)[:, None], load_row(firsts + C, C)[:, None]
    z = c * product(x, memory, PRECISION) + p * product(x, surprise, PRECISION)
    if BASE:
        fixed = load_tile(base, tall, D, D, ES, DP)
        if not LAST:
            fixed = tl.trans(fixed)
        z = add_product(z, x, fixed, PRECISION)
    return add_product(z, scores, errors, PRECISION)


@triton.jit
def hidden(
    k, error, own, base, held, n, tall, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr,
    ES: tl.constexpr, GELU: tl.constexpr, BASE: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """X_1 and D_1 of a chunk again, with D_2 W_2 and Z_1; depth 2."""
    K = load_tile(k, C, D, D, C, DP)
    V = matrix_at(own, base, held, n, tall, D, DP, ES, BASE, HELD)
    z = product(K, tl.trans(V), PRECISION)
    V = matrix_at(own + 2 * E * D, base + E * D, held + E * D, n, tall, D, DP, ES, BASE, HELD)
    back = product(load_tile(error, C, D, D, C, DP), tl.trans(V), PRECISION)
    x, slope, _ = derivatives(z, GELU)
    return x, back * slope, back, z


@triton.jit
def read_forward(
    q, k, score, mix, coefs, base, held, error, clamps, slots, sums,
    N, R, H,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, ES: tl.constexpr,
    SLICES: tl.constexpr, DEPTH: tl.constexpr, GELU: tl.constexpr, LIMIT: tl.constexpr,
    BASE: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a slice adds to the queries' last sums in one chunk, all chunks and slices side by side."""
    at, part = tl.program_id(0) // SLICES, tl.program_id(0) % SLICES
    n, row = at // R, at % R
    at = tl.cast(at, tl.int64)
    tall, matrix = height_of(part, E, ES), E * D
    skip = part * ES * D
    base += (row % H) * DEPTH * matrix + skip
    own = slots + at * 2 * DEPTH * matrix + skip
    tokens, square, vectors = at * C * D, at * C * C, coefs + at * DEPTH * 5 * C
    clamps += at * DEPTH * C
    if DEPTH == 2:
        held += row * 2 * matrix + skip
        X1, D1, _, _ = hidden(
            k + tokens, error + tokens, own, base, held, n, tall, C, D, E, DP, ES, GELU, BASE, HELD, PRECISION
        )  # fmt: skip
    else:
        D1 = load_tile(error + tokens, C, D, D, C, DP)
    W = load_tile(own, tall, D, D, ES, DP)
    S = load_tile(own + matrix, tall, D, D, ES, DP)
    R1 = load_tile(q + tokens, C, D, D, C, DP)
    shares = load_tile(score + square, C, C, C, C, C) * weights(vectors, clamps, C, LIMIT)
    R1 = read(R1, W, S, base, vectors + C, shares, D1, tall, C, D, DP, ES, BASE, False, PRECISION)
    if DEPTH == 2:
        R1, _, _ = derivatives(R1, GELU)
        shares = load_tile(mix + square, C, C, C, C, C)
        shares *= weights(vectors + 5 * C, clamps + C, C, LIMIT)
        shares *= product(R1, tl.trans(X1), PRECISION)
        W = load_tile(own + 2 * matrix, tall, D, D, ES, DP)
        S = load_tile(own + 3 * matrix, tall, D, D, ES, DP)
        DL = load_tile(error + tokens, C, D, D, C, DP)
        R1 = read(
            R1, W, S, base + matrix, vectors + 6 * C, shares, DL, tall, C, D, DP, ES, BASE, True, PRECISION
        )  # fmt: skip
    store_tile(sums + part * N * R * C * D + tokens, R1, C, D, D)


@triton.jit
def read_backward(
    q, k, score, mix, pairs, coefs, base, held, error, clamps, slots, dy, units,
    dq, d_score, d_mix, by_coefs, d_error,
    N, R, H,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DP: tl.constexpr, ES: tl.constexpr,
    SLICES: tl.constexpr, DEPTH: tl.constexpr, GELU: tl.constexpr, LIMIT: tl.constexpr,
    BASE: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the queries of a chunk owe to a slice: `pairs` is (dy D_2^T) times G of the last layer.

    The slice's own go to `units` [8, N, R, C, E]: dD_1, dX_1, R_1, the gradient by its Z_1, and for the walk
    back the keys' phi'(Z_1), D_2 W_2 times phi''(Z_1), D_1 and X_1. Parts of sums over the slices: dq, dD_2,
    the gradients by the scores, and in the rows of `by_coefs` those by w, c and p of every layer.
    """
    at, part = tl.program_id(0) // SLICES, tl.program_id(0) % SLICES
    n, row = at // R, at % R
    at = tl.cast(at, tl.int64)
    tall, matrix = height_of(part, E, ES), E * D
    skip = part * ES * D
    base += (row % H) * DEPTH * matrix + skip
    own = slots + at * 2 * DEPTH * matrix + skip
    tokens, square, vectors = at * C * D, at * C * C, coefs + at * DEPTH * 5 * C
    mine, kind = tl.cast(part, tl.int64) * N * R, tl.cast(N * R, tl.int64) * C * E
    units += at * C * E + part * ES
    by_coefs += (mine + at) * DEPTH * 5 * C
    clamps += at * DEPTH * C
    if DEPTH == 2:
        held += row * 2 * matrix + skip
        X1, D1, back, Z = hidden(
            k + tokens, error + tokens, own, base, held, n, tall, C, D, E, DP, ES, GELU, BASE, HELD, PRECISION
        )  # fmt: skip
        _, slope, curve = derivatives(Z, GELU)
        store_tile(units + 4 * kind, slope, C, tall, E)
        store_tile(units + 5 * kind, back * curve, C, tall, E)
        store_tile(units + 6 * kind, D1, C, tall, E)
        store_tile(units + 7 * kind, X1, C, tall, E)
        W, S = load_tile(own, tall, D, D, ES, DP), load_tile(own + matrix, tall, D, D, ES, DP)
        shares = load_tile(score + square, C, C, C, C, C) * weights(vectors, clamps, C, LIMIT)
        Z = load_tile(q + tokens, C, D, D, C, DP)
        Z = read(Z, W, S, base, vectors + C, shares, D1, tall, C, D, DP, ES, BASE, False, PRECISION)
        R1, slope, _ = derivatives(Z, GELU)
        store_tile(units + 2 * kind, R1, C, tall, E)

        seen = product(R1, tl.trans(X1), PRECISION)
        store_tile(d_mix + mine * C * C + square, seen, C, C, C)
        both = load_tile(pairs + square, C, C, C, C, C)
        store_row(by_coefs + 5 * C, tl.sum(both * seen, 0))
        both *= weights(vectors + 5 * C, clamps + C, C, LIMIT)
        store_tile(units + kind, product(tl.trans(both), R1, PRECISION), C, tall, E)
        both = load_tile(pairs + square, C, C, C, C, C)
        both *= weights(vectors + 5 * C, clamps + C, C, LIMIT)
        dR = product(both, X1, PRECISION)
        tl.debug_barrier()
        seen = load_tile(d_mix + mine * C * C + square, C, C, C, C, C)
        seen *= load_tile(mix + square, C, C, C, C, C)
        seen *= weights(vectors + 5 * C, clamps + C, C, LIMIT)
        G = load_tile(dy + tokens, C, D, D, C, DP)
        store_tile(d_error + mine * C * D + tokens, product(tl.trans(seen), G, PRECISION), C, D, D)
        R1 = load_tile(units + 2 * kind, C, tall, E, C, ES)
        G = load_tile(dy + tokens, C, D, D, C, DP)
        seen = product(G, tl.trans(load_tile(own + 2 * matrix, tall, D, D, ES, DP)), PRECISION)
        store_row(by_coefs + 6 * C, tl.sum(seen * R1, 1))
        dR += load_row(vectors + 6 * C, C)[:, None] * seen
        seen = product(G, tl.trans(load_tile(own + 3 * matrix, tall, D, D, ES, DP)), PRECISION)
        store_row(by_coefs + 7 * C, tl.sum(seen * R1, 1))
        dR += load_row(vectors + 7 * C, C)[:, None] * seen
        if BASE:
            M = load_tile(base + matrix, tall, D, D, ES, DP)
            dR = add_product(dR, G, tl.trans(M), PRECISION)
        dZ = dR * slope
        store_tile(units + 3 * kind, dZ, C, tall, E)
        # Read again, it does not stand in the way until here.
        tl.debug_barrier()
        D1 = load_tile(units + 6 * kind, C, tall, E, C, ES)
    else:
        D1 = load_tile(error + tokens, C, D, D, C, DP)
        dZ = load_tile(dy + tokens, C, D, D, C, DP)
    shares = load_tile(score + square, C, C, C, C, C) * weights(vectors, clamps, C, LIMIT)
    store_tile(units, product(tl.trans(shares), dZ, PRECISION), C, tall, E)
    both = product(dZ, tl.trans(D1), PRECISION)
    store_tile(d_score + mine * C * C + square, both * weights(vectors, clamps, C, LIMIT), C, C, C)
    both *= load_tile(score + square, C, C, C, C, C)
    store_row(by_coefs, tl.sum(both, 0))
    if DEPTH == 2:
        dZ = load_tile(units + 3 * kind, C, tall, E, C, ES)
    both = product(dZ, load_tile(own, tall, D, D, ES, DP), PRECISION)
    Q = load_tile(q + tokens, C, D, D, C, DP)
    store_row(by_coefs + C, tl.sum(both * Q, 1))
    dQ = load_row(vectors + C, C)[:, None] * both
    both = product(dZ, load_tile(own + matrix, tall, D, D, ES, DP), PRECISION)
    store_row(by_coefs + 2 * C, tl.sum(both * Q, 1))
    dQ += load_row(vectors + 2 * C, C)[:, None] * both
    if BASE:
        dQ = add_product(dQ, dZ, load_tile(base, tall, D, D, ES, DP), PRECISION)
    store_tile(dq + mine * C * D + tokens, dQ, C, D, D)
