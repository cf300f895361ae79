"""Bits per byte by position: every bin against single tokens' costs, and a picture of them."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_language import SENTENCES, tiny_model

from titans_domains import targets
from titans_domains.language import positions
from titans_domains.language.evaluate import bits_per_byte, costs
from titans_domains.language.model import LanguageModel
from titans_domains.language.positions import (
    by_position,
    check_picture,
    draw,
    edges_of,
    long_documents,
    table_of,
    usual_length,
)
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer

BYTES = ByteTokenizer()
TEXTS = [(SENTENCES[i] * 6).encode()[:200] for i in (0, 2, 0)]
TEXTS[2] = TEXTS[2][7:] + b"another"
LENGTH, WINDOW = 150, 32


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return tiny_model().double()


def directly(
    model: LanguageModel, tokenizer: Tokenizer, text: bytes, mode: str, first: int, end: int
) -> float:
    """Bits per byte of the tokens that begin from `first` on and before `end`."""
    nats = torch.cat(list(costs(model, tokenizer, text, mode, window=WINDOW))).tolist()
    bits = size = at = 0.0
    for token, cost in zip(tokenizer.encode(text).tolist(), nats, strict=True):
        if first <= at < end:
            bits += cost / math.log(2)
            size += len(tokenizer.decode([token]))
        at += len(tokenizer.decode([token]))
    return bits / size


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_each_bin_is_the_mean_of_its_tokens(model: LanguageModel, kind: str) -> None:
    tokenizer: Tokenizer = BYTES
    if kind == "bpe":
        tokenizer = BPETokenizer.train(TEXTS, 300)
        torch.manual_seed(1)
        model = LanguageModel(model.backbone.config, tokenizer.vocab_size).double()
    texts = long_documents(TEXTS, LENGTH)
    read: list[int] = []
    found = by_position(model, tokenizer, texts, LENGTH, window=WINDOW, progress=read.append)
    assert sum(read) == 3 * sum(len(tokenizer.encode(text)) for text in texts)
    assert found["edges"] == [0, 32, 64, 128, 150]
    assert (found["documents"], found["length"]) == (3, LENGTH)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    assert found["trained_bytes"] == round(WINDOW * 3 * LENGTH / tokens)
    modes = {"lmm, carried": "carried", "lmm, frozen": "frozen", "lmm, reset(32)": "reset"}
    assert list(found["bits_per_byte"]) == list(modes)
    for name, mode in modes.items():
        curve = found["bits_per_byte"][name]
        for n, (first, end) in enumerate(pairwise(found["edges"])):
            bits = [directly(model, tokenizer, text, mode, first, end) for text in texts]
            assert curve["mean"][n] == pytest.approx(np.mean(bits), abs=1e-9)
            spread = np.std(bits, ddof=1) / math.sqrt(3)
            assert curve["standard_error"][n] == pytest.approx(spread, abs=1e-9)
            assert curve["standard_error"][n] > 1e-4


def test_bins_together_are_the_bits_of_the_whole(model: LanguageModel) -> None:
    text = TEXTS[0][:LENGTH]
    found = by_position(model, BYTES, [text], LENGTH, window=WINDOW)
    for name, mode in (("lmm, carried", "carried"), ("lmm, frozen", "frozen")):
        curve = found["bits_per_byte"][name]
        sizes = [b - a for a, b in pairwise(found["edges"])]
        total = sum(m * size for m, size in zip(curve["mean"], sizes, strict=True))
        whole = bits_per_byte(model, BYTES, [text], mode, window=WINDOW)
        assert total / LENGTH == pytest.approx(whole, abs=1e-9)
        assert curve["standard_error"] == [None] * 4
    # A memory that is restored every 32 bytes is the carried one as long as nothing was restored.
    carried, frozen, reset = (curve["mean"] for curve in found["bits_per_byte"].values())
    assert reset[0] == pytest.approx(carried[0], abs=1e-12)
    assert abs(reset[1] - carried[1]) > 1e-5
    assert abs(frozen[0] - carried[0]) > 1e-5


def test_full_attention_is_read_in_windows(model: LanguageModel) -> None:
    attention = tiny_model(mixer="attention").double().train()
    found = by_position(attention, BYTES, [TEXTS[0][:64]], 64, window=WINDOW)
    assert attention.training
    (name, curve), *others = found["bits_per_byte"].items()
    assert (name, others) == ("attention, window(32)", [])
    attention.eval()
    wanted = [directly(attention, BYTES, TEXTS[0][:64], "window", a, a + 32) for a in (0, 32)]
    assert curve["mean"] == pytest.approx(wanted, abs=1e-9)


def test_a_bin_without_tokens_leaves_the_document_out() -> None:
    documents = np.array([[[6.0, 0.0], [2.0, 0.0]], [[4.0, 8.0], [4.0, 4.0]]])
    mean, error = positions.curve_of(documents)
    assert mean == [2.0, 2.0]
    assert error == [1.0, None]
    assert positions.curve_of(documents[:1]).mean == [3.0, None]


@pytest.mark.parametrize(
    ("length", "edges"),
    [(64, [0, 32, 64]), (65, [0, 32, 64, 65]), (256, [0, 32, 64, 128, 256])],
)
def test_every_bin_is_as_long_as_all_before(length: int, edges: list[int]) -> None:
    assert edges_of(length) == edges


@pytest.mark.parametrize(
    ("sizes", "length"), [([100], 64), ([64, 10], 64), ([500, 128, 3], 128), ([8, 4, 2, 1], 4)]
)
def test_half_of_the_documents_are_long_enough(sizes: list[int], length: int) -> None:
    assert usual_length([b"x" * size for size in sizes]) == length


def test_documents_are_cut_between_letters() -> None:
    texts = [b"a" * 63 + "ö".encode() * 9, b"short", b"b" * 64]
    assert long_documents(texts, 64) == [b"a" * 63, b"b" * 64]


def test_what_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="No document has 128 bytes, the longest has 70"):
        long_documents([b"x" * 70, b"x"], 128)
    with pytest.raises(ValueError, match="length must be at least 64 bytes, two bins: got 63"):
        long_documents([b"x" * 100], 63)
    with pytest.raises(ValueError, match="There is no text to evaluate"):
        usual_length([])


FOUND: dict[str, Any] = {
    "length": 70, "documents": 2, "trained_bytes": 32, "edges": [0, 32, 64, 70],
    "bits_per_byte": {
        "lmm, carried": {"mean": [5.0, 4.25, None], "standard_error": [0.5, None, None]},
        "lmm, frozen": {"mean": [6.0, 4.0, 1.0], "standard_error": [0.5, 0.25, 0.125]},
    },
}  # fmt: skip


def test_a_table_has_a_row_for_each_bin() -> None:
    assert table_of(FOUND) == [
        ["bytes", "lmm, carried", "lmm, frozen"],
        ["0-31", "5.000 ± 0.500", "6.000 ± 0.500"],
        ["32-63", "4.250", "4.000 ± 0.250"],
        ["64-69", "-", "1.000 ± 0.125"],
    ]


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_picture_is_drawn(tmp_path: Path, name: str, begin: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    check_picture(path, force=False)
    draw(FOUND, path)
    assert path.read_bytes().startswith(begin)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(FileExistsError, match="is there already: choose another --plot"):
        check_picture(path, force=False)
    check_picture(path, force=True)


def test_no_picture_is_begun_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"must be named \*.png, \*.pdf or \*.svg: got '.*a.txt'"):
        check_picture(tmp_path / "a.txt", force=True)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        check_picture(tmp_path / "no" / "a.png", force=True)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_picture(tmp_path / "b.png", force=True)
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--plot needs matplotlib: pip install"):
        check_picture(tmp_path / "a.png", force=True)
