"""The vectorised floors against dictionaries read byte by byte, values by hand and decoders."""

import lzma
import math
import random
import zlib
from collections import Counter
from typing import Literal

import pytest

from titans_domains.language.floors import compressed_bits_per_byte, floors, ngram_bits_per_byte

PROSE = (
    b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"
    b"First Citizen:\nYou are all resolved rather to die than to famish?\n\nAll:\nResolved. "
    b"resolved.\n\nFirst Citizen:\nFirst, you know Caius Marcius is chief enemy to the people.\n"
)
NOISE = random.Random(0).randbytes(300)
FEW_SYMBOLS = bytes(random.Random(1).choices([0, 7, 255], k=400))
TEXTS = {"prose": PROSE, "noise": NOISE, "few symbols": FEW_SYMBOLS, "one symbol": b"\0" * 60}


class SlowNgram:
    """Interpolated Witten-Bell, from the formula: a dictionary of successors for each context."""

    def __init__(self, order: int, continuation: bool) -> None:
        self.order = order
        self.continuation = continuation
        self.successors: dict[tuple[int, ...], Counter[int]] = {}

    def probability(self, past: list[int], byte: int) -> float:
        p = 1 / 256
        for length in range(self.order):
            seen = self.successors.get(self.context(past, length))
            if seen:
                n, t = sum(seen.values()), len(seen)
                p = (seen[byte] + t * p) / (n + t)
        return p

    def count(self, past: list[int], byte: int) -> None:
        for length in reversed(range(self.order)):
            seen = self.successors.setdefault(self.context(past, length), Counter())
            seen[byte] += 1
            if self.continuation and seen[byte] > 1:
                return

    @staticmethod
    def context(past: list[int], length: int) -> tuple[int, ...]:
        padded = [-1] * length + past
        return tuple(padded[len(padded) - length :])


