"""What a model of bytes must beat: n-gram models and compressors, computed on the text at hand.

All results are bits per byte of `test`. Nothing here has a setting that could be tuned on it.
"""

import gzip
import lzma
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]


def floors(train: bytes, test: bytes) -> dict[str, float]:
    """Bits per byte of `test` under every floor, by name; no static n-gram if `train` is empty."""
    static = {}
    if train:
        static["order-5 n-gram, static"] = ngram_bits_per_byte(train, test, adaptive=False)
    return static | {
        "order-5 n-gram, adaptive": ngram_bits_per_byte(train, test, adaptive=True),
        "gzip -9": compressed_bits_per_byte(test, "gzip"),
        "xz -9e": compressed_bits_per_byte(test, "xz"),
    }


def compressed_bits_per_byte(test: bytes, method: Literal["gzip", "xz"]) -> float:
    """Size of `test` compressed by itself, container included, in bits per byte.

    gzip is level 9, and its size can differ by a little between builds of zlib; xz is 9e.
    """
    _require_bytes(test)
    if method == "gzip":
        compressed = gzip.compress(test, compresslevel=9, mtime=0)
    elif method == "xz":
        compressed = lzma.compress(test, preset=9 | lzma.PRESET_EXTREME)
    else:
        raise ValueError(f"method must be 'gzip' or 'xz': got {method!r}.")
    return 8 * len(compressed) / len(test)


def ngram_bits_per_byte(
    train: bytes, test: bytes, *, order: int = 5, adaptive: bool, continuation: bool = False
) -> float:
    """Cross-entropy of `test`, in bits per byte, under an interpolated Witten-Bell n-gram model.

    `order` is the n of n-gram: a byte is predicted from the `order - 1` bytes before it, and the
    first bytes of `test` from the last of `train`. From uniform over 256 bytes upwards, each
    longer context that has been seen n times, before t different bytes, refines the prediction:

        p(byte | context) = (n(context, byte) + t * p(byte | shorter context)) / (n + t)

    Static counts stop at the end of `train`; adaptive ones go on through `test`, each
    byte counted once it has been predicted.
    `continuation` makes the shorter contexts count, as Kneser and Ney do, a byte only where it is
    new to the next longer context: on prose a stronger floor, at the same order.

    Needs about 250 bytes of memory for each byte of text.
    """
    _require_bytes(test)
    if order < 1:
        raise ValueError(f"order must be at least 1, a model without context: got {order}.")
    if not (train or adaptive):
        raise ValueError("train is empty, so nothing is counted: pass adaptive=True.")
    text: _Ints = np.frombuffer(train + test, np.uint8).astype(np.int64)
    counted = np.arange(len(text)) < (len(text) if adaptive else len(train))
    probability = _witten_bell(text, counted, order, continuation)
    return float(-np.log2(probability[len(train) :]).mean())


def _require_bytes(test: bytes) -> None:
    if not test:
        raise ValueError("test must hold at least one byte: got none.")


def _witten_bell(text: _Ints, counted: _Bools, order: int, continuation: bool) -> _Floats:
    """Probability of each byte given those before it, from the `counted` bytes before it."""
    probability = np.full(len(text), 1 / 256)
    contexts, grams = _contexts_and_grams(text, order)
    for length, (context, gram) in enumerate(zip(contexts, grams, strict=True)):
        longer_is_new = continuation and length + 1 < order
        events = counted & _is_first(grams[length + 1]) if longer_is_new else counted
        repeats = _count_before(gram, events)
        total = _count_before(context, events)
        # At least 1, so that a context never seen leaves the shorter one's prediction as it is.
        kinds = np.maximum(_count_before(context, events & (repeats == 0)), 1)
        probability = (repeats + kinds * probability) / (total + kinds)
    return probability


class _Groups(NamedTuple):
    """Positions of the text, those with equal keys together and in reading order."""

    positions: _Ints
    starts: _Ints  # for each of `positions`, the index where its group begins


def _group(keys: _Ints) -> _Groups:
    positions = np.argsort(keys, kind="stable")
    ordered = keys[positions]
    begins = np.append(True, ordered[1:] != ordered[:-1])
    return _Groups(positions, np.flatnonzero(begins)[np.cumsum(begins) - 1])


def _contexts_and_grams(text: _Ints, order: int) -> tuple[list[_Groups], list[_Groups]]:
    """Positions grouped by the 0, 1, ... `order - 1` bytes before them, and by these and their own.

    Contexts that would begin before the text are unlike any other.
    """
    contexts, grams = [_group(np.zeros_like(text))], []
    for _ in range(order):
        grams.append(_group(_labels(contexts[-1]) * 256 + text))
        contexts.append(_preceding(grams[-1]))
    return contexts[:-1], grams


def _labels(groups: _Groups) -> _Ints:
    labels = np.empty_like(groups.positions)
    labels[groups.positions] = groups.starts
    return labels


def _preceding(grams: _Groups) -> _Groups:
    """Positions grouped by the gram that ends just before them; the first is a group of its own."""
    # The last position precedes none. It is the last of its group too, so no start is lost.
    last = np.flatnonzero(grams.positions == len(grams.positions) - 1)
    positions, starts = np.delete(grams.positions, last), np.delete(grams.starts, last)
    starts = np.where(starts > last, starts, starts + 1)
    return _Groups(np.append(0, positions + 1), np.append(0, starts))


def _is_first(groups: _Groups) -> _Bools:
    """Whether a position is the first of its group."""
    first = np.zeros(len(groups.positions), np.bool_)
    first[groups.positions[groups.starts]] = True
    return first


def _count_before(groups: _Groups, events: _Bools) -> _Ints:
    """Number of events at earlier positions of the same group."""
    ordered = events[groups.positions]
    running: _Ints = np.cumsum(ordered) - ordered
    counts: _Ints = np.empty_like(running)
    counts[groups.positions] = running - running[groups.starts]
    return counts
