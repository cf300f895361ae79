"""Tokens of clean sequences: single bases, k-mers, or BPE trained on the corpus; and padded batches.

Id 0 is padding and id 1 the mask of masked pretraining, in every tokenizer.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from titans_domains.checkpoints import parse_json
from titans_domains.tokenizer_file import parse_tokenizer

FILE = "tokenizer.json"
PAD, MASK, FIRST_BASE = 0, 1, 2
SPECIAL = ("[PAD]", "[MASK]")
"""The first tokens of a BPE."""
BASES = "ACGTN"
_CODES = np.full(256, 255, np.uint8)
_CODES[list(BASES.encode())] = range(5)
_N = 4
"""The code of N among `BASES`."""


class DnaTokenizer(Protocol):
    """Ids of a clean sequence's pieces.

    `complement[id]` is the token that the other strand has at the mirrored place; None where the
    tokens of the other strand are not the mirrored ones.
    """

    kind: str
    vocab_size: int
    shortest: int  # bases that a sequence needs at least
    pad_id: int
    mask_id: int
    complement: np.ndarray | None

    def encode(self, sequence: str, name: str = "the sequence") -> Int[np.ndarray, " T"]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def table(self) -> dict[str, Any]:
        """What `from_table` makes the tokenizer of again, as JSON."""
        ...


def codes(sequence: str, name: str = "the sequence") -> np.ndarray:
    """0-4 for A, C, G, T and N; ValueError for a sequence that is empty or was not cleaned."""
    if not sequence:
        raise ValueError(f"{name} is empty: give at least one base.")
    found = _CODES[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]
    if found.max() > _N:
        at = int(np.argmax(found > _N))
        raise ValueError(
            f"{name}, position {at + 1}: tokens are made of A, C, G, T and N: got {sequence[at]!r}; "
            "clean the sequence first."
        )
    return found


class NucleotideTokenizer:
    """One token per base: A 2, C 3, G 4, T 5, N 6."""

    kind = "nucleotide"
    pad_id, mask_id = PAD, MASK
    vocab_size = 7
    shortest = 1
    complement: np.ndarray | None = np.array([PAD, MASK, 5, 4, 3, 2, 6])

    def encode(self, sequence: str, name: str = "the sequence") -> Int[np.ndarray, " T"]:
        return codes(sequence, name).astype(np.int64) + 2

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(BASES[i - 2] for i in ids if i > MASK)

    def table(self) -> dict[str, Any]:
        return {"kind": self.kind}


class KmerTokenizer:
    """One token for each k bases that begin at a multiple of `stride`; those with an N share one token.

    Where the last of them would leave bases over, one more token ends at the sequence's end, so that
    every base is in a token.
    """

    kind = "kmer"
    pad_id, mask_id = PAD, MASK

    def __init__(self, k: int, stride: int = 1) -> None:
        if not 1 <= k <= 10:
            raise ValueError(f"k must be between 1 and 10 bases: got {k}.")
        if not 1 <= stride <= k:
            raise ValueError(f"stride must be between 1 and k = {k}: got {stride}.")
        self.k, self.stride, self.shortest = k, stride, k
        self.vocab_size = 4**k + 3
        self.unknown = 4**k + 2
        self.weights = 4 ** np.arange(k)[::-1]
        digits = np.arange(4**k)[:, None] // self.weights % 4
        other = (3 - digits[:, ::-1]) @ self.weights + 2
        # With a stride the mirrored tokens are those of the other strand only where none is left over.
        self.complement: np.ndarray | None = None
        if stride == 1:
            self.complement = np.concatenate([[PAD, MASK], other, [self.unknown]])

    def encode(self, sequence: str, name: str = "the sequence") -> Int[np.ndarray, " T"]:
        found = codes(sequence, name)
        last = len(found) - self.k
        if last < 0:
            raise ValueError(
                f"{name} has {len(found)} bases, and tokens of {self.k} need at least {self.k}: leave "
                "it out, or take tokens of single bases."
            )
        starts = np.arange(0, last + 1, self.stride)
        if starts[-1] != last:
            starts = np.append(starts, last)
        ids = np.zeros(len(starts), np.int64)
        for offset in range(self.k):
            ids = ids * 4 + found[starts + offset]
        ids += 2
        unknown = np.concatenate([[0], np.cumsum(found == _N)])
        ids[unknown[starts + self.k] > unknown[starts]] = self.unknown
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The k-mers one after the other, overlaps included."""
        return "".join(
            "N" * self.k
            if i == self.unknown
            else "".join(BASES[d] for d in (i - 2) // self.weights % 4)
            for i in ids
            if i > MASK
        )

    def table(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k, "stride": self.stride}


PIECE = 512
"""Bases that are taken as one word when BPE is trained: merging inside a whole genome takes hours."""


class BpeTokenizer:
    """Byte pair encoding over bases, by Hugging Face `tokenizers`."""

    kind = "bpe"
    pad_id, mask_id = PAD, MASK
    shortest = 1
    complement: np.ndarray | None = None

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab_size: int = model.get_vocab_size()
        self.pieces = [model.id_to_token(i) for i in range(self.vocab_size)]
        odd = [p for p in self.pieces[FIRST_BASE:] if not p or set(p) - set(BASES)]
        if odd or self.pieces[:FIRST_BASE] != list(SPECIAL):
            raise ValueError(
                f"A BPE of DNA must have {' and '.join(SPECIAL)} for its first tokens, and bases in all "
                f"others: got {(odd or self.pieces)[0]!r}."
            )

    @classmethod
    def train(cls, sequences: Iterable[str], vocab_size: int) -> "BpeTokenizer":
        from tokenizers import Tokenizer, models, trainers

        if vocab_size < 7:
            raise ValueError(f"vocab_size must be at least 7 for BPE over bases: got {vocab_size}.")

        def words() -> Iterator[str]:
            for sequence in sequences:
                codes(sequence)
                yield from (sequence[i : i + PIECE] for i in range(0, len(sequence), PIECE))

        model = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=list(BASES),
            show_progress=False,
        )
        model.train_from_iterator(words(), trainer)
        return cls(model)

    def encode(self, sequence: str, name: str = "the sequence") -> Int[np.ndarray, " T"]:
        codes(sequence, name)
        return np.asarray(self.model.encode(sequence, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces[i] for i in ids if i > MASK)

    def table(self) -> dict[str, Any]:
        return {"kind": self.kind, "model": json.loads(self.model.to_str())}


TOKENIZERS = ("nucleotide", "kmer", "bpe")


def make_tokenizer(
    kind: str, sequences: Iterable[str] = (), *, k: int = 6, stride: int = 1, vocab_size: int = 4096
) -> DnaTokenizer:
    """A tokenizer by name; only `bpe` looks at the sequences, which must be those trained on."""
    if kind == "nucleotide":
        return NucleotideTokenizer()
    if kind == "kmer":
        return KmerTokenizer(k, stride)
    if kind == "bpe":
        return BpeTokenizer.train(sequences, vocab_size)
    raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}: got {kind!r}.")


