"""What a model of bases must beat: Markov models with back-off, and a model that copies.

T bases as codes 0-3 for A, C, G, T, and 4 for an unknown one; k the order.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int, UInt8

UNKNOWN = 4
Codes = UInt8[np.ndarray, " T"]


def contexts(codes: Codes, order: int) -> Int[np.ndarray, " T"]:
    """The `order` bases before each base as one number; -1 where one is unknown or outside."""
    found = np.zeros(len(codes), np.int64)
    bad = np.arange(len(codes)) < order
    for lag in range(1, order + 1):
        before = np.full(len(codes), UNKNOWN, np.int64)
        before[lag:] = codes[: max(0, len(codes) - lag)]
        bad |= before == UNKNOWN
        found += np.where(before == UNKNOWN, 0, before) * 4 ** (lag - 1)
    return np.where(bad, -1, found)


def other_strand(codes: Codes) -> Codes:
    return np.where(codes == UNKNOWN, UNKNOWN, 3 - codes)[::-1].astype(np.uint8)


class Markov:
    """Chances of a base after the `order` bases before it, counted on both strands of sequences.

    A context's counts are joined with the shorter context's chances as if those had been seen `prior`
    times, from one chance in four upwards.
    """

    def __init__(self, sequences: Iterable[Codes], order: int, prior: float = 16.0) -> None:
        self.order = order
        tables = [np.zeros((4**k, 4)) for k in range(order + 1)]
        for sequence in sequences:
            for strand in (sequence, other_strand(sequence)):
                known = strand != UNKNOWN
                for k, table in enumerate(tables):
                    context = contexts(strand, k)
                    at = known & (context >= 0)
                    cells = context[at] * 4 + strand[at]
                    table += np.bincount(cells, minlength=table.size).reshape(table.shape)
        chance = np.full((1, 4), 0.25)
        self.chances: list[Float[np.ndarray, "contexts 4"]] = []
        for table in tables:
            # A longer context's number begins, in base 4, with bases that lie further back.
            shorter = np.tile(chance, (len(table) // len(chance), 1))
            chance = (table + prior * shorter) / (table.sum(1, keepdims=True) + prior)
            self.chances.append(chance)

    def bits(self, codes: Codes) -> Float[np.ndarray, " T"]:
        """Bits of each base; NaN for an unknown one. The longest known context counts."""
        found = np.full(len(codes), np.nan)
        for k, chance in enumerate(self.chances):
            context = contexts(codes, k)
            at = (context >= 0) & (codes != UNKNOWN)
            found[at] = -np.log2(chance[context[at], codes[at]])
        return found


def copy_bits(
    codes: Codes, base: Float[np.ndarray, " T"], *, seed_length: int = 24, start: int = 0
) -> Float[np.ndarray, " T"]:
    """Bits under a mixture of `base` (bits of a model) with a model that copies, from `start` on.

    The copy model follows the last earlier place, on either strand, with the same `seed_length` bases
    before it, and goes on there as long as it is right in most of the last 16 bases. Its weight is its
    share of hits so far in the copy, so nothing is tuned.
    """
    found = base.copy()
    index: dict[bytes, int] = {}
    letters = codes.tobytes()
    complement = bytes.maketrans(bytes(range(5)), bytes([3, 2, 1, 0, 4]))
    at, step, recent = -1, 1, [1] * 16
    for t in range(len(codes)):
        if at < 0 and t >= seed_length:
            seed = letters[t - seed_length : t]
            turned = seed.translate(complement)[::-1]
            if seed in index:
                at, step, recent = index[seed], 1, [1] * 16
            elif turned in index:
                at, step, recent = index[turned] - seed_length - 1, -1, [1] * 16
        if at >= 0:
            guess = codes[at] if step > 0 else complement[codes[at]]
            share = (sum(recent) + 0.5) / 17
            hit = int(guess == codes[t])
            if t >= start:
                chance = share if hit else (1 - share) / 3
                found[t] = -np.log2(0.95 * chance + 0.05 * 2.0 ** -base[t])
            recent = [*recent[1:], hit]
            at += step
            if sum(recent) < 8 or not 0 <= at < t:
                at = -1
        if t >= seed_length:
            index[letters[t - seed_length : t]] = t
    return found
