"""Tokenizers: every text comes back byte for byte, and what is no tokenizer is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_language import DOCUMENTS

from titans_domains.language.tokenizers import (
    FILE,
    BPETokenizer,
    ByteTokenizer,
    load_tokenizer,
    make_tokenizer,
)

TEXTS = [
    b"plain words",
    "Größe naïveté 日本語 🙂".encode(),
    b"carriage\r\nreturn\r and\ttab",
    b"  two spaces  \n\n\n",
    b" ",
    b"",
    "\u00a0\u200b\ufeffodd blanks".encode(),
    b"<|endoftext|",
    b"one<|endoftext|>two",
    bytes(range(1, 128)),
]
BPE = BPETokenizer.train([text.encode() for text in DOCUMENTS], 400)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])
def test_a_text_comes_back(tokenizer: Any, text: bytes) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == "int64"
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.decode([]) == b""
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert tokenizer.end not in ids


@given(st.text())
def test_any_text_comes_back_from_bpe(text: str) -> None:
    assert BPE.decode(BPE.encode(text.encode()).tolist()) == text.encode()


def test_bytes_are_their_own_ids_and_the_end_is_none_of_them() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é!".encode()).tolist() == [0xC3, 0xA9, 33]
    assert (tokenizer.end, tokenizer.vocab_size) == (256, 257)
    assert tokenizer.decode([104, 256, 105]) == b"hi"


def test_bpe_is_shorter_than_bytes_and_its_pieces_are_bytes() -> None:
    text = DOCUMENTS[0].encode()
    ids = BPE.encode(text).tolist()
    assert len(ids) < len(text) / 2
    # Piece by piece too, for a letter may come in several.
    assert b"".join(BPE.decode([i]) for i in ids) == text
    assert BPE.decode([BPE.end]) == b""
    assert BPE.vocab_size <= 400
    single = {BPE.decode([i]) for i in range(BPE.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single


def test_a_trained_bpe_is_saved_and_loaded(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    for loaded in (load_tokenizer("bpe", tmp_path), make_tokenizer(str(tmp_path / FILE), 0, ())):
        assert (loaded.end, loaded.vocab_size) == (BPE.end, BPE.vocab_size)
        for text in TEXTS:
            assert loaded.encode(text).tolist() == BPE.encode(text).tolist()
    ByteTokenizer().save(tmp_path / "nowhere")
    assert isinstance(load_tokenizer("bytes", tmp_path), ByteTokenizer)


def test_the_same_texts_train_the_same_bpe() -> None:
    again = make_tokenizer("bpe", 400, [text.encode() for text in DOCUMENTS])
    assert isinstance(again, BPETokenizer)
    assert again.pieces == BPE.pieces
    assert make_tokenizer("bytes", 0, ()).vocab_size == 257


def changed(**parts: Any) -> str:
    return json.dumps({**json.loads(BPE.model.to_str()), **parts})


LOSSY = {
    "lower case": ({"normalizer": {"type": "Lowercase"}}, "GRÖSSE", "'GRÖSSE' it makes 'grösse'"),
    "composed": ({"normalizer": {"type": "NFC"}}, "e\u0301", "'e\u0301' it makes 'é'"),
    "stripped": (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        " a ", "' a ' it makes 'a'",
    ),
    "blank before": (
        {
            "pre_tokenizer": {
                "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                "use_regex": True,
            }
        },
        "word", "'word' it makes ' word'",
    ),
    "cut": (
        {
            "truncation": {
                "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
            }
        },
        "zzzz", "'zzzz' it makes 'zz'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "text", "sentence"), LOSSY.values(), ids=LOSSY)
def test_a_tokenizer_that_does_not_give_the_text_back_is_refused(
    tmp_path: Path, parts: dict[str, Any], text: str, sentence: str
) -> None:
    path = tmp_path / FILE
    path.write_text(changed(**parts))
    tokenizer = make_tokenizer(str(path), 0, ())
    with pytest.raises(ValueError, match=re.escape(f"give every text back: of {sentence}. Take")):
        tokenizer.encode(text.encode())
    # Where nothing is lost there is nothing to refuse.
    if "normalizer" in parts:
        assert tokenizer.decode(tokenizer.encode(b"a").tolist()) == b"a"


def test_an_end_that_stands_in_a_text_is_text_in_a_saved_tokenizer_too(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    ids = load_tokenizer("bpe", tmp_path).encode(b"a<|endoftext|>b")
    assert BPE.end not in ids
    assert BPE.decode(ids.tolist()) == b"a<|endoftext|>b"


def test_the_smallest_type_holds_every_token() -> None:
    assert BPE.smallest == "uint16"
    small = BPE.encode(DOCUMENTS[0].encode(), BPE.smallest)
    assert small.dtype == "uint16"
    assert small.tolist() == BPE.encode(DOCUMENTS[0].encode()).tolist()
    text = b"no copy of the text"
    assert not ByteTokenizer().encode(text, ByteTokenizer().smallest).flags.owndata


def wordpiece() -> str:
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
            "model": {
                "type": "WordLevel", "vocab": {"two words": 0, "[UNK]": 1}, "unk_token": "[UNK]",
            },
        }
    )  # fmt: skip


def without_end() -> str:
    table = json.loads(BPE.model.to_str())
    table["added_tokens"] = []
    del table["model"]["vocab"]["<|endoftext|>"]
    table["model"]["vocab"] = {k: i for i, k in enumerate(table["model"]["vocab"])}
    return json.dumps(table)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a tokenizer file of Hugging Face tokenizers"),
        ("{}", "is not a tokenizer file of Hugging Face tokenizers"),
        ("not json", "is not a tokenizer file of Hugging Face tokenizers"),
        (BPE.model.to_str()[:500], "is not a tokenizer file of Hugging Face tokenizers"),
        (wordpiece(), "must be a byte-level BPE: its token 'two words' is not made of bytes"),
        (without_end(), "must have the token <|endoftext|>: it has none"),
    ],
    ids=["empty", "object", "text", "cut", "words", "no end"],
)
def test_what_is_no_tokenizer_of_bytes_is_named(
    tmp_path: Path, content: str, sentence: str
) -> None:
    path = tmp_path / FILE
    path.write_text(content)
    for make in (lambda: make_tokenizer(str(path), 0, ()), lambda: load_tokenizer("bpe", tmp_path)):
        with pytest.raises(ValueError, match="tokenizer") as caught:
            make()
        assert str(caught.value).startswith(str(path))
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_name_that_is_no_file_and_a_vocabulary_that_is_too_small_are_refused() -> None:
    with pytest.raises(FileNotFoundError, match="or the path of a tokenizer file: no file 'gpt2'"):
        make_tokenizer("gpt2", 400, ())
    with pytest.raises(ValueError, match="must be at least 257 for BPE over bytes: got 256"):
        make_tokenizer("bpe", 256, [b"text"])
    assert make_tokenizer("bpe", 257, [b"text"]).vocab_size == 257