def from_table(table: Any, source: str = "the table") -> DnaTokenizer:
    """The tokenizer of a `table()`; ValueError where it is none, with the name of its source."""
    try:
        kind = table["kind"]
        if kind == "nucleotide":
            return NucleotideTokenizer()
        if kind == "kmer":
            return KmerTokenizer(table["k"], table["stride"])
        if kind == "bpe":
            return BpeTokenizer(parse_tokenizer(json.dumps(table["model"]), source))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is no tokenizer of DNA: {str(error).rstrip('.')}.") from None
    raise ValueError(f"{source} is no tokenizer of DNA: its kind is {kind!r}.")


def save_tokenizer(tokenizer: DnaTokenizer, folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(tokenizer.table(), indent=1) + "\n")


def load_tokenizer(folder: Path) -> DnaTokenizer:
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; is this a run of titans dna?")
    return from_table(parse_json(path), str(path))


def pad_batch(
    sequences: list[Int[np.ndarray, " T"]], *, pad_id: int = PAD, multiple: int = 1
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Tokens with padding on the right, and the mask that is True on what is none.

    T is the longest length, rounded up to a multiple of `multiple`.
    """
    longest = max(map(len, sequences))
    tokens = np.full((len(sequences), -(-longest // multiple) * multiple), pad_id, np.int64)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return torch.from_numpy(tokens), torch.from_numpy(mask)
