"""A pretrained model as a tool: likelihoods of sequences, bits per base along a genome, embeddings.

n sequences, T tokens, W width of the hidden states.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from titans_domains.dna.calls import MOST_BASES
from titans_domains.dna.examples import encode_all, in_order, padded
from titans_domains.dna.labels import strings
from titans_domains.dna.pretraining import CausalModel, CausalState, MaskedModel, target_nats
from titans_domains.dna.tokenizers import PAD, DnaTokenizer

Mode = Literal["carried", "frozen", "reset"]
MODES: tuple[Mode, ...] = ("carried", "frozen", "reset")
PIECE = 4096
"""Bases fed at a time. It changes no number."""
ROWS = 64
"""Sequences, or copies of one with a hidden token each, that are read at once at most. It changes no
number."""


class StreamState(NamedTuple):
    """A stream that goes on: of batch 1."""

    model: CausalState
    last: Int[Tensor, " 1"]  # the newest token, which the model has predicted and not read yet
    read: Int[Tensor, " 1"]  # tokens read


class Reading(NamedTuple):
    bits: Float[np.ndarray, " T"]  # of each base of a chunk; NaN for unknown ones
    state: StreamState


class Pretrained:
    """A causal or masked model with its tokenizer, on one device."""

    def __init__(
        self, model: CausalModel | MaskedModel, tokenizer: DnaTokenizer, window: int
    ) -> None:
        self.model, self.tokenizer, self.window = model.eval(), tokenizer, window
        self.device = model.out.weight.device

    @torch.no_grad()
    def log_likelihood(self, sequences: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Natural logarithm of each sequence's chance; unknown bases count as certain.

        A masked model gives the sum over tokens of the chance of each, it alone being hidden (the
        pseudo-likelihood), and reads a sequence once for every token.
        """
        tokens = encode_all(self.tokenizer, strings(sequences))
        if isinstance(self.model, MaskedModel):
            return np.array([self._pseudo(ids) for ids in tokens])
        found = np.empty(len(tokens))
        for rows, part in in_order(tokens, ROWS):
            ids, mask = padded([np.concatenate([[PAD], row]) for row in part], self.device)
            chances, _ = self.model(ids[:, :-1], mask=None if mask is None else mask[:, 1:])
            found[rows] = self._sum(chances, ids[:, 1:]).cpu().numpy()
        return found

    def _pseudo(self, ids: np.ndarray) -> float:
        whole = torch.from_numpy(ids).to(self.device)
        total = 0.0
        copies = max(1, min(ROWS, MOST_BASES // len(ids)))
        for places in torch.arange(len(ids), device=self.device).split(copies):
            rows = torch.arange(len(places), device=self.device)
            hidden = whole.repeat(len(places), 1)
            hidden[rows, places] = self.tokenizer.mask_id
            chances = self.model(hidden)[rows, places]
            total += self._sum(chances[None], whole[places][None]).item()
        return total

    def _sum(self, chances: Float[Tensor, "B T V"], targets: Tensor) -> Float[Tensor, " B"]:
        """Log-chances of the tokens that can be predicted; padding and unknown bases cannot."""
        nats = target_nats(chances.double(), targets)
        return -nats.masked_fill(~self.model.allowed[targets], 0).sum(1)

    def fresh_state(self) -> StreamState:
        """The state before the first base of a stream."""
        zero = torch.zeros(1, dtype=torch.long, device=self.device)
        return StreamState(self._causal().fresh_state(1), zero + PAD, zero)

    def bits_per_base(
        self,
        chunks: Iterable[str],
        state: StreamState | None = None,
        *,
        mode: Mode = "carried",
        window: int | None = None,
    ) -> Iterator[Reading]:
        """Bits of each base of a stream that comes in chunks, and the state after each chunk.

        carried: the memory learns from the first base to the last. frozen: it stays as it was before
        the first. reset: it is restored every `window` bases (default: the trained length);
        convolutions and caches go on in both. How the stream is cut changes nothing.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}: got {mode!r}.")
        if self.tokenizer.kind != "nucleotide":
            raise ValueError(
                "Bits per base need a model of single bases: this one's tokens are of kind "
                f"{self.tokenizer.kind!r}."
            )
        size = (window or self.window) if mode == "reset" else PIECE
        state = state or self.fresh_state()
        for chunk in chunks:
            ids = torch.from_numpy(self.tokenizer.encode(chunk)).to(self.device)
            bits = []
            while len(ids):
                taken = size - int(state.read) % size
                found, state = self._read(ids[:taken], state, mode, size)
                ids = ids[taken:]
                bits.append(found)
            yield Reading(torch.cat(bits).cpu().numpy(), state)

    @torch.no_grad()
    def _read(
        self, ids: Int[Tensor, " T"], state: StreamState, mode: Mode, size: int
    ) -> tuple[Float[Tensor, " T"], StreamState]:
        model, inner = self._causal(), state.model
        if mode == "reset" and int(state.read) % size == 0:
            memory = model.encoder.backbone.restart_memory(inner.encoder.backbone)
            inner = inner._replace(encoder=inner.encoder._replace(backbone=memory))
        inputs = torch.cat([state.last, ids[:-1]])[None]
        chances, inner = model(inputs, inner, write=mode != "frozen")
        bits = target_nats(chances.double(), ids[None])[0] / math.log(2)
        bits = bits.masked_fill(~model.allowed[ids], torch.nan)
        return bits, StreamState(inner, ids[-1:], state.read + len(ids))

    def _causal(self) -> CausalModel:
        if not isinstance(self.model, CausalModel):
            raise ValueError(
                "A masked model reads no stream: give a run of `titans dna pretrain` with "
                "kind=causal."
            )
        return self.model

    @torch.no_grad()
    def embed(self, sequences: Sequence[str]) -> Float[np.ndarray, "n W"]:
        """The mean hidden state of each sequence."""
        tokens = encode_all(self.tokenizer, strings(sequences))
        found = np.empty((len(tokens), self.model.encoder.width), np.float32)
        for rows, part in in_order(tokens, ROWS):
            ids, mask = padded(part, self.device)
            hidden, _ = self.model.encoder(ids, mask)
            lengths = torch.tensor([[len(row)] for row in part], device=self.device)
            found[rows] = (hidden.sum(1) / lengths).cpu().numpy()
        return found
