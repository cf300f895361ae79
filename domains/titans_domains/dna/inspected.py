"""Models of DNA that are inspected while they read sequences."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from titans_domains.dna.calls import MOST_BASES
from titans_domains.dna.encoder import Encoder
from titans_domains.dna.pretrained import Pretrained
from titans_domains.dna.pretraining import CausalModel, target_nats
from titans_domains.dna.reading import clean, read_records
from titans_domains.dna.scoring import load_any
from titans_domains.dna.streams import read_pieces
from titans_domains.dna.tokenizers import PAD, DnaTokenizer
from titans_domains.inspection.subject import Kind, Passage

PIECE = 4096
"""Bases that are read at a time as a stream. It changes no number."""


def dna_subject(run: Path, device: torch.device, checkpoint: str) -> "StreamSubject | WholeSubject":
    if checkpoint != "last":
        raise ValueError(
            f"{run} is a run of dna, which has one set of weights: leave --checkpoint out."
        )
    model: Any = load_any(run, device)
    if isinstance(model, Pretrained):
        network = model.model
        if isinstance(network, CausalModel):
            return StreamSubject(network, model.tokenizer)
        return WholeSubject(network, network.encoder, model.tokenizer)
    first = model.networks_[0]
    return WholeSubject(first, first.encoder, model.tokenizer_, members=len(model.networks_))


class Ids(NamedTuple):
    """Tokens of a record that follow on those before."""

    record: str
    begins: bool
    ids: Int[np.ndarray, " T"]
    done: int  # bytes of the file


class StreamSubject:
    """A causal model: contigs of any length, each from a fresh memory on."""

    kind: Kind = "letters"
    readings: tuple[str, ...] = ("",)
    mirrored: tuple[int, ...] = ()
    notes = ("Each record is read as a stream, from a fresh memory, which is carried to its end.",)

    def __init__(self, model: CausalModel, tokenizer: DnaTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.backbone = model.encoder.backbone
        self.device = model.out.weight.device

    def total(self, path: Path) -> int:
        return _size(path)

    def passages(self, path: Path, record: str | None = None) -> Iterator[Passage]:
        state, last = None, None
        for part in _chosen(self._parts(path), path, record):
            ids = torch.from_numpy(part.ids).to(self.device)
            if part.begins:
                state, last = self.model.fresh_state(1), None
            skip = int(last is None)
            inputs = torch.cat([ids.new_full((skip,), PAD), ids])[None]
            with torch.no_grad():
                chances, state = self.model(inputs, state)
            before = chances[:, :-1] if last is None else torch.cat([last, chances[:, :-1]], 1)
            last = chances[:, -1:]
            bits = target_nats(before.double(), ids[None])[0] / math.log(2)
            yield Passage(
                labels=labels_of(self.tokenizer, part.ids, part.begins),
                begins=part.record if part.begins else None,
                skip=skip,
                bits=bits.masked_fill(~self.model.allowed[ids], torch.nan).cpu().numpy(),
                done=part.done,
            )

    def _parts(self, path: Path) -> Iterator[Ids]:
        if self.tokenizer.kind != "nucleotide":
            # How a sequence falls into longer tokens depends on where it begins.
            for part in whole_records(path, self.tokenizer):
                for first in range(0, len(part.ids), PIECE):
                    ids = part.ids[first : first + PIECE]
                    yield part._replace(begins=first == 0, ids=ids)
            return
        reached = Reached()
        for piece in read_pieces(path, PIECE, progress=reached):
            ids = self.tokenizer.encode(piece.sequence)
            yield Ids(piece.contig, not piece.start, ids, reached.at)


class WholeSubject:
    """A classifier or a masked model, which sees all of a record at once, from both of its ends."""

    kind: Kind = "letters"

    def __init__(
        self, model: nn.Module, encoder: Encoder, tokenizer: DnaTokenizer, *, members: int = 1
    ) -> None:
        self.model, self.encoder, self.tokenizer = model, encoder, tokenizer
        self.backbone = encoder.backbone
        self.device = encoder.embedding.weight.device
        both = encoder.side is not None
        self.readings: tuple[str, ...] = ("left to right", "right to left") if both else ("",)
        self.mirrored: tuple[int, ...] = (1,) if both else ()
        pool = encoder.stem.config.pool
        self.notes: tuple[str, ...] = (
            "Each record is read whole, from a fresh memory"
            + (", once from its left and once from its right." if both else "."),
        )
        if pool > 1:
            self.notes += (f"The memory reads places of {pool} tokens each, which stand together.",)
        if members > 1:
            self.notes += (f"Of {members} members the first is shown.",)

    def total(self, path: Path) -> int:
        return _size(path)

    def passages(self, path: Path, record: str | None = None) -> Iterator[Passage]:
        for part in _chosen(whole_records(path, self.tokenizer), path, record):
            if len(part.ids) > MOST_BASES:
                raise ValueError(
                    f"{path}, record {part.record!r} has {len(part.ids):,} tokens, and is read whole: give "
                    f"records of at most {MOST_BASES:,}, or a causal model."
                )
            with torch.no_grad():
                self.encoder(torch.from_numpy(part.ids).to(self.device)[None])
            labels = labels_of(self.tokenizer, part.ids, True)
            pool = self.encoder.stem.config.pool
            places = ["".join(labels[i : i + pool]) for i in range(0, len(labels), pool)]
            yield Passage(labels=places, begins=part.record, done=part.done)


class Reached:
    """How many bytes of a file were read."""

    at = 0

    def __call__(self, position: int) -> None:
        self.at = position


def whole_records(path: Path, tokenizer: DnaTokenizer) -> Iterator[Ids]:
    reached = Reached()
    for record in read_records(path, progress=reached):
        sequence = clean(record.sequence, record.where, whole=True).sequence
        yield Ids(record.name, True, tokenizer.encode(sequence, record.where), reached.at)


def labels_of(tokenizer: DnaTokenizer, ids: np.ndarray, begins: bool) -> list[str]:
    """The bases that each token adds to those of the token before."""
    pieces = [tokenizer.decode([token]) for token in ids.tolist()]
    stride = getattr(tokenizer, "stride", None)
    if stride is None:
        return pieces
    return [
        piece if begins and not number else piece[-stride:] for number, piece in enumerate(pieces)
    ]


def _chosen(parts: Iterator[Ids], path: Path, record: str | None) -> Iterator[Ids]:
    found = False
    for part in parts:
        if record is None or part.record == record:
            found = True
            yield part
    if not found:
        raise ValueError(f"{path} has no record {record!r}: --record names one of the file.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
