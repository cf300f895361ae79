"""Tokenizers: raw bytes, or byte-level BPE by Hugging Face `tokenizers`."""

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from titans_domains.tokenizer_file import parse_tokenizer

FILE = "tokenizer.json"


TOKENIZERS = ("bytes", "bpe")
"""Those without a file of their own."""


class Tokenizer(Protocol):
    """Ids of a document's bytes; `end` is the id that stands before and after every document.

    No text is encoded with it, and `decode` gives every encoded text back. `smallest` is the type of
    a number that takes the least memory.
    """

    vocab_size: int
    end: int
    smallest: np.dtype

    def encode(self, text: bytes, kind: npt.DTypeLike = np.int64) -> np.ndarray: ...

    def decode(self, ids: Iterable[int]) -> bytes: ...

    def save(self, folder: Path) -> None: ...


class ByteTokenizer:
    """Ids 0-255 are bytes, 256 is the end of a document."""

    vocab_size = 257
    end = 256
    smallest = np.dtype(np.uint8)

    def encode(self, text: bytes, kind: npt.DTypeLike = np.int64) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(kind, copy=False)

    def decode(self, ids: Iterable[int]) -> bytes:
        return bytes(i for i in ids if i < 256)

    def save(self, folder: Path) -> None:
        """Nothing: bytes need no table."""


class BPETokenizer:
    """Byte-level BPE, so that every text can be written and read back exactly."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"There is no tokenizer file {path}.")
        self.model = parse_tokenizer(path.read_bytes().decode(errors="replace"), str(path))
        self._take(str(path))

    def _take(self, source: str) -> None:
        end = self.model.token_to_id("<|endoftext|>")
        letters = _letters()
        pieces = [self.model.id_to_token(i) for i in range(self.model.get_vocab_size())]
        self.pieces: list[bytes] = []
        for index, piece in enumerate(pieces):
            if index == end:
                self.pieces.append(b"")
            elif piece is None or any(letter not in letters for letter in piece):
                raise ValueError(
                    f"{source} must be a byte-level BPE: its token {piece!r} is not made of bytes. "
                    "Train one with data.tokenizer=bpe."
                )
            else:
                self.pieces.append(bytes(letters[letter] for letter in piece))
        if end is None:
            raise ValueError(f"{source} must have the token <|endoftext|>: it has none.")
        self.end, self.vocab_size = end, len(self.pieces)
        self.smallest = np.min_scalar_type(self.vocab_size - 1)
        self.source = source
        # What stands in a text is text, whichever name a special token has.
        self.model.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[bytes], vocab_size: int) -> "BPETokenizer":
        from tokenizers import Tokenizer as Model
        from tokenizers import decoders, models, pre_tokenizers, trainers

        model = Model(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator((text.decode() for text in texts), trainer)
        made = cls.__new__(cls)
        made.model = model
        made._take("the trained tokenizer")
        return made

    def encode(self, text: bytes, kind: npt.DTypeLike = np.int64) -> np.ndarray:
        """ValueError for a text that these tokens would not give back."""
        ids = self.model.encode(text.decode(), add_special_tokens=False).ids
        if (back := self.decode(ids)) != text:
            at = next(i for i, (a, b) in enumerate(zip_longest(text, back)) if a != b)
            near = slice(max(at - 10, 0), at + 20)
            raise ValueError(
                f"{self.source} does not give every text back: of {_shown(text[near])} it makes "
                f"{_shown(back[near])}. Take one that neither changes letters nor adds blanks, or train "
                "one with data.tokenizer=bpe."
            )
        return np.asarray(ids, kind)

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.pieces[i] for i in ids)

    def save(self, folder: Path) -> None:
        self.model.save(str(folder / FILE))


def _shown(text: bytes) -> str:
    return repr(text.decode(errors="ignore"))


def _letters() -> dict[str, int]:
    """The printable letter by which byte-level BPE writes each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def make_tokenizer(name: str, vocab_size: int, texts: Iterable[bytes]) -> Tokenizer:
    """`bytes`, `bpe` (trained on `texts`), or the path of a tokenizer file."""
    if name == "bytes":
        return ByteTokenizer()
    if name == "bpe":
        if vocab_size < 257:
            raise ValueError(
                f"data.vocab_size must be at least 257 for BPE over bytes: got {vocab_size}."
            )
        return BPETokenizer.train(texts, vocab_size)
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"data.tokenizer must be 'bytes', 'bpe' or the path of a tokenizer file: no file {name!r}."
        )
    return BPETokenizer(Path(name))


def load_tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a run."""
    return ByteTokenizer() if name == "bytes" else BPETokenizer(folder / FILE)
