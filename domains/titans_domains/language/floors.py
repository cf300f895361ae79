"""What a model of bytes must beat: n-gram models and compressors, computed on the texts at hand.

All results are bits per byte of `texts`. Nothing here has a setting that could be tuned on them.
"""

import gzip
import lzma
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]


def floors(train: bytes, *texts: bytes) -> dict[str, float]:
    """Bits per byte of the texts under every floor, by name; no static n-gram if `train` is empty.

    The n-grams begin anew at each text, as a memory does. The compressors are given all texts as one:
    they would lose to short ones by the size of their containers.
    """
    named = {}
    if train:
        named["order-5 n-gram, static"] = ngram_bits_per_byte(train, *texts, adaptive=False)
    without = "" if train else ", without the training text"
    named[f"order-5 n-gram, adaptive{without}"] = ngram_bits_per_byte(train, *texts, adaptive=True)
    together = b"".join(texts)
    return named | {
        "gzip -9": compressed_bits_per_byte(together, "gzip"),
        "xz -9e": compressed_bits_per_byte(together, "xz"),
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
    train: bytes, *texts: bytes, order: int = 5, adaptive: bool, continuation: bool = False
) -> float:
    """Cross-entropy of the texts, in bits per byte, under an interpolated Witten-Bell n-gram model.

    `order` is the n of n-gram: a byte is predicted from the `order - 1` bytes before it, and the
    first bytes of every text from the last of `train`. From uniform over 256 bytes upwards, each
    longer context that has been seen n times, before t different bytes, refines the prediction:

        p(byte | context) = (n(context, byte) + t * p(byte | shorter context)) / (n + t)

    Static counts stop at the end of `train`; adaptive ones go on through a text, each byte counted
    once it has been predicted, and go back to those of `train` for the next.
    `continuation` makes the shorter contexts count, as Kneser and Ney do, a byte only where it is
    new to the next longer context: on prose a stronger floor, at the same order.

    Needs about 250 bytes of memory for each byte of text.
    """
    _require_bytes(b"".join(texts))
    if order < 1:
        raise ValueError(f"order must be at least 1, a model without context: got {order}.")
    if not (train or adaptive):
        raise ValueError("train is empty, so nothing is counted: pass adaptive=True.")
    read = _lay_out(train, texts, order)
    counted = ~read.repeated if adaptive else read.part == 0
    probability = _witten_bell(read, counted, order, continuation)
    return float(-np.log2(probability[(read.part > 0) & ~read.repeated]).mean())


class _Read(NamedTuple):
    """The training text and then all others, each after a repetition of the training text's end."""

    symbols: _Ints  # bytes, and before each repetition 256, which no byte is
    part: _Ints  # 0 for the training text, then the number of the text
    repeated: _Bools  # what is there for its sake as a context alone


def _lay_out(train: bytes, texts: tuple[bytes, ...], order: int) -> _Read:
    before = train[len(train) - min(order - 1, len(train)) :]
    symbols = [np.frombuffer(train, np.uint8).astype(np.int64)]
    repeated = [np.zeros(len(train), np.bool_)]
    for text in texts:
        symbols += [np.array([256]), np.frombuffer(before + text, np.uint8)]
        repeated += [np.ones(1 + len(before), np.bool_), np.zeros(len(text), np.bool_)]
    sizes = [len(train), *(1 + len(before) + len(text) for text in texts)]
    part = np.repeat(np.arange(len(sizes)), sizes)
    return _Read(np.concatenate(symbols), part, np.concatenate(repeated))


def _require_bytes(test: bytes) -> None:
    if not test:
        raise ValueError("The text must hold at least one byte: got none.")


def _witten_bell(read: _Read, counted: _Bools, order: int, continuation: bool) -> _Floats:
    """Probability of each byte given those before it, from the `counted` bytes before it."""
    probability = np.full(len(read.symbols), 1 / 256)
    contexts, grams = _contexts_and_grams(read.symbols, order)
    for length, (context, gram) in enumerate(zip(contexts, grams, strict=True)):
        longer_is_new = continuation and length + 1 < order
        events = counted
        if longer_is_new:
            events = counted & (_count_before(grams[length + 1], counted, read.part) == 0)
        repeats = _count_before(gram, events, read.part)
        total = _count_before(context, events, read.part)
        # At least 1, so that a context never seen leaves the shorter one's prediction as it is.
        kinds = np.maximum(_count_before(context, events & (repeats == 0), read.part), 1)
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
        grams.append(_group(_labels(contexts[-1]) * 257 + text))
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


def _count_before(groups: _Groups, events: _Bools, part: _Ints) -> _Ints:
    """Number of events at earlier positions of the same group, in the same part or in part 0."""
    ordered, parts = events[groups.positions], part[groups.positions]
    shared, own = ordered & (parts == 0), ordered & (parts > 0)
    # In a group the parts follow each other.
    begins = np.append(True, parts[1:] != parts[:-1])
    begins[groups.starts] = True
    part_starts = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    counts: _Ints = np.empty_like(groups.positions)
    counts[groups.positions] = _since(shared, groups.starts) + _since(own, part_starts)
    return counts


def _since(events: _Bools, starts: _Ints) -> _Ints:
    """Number of events before each index, from its start on."""
    running: _Ints = np.cumsum(events) - events
    return running - running[starts]