def slow_bits_per_byte(
    train: bytes, test: bytes, order: int, adaptive: bool, continuation: bool
) -> float:
    model, bits = SlowNgram(order, continuation), 0.0
    past: list[int] = []
    for byte in train:
        model.count(past, byte)
        past.append(byte)
    for byte in test:
        bits -= math.log2(model.probability(past, byte))
        if adaptive:
            model.count(past, byte)
        past.append(byte)
    return bits / len(test)


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ngram_equals_the_dictionaries(
    text: bytes, order: int, adaptive: bool, continuation: bool
) -> None:
    for split in (1, len(text) // 2, len(text) - 1):
        train, test = text[:split], text[split:]
        fast = ngram_bits_per_byte(
            train, test, order=order, adaptive=adaptive, continuation=continuation
        )
        slow = slow_bits_per_byte(train, test, order, adaptive, continuation)
        assert fast == pytest.approx(slow, rel=0, abs=1e-9)


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_adaptive_ngram_without_train_equals_the_dictionaries(
    text: bytes, order: int, continuation: bool
) -> None:
    fast = ngram_bits_per_byte(b"", text, order=order, adaptive=True, continuation=continuation)
    slow = slow_bits_per_byte(b"", text, order, True, continuation)
    assert fast == pytest.approx(slow, rel=0, abs=1e-9)


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_of_the_next_byte_sum_to_one(
    order: int, adaptive: bool, continuation: bool
) -> None:
    train, read = PROSE[:200], PROSE[200:230]

    def bits(test: bytes) -> float:
        return len(test) * ngram_bits_per_byte(
            train, test, order=order, adaptive=adaptive, continuation=continuation
        )

    before = bits(read)
    total = sum(2 ** (before - bits(read + bytes([byte]))) for byte in range(256))
    assert total == pytest.approx(1, rel=0, abs=1e-9)


def test_ngram_by_hand() -> None:
    assert ngram_bits_per_byte(b"", b"a", adaptive=True) == 8
    # Seen twice, one kind: (2 + 1 * 1/256) / (2 + 1).
    by_hand = -math.log2((2 + 1 / 256) / 3)
    assert ngram_bits_per_byte(b"aa", b"a", order=1, adaptive=False) == pytest.approx(by_hand)
    # After "a", "a" has been seen once.
    shorter = (2 + 1 / 256) / 3
    by_hand = -math.log2((1 + shorter) / 2)
    assert ngram_bits_per_byte(b"aa", b"a", order=2, adaptive=False) == pytest.approx(by_hand)


def test_only_adaptive_counts_go_on_through_test() -> None:
    once, twice = NOISE[:100], NOISE[:100] * 2
    static_once = ngram_bits_per_byte(PROSE, once, adaptive=False)
    static_twice = ngram_bits_per_byte(PROSE, twice, adaptive=False)
    assert static_twice == pytest.approx(static_once, abs=0.05)
    assert ngram_bits_per_byte(PROSE, twice, adaptive=True) < 0.7 * static_twice


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("order", [1, 2, 5, 9])
@pytest.mark.parametrize("train", [PROSE[:150], NOISE[:3], b""], ids=["prose", "short", "none"])
def test_every_text_begins_anew(
    train: bytes, order: int, adaptive: bool, continuation: bool
) -> None:
    if not (train or adaptive):
        return
    texts = [PROSE[150:190], b"a", PROSE[150:200], b"ababab", NOISE[:30], train or b"b"]
    settings = {"order": order, "adaptive": adaptive, "continuation": continuation}
    got = ngram_bits_per_byte(train, *texts, **settings)
    alone = [slow_bits_per_byte(train, text, *settings.values()) * len(text) for text in texts]
    assert got == pytest.approx(sum(alone) / sum(map(len, texts)), rel=0, abs=1e-9)


def test_compressed_size_is_that_of_what_decodes_to_the_text() -> None:
    # Long and repetitive enough that weaker settings of either compressor give other sizes.
    text = b" ".join(random.Random(3).choices(PROSE.split(), k=4000))
    deflate = zlib.compressobj(9, wbits=31)
    gzipped = deflate.compress(text) + deflate.flush()
    xz = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    xzipped = xz.compress(text) + xz.flush()
    assert zlib.decompress(gzipped, wbits=31) == lzma.decompress(xzipped) == text
    assert compressed_bits_per_byte(text, "gzip") == 8 * len(gzipped) / len(text)
    assert compressed_bits_per_byte(text, "xz") == 8 * len(xzipped) / len(text)


@pytest.mark.parametrize("method", ["gzip", "xz"])
def test_compressors_gain_on_repeats_and_not_on_noise(method: Literal["gzip", "xz"]) -> None:
    noise = random.Random(2).randbytes(20_000)
    assert 8 < compressed_bits_per_byte(noise, method) < 8.1
    assert 4 < compressed_bits_per_byte(noise * 2, method) < (8.1 if method == "gzip" else 4.1)
    assert compressed_bits_per_byte(bytes(20_000), method) < 0.1


def test_floors_are_named_and_leave_static_out_without_train() -> None:
    train, test = PROSE[:200], PROSE[200:]
    assert floors(train, test) == {
        "order-5 n-gram, static": ngram_bits_per_byte(train, test, order=5, adaptive=False),
        "order-5 n-gram, adaptive": ngram_bits_per_byte(train, test, order=5, adaptive=True),
        "gzip -9": compressed_bits_per_byte(test, "gzip"),
        "xz -9e": compressed_bits_per_byte(test, "xz"),
    }
    without = "order-5 n-gram, adaptive, without the training text"
    assert list(floors(b"", test)) == [without, "gzip -9", "xz -9e"]
    assert floors(b"", test)[without] == ngram_bits_per_byte(b"", test, adaptive=True)


def test_floors_of_several_texts() -> None:
    train, texts = PROSE[:200], (PROSE[200:240], PROSE[200:])
    got = floors(train, *texts)
    for name, adaptive in (("static", False), ("adaptive", True)):
        bits = ngram_bits_per_byte(train, *texts, adaptive=adaptive)
        assert got[f"order-5 n-gram, {name}"] == bits
    assert got["gzip -9"] == compressed_bits_per_byte(b"".join(texts), "gzip")
    assert got["xz -9e"] == compressed_bits_per_byte(b"".join(texts), "xz")


def test_nothing_to_measure_or_to_count_is_refused() -> None:
    with pytest.raises(ValueError, match="text must hold at least one byte"):
        compressed_bits_per_byte(b"", "gzip")
    with pytest.raises(ValueError, match="text must hold at least one byte"):
        compressed_bits_per_byte(b"", "xz")
    for adaptive in (False, True):
        with pytest.raises(ValueError, match="text must hold at least one byte"):
            ngram_bits_per_byte(PROSE, b"", adaptive=adaptive)
    with pytest.raises(ValueError, match="text must hold at least one byte"):
        floors(PROSE, b"")
    with pytest.raises(ValueError, match="train is empty"):
        ngram_bits_per_byte(b"", PROSE, adaptive=False)
    with pytest.raises(ValueError, match="order must be at least 1"):
        ngram_bits_per_byte(PROSE, PROSE, order=0, adaptive=True)
    with pytest.raises(ValueError, match="method must be 'gzip' or 'xz': got 'zip'"):
        compressed_bits_per_byte(PROSE, "zip")  # type: ignore[arg-type]
