"""Pretraining as a task of the shared trainer: rows that read on along contigs, on both strands.

B rows, T tokens of a sequence.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8, UInt16
from torch import Tensor

from titans_core import count_parameters
from titans_domains.dna.markov import UNKNOWN, Markov
from titans_domains.dna.pretraining import (
    CausalModel,
    MaskedModel,
    hide,
    target_nats,
)
from titans_domains.dna.reading import ambiguous_line
from titans_domains.dna.tokenizers import FIRST_BASE, PAD, DnaTokenizer, save_tokenizer
from titans_domains.domain import Step
from titans_domains.language.streams import Batch, Corpus, Streams
from titans_domains.report import Floors
from titans_domains.train_config import TrainConfig

Ids = UInt16[np.ndarray, " T"]
SOFT = 2**15
"""Added to tokens whose loss is not to count."""
FLOOR_ORDER, FLOOR_BASES = 7, 2**22
"""Of the Markov model beside the figures, as `titans dna eval` has it, where it takes a second or two."""


class PretrainTask:
    """A causal or masked model of contigs; follows `titans_domains.domain.Task`.

    `train` and `valid` are contigs, or parts of them, as tokens (plus SOFT where the loss is not to
    count). A row reads its contig on from batch to batch, with the memory carried in causal models, and
    begins another where it ends. With `complement`, the other strands are contigs too. `ambiguous` is how
    many IUPAC codes became N in them, for `describe`.
    """

    def __init__(
        self,
        model: CausalModel | MaskedModel,
        tokenizer: DnaTokenizer,
        train: Sequence[Ids],
        valid: Sequence[Ids],
        *,
        config: TrainConfig,
        seq_len: int,
        seed: int,
        hidden_share: float = 0.15,
        complement: Int[np.ndarray, " V"] | None = None,
        data_sha256: str | None = None,
        ambiguous: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.train, self.valid = model, tokenizer, train, valid
        self.seq_len, self.seed, self.hidden_share = seq_len, seed, hidden_share
        self.data_sha256, self.rows = data_sha256, config.rows
        self.bases, self.ambiguous = sum(map(len, train)), ambiguous
        for what, contigs in (("train on", train), ("hold out", valid)):
            if sum(map(len, contigs)) and not any(map(self._counts, contigs)):
                raise ValueError(
                    f"No base to {what} counts in the loss: all are unknown (N), or in lower case under "
                    "data.soft_masked=false; give other sequence, or data.soft_masked=true."
                )
        texts = list(train)
        if complement is not None:
            texts += [other_strand(ids, complement) for ids in train]
        if sum(map(len, texts)) < seq_len:
            raise ValueError(
                f"There are {sum(map(len, texts))} tokens to train on, fewer than one sequence of "
                f"data.seq_len = {seq_len}: give more sequence or a shorter data.seq_len."
            )
        # A contig begins where a sequence does, so that no state is restarted inside of one.
        corpus = Corpus(texts, PAD, self.rows, seed)
        self.streams = Streams(corpus, rows=self.rows, length=seq_len, grid=seq_len)
        self.carry = isinstance(model, CausalModel) and config.carry is not False
        if self.carry and _grows(model):
            self.carry = False
            if config.carry:
                raise ValueError(
                    "train.carry needs a state that does not grow: give model.backbone.attention."
                    "window, or leave train.carry away."
                )

    def describe(self) -> str:
        kind = "causal" if isinstance(self.model, CausalModel) else "masked"
        unknown = f"; {ambiguous_line(self.ambiguous)}" if self.ambiguous else ""
        return (
            f"{kind}, {self.model.config.backbone.mixer}, {count_parameters(self.model):,} "
            f"parameters; {self.bases:,} tokens to train on, {sum(map(len, self.valid)):,} held out"
            f"{unknown}"
        )

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return self.streams.batches(cursor)

    def fresh_state(self) -> Any:
        if not self.carry or not isinstance(self.model, CausalModel):
            return ()
        return self._put_down(self.model.fresh_state(self.rows))

    def step(self, batch: Batch, state: Any) -> Step:
        inputs, targets, counted = self._tokens(batch)
        mask = None if batch.mask is None else batch.mask.to(inputs.device)
        if isinstance(self.model, CausalModel):
            begin = None if batch.reset is None else batch.reset[:, 0].to(inputs.device)
            chances, state = self.model(inputs, self._take_up(state), mask=mask, begin=begin)
            state = self._put_down(state)
        else:
            inputs, chosen = hide(
                targets, self.model.allowed, self.tokenizer.mask_id, self.hidden_share
            )
            chances, counted, state = self.model(inputs, mask), counted & chosen, ()
        nats = target_nats(chances, targets).masked_fill(~counted, 0)
        count = int(counted.sum())
        # Where no token of a batch counts there is nothing to learn, and no figure.
        loss = nats.sum() / max(1, count)
        figure = loss.item() if count else math.nan
        log = {"loss": figure, "bits": figure / math.log(2)}
        return Step(loss, state, inputs.numel(), log, count)

    def _counts(self, ids: Ids) -> bool:
        """Whether the loss of any token counts."""
        allowed = self.model.allowed.cpu().numpy()
        return bool(((ids < SOFT) & allowed[ids % SOFT]).any())

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets, and True where the loss counts."""
        device = self.model.out.weight.device
        inputs, marked = (batch.inputs % SOFT).to(device), batch.targets.to(device)
        targets = marked % SOFT
        counted = (marked < SOFT) & self.model.allowed[targets]
        if batch.mask is not None:
            counted &= batch.mask.to(device)
        return inputs, targets, counted

    def _take_up(self, state: Any) -> Any:
        assert isinstance(self.model, CausalModel)
        if not self.carry or not state:
            return None
        inner = self.model.encoder.backbone.take_up(state.encoder.backbone)
        return state._replace(encoder=state.encoder._replace(backbone=inner))

    def _put_down(self, state: Any) -> Any:
        assert isinstance(self.model, CausalModel)
        if not self.carry:
            return ()
        inner = self.model.encoder.backbone.put_down(state.encoder.backbone)
        return state._replace(encoder=state.encoder._replace(backbone=inner))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Bits per base of the held-out contigs: in one stream, or of hidden tokens (always the same)."""
        if not sum(map(len, self.valid)):
            return {}
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            total, count = 0.0, 0
            for step in self._validation_steps():
                total += step[0]
                count += step[1]
        self.model.train(was_training)
        name = "bits_per_base" if self.tokenizer.kind == "nucleotide" else "bits_per_token"
        return {name: total / count / math.log(2) if count else math.nan}

    def floors(self) -> Floors:
        """Of a causal model of single bases, the Markov model that the training part makes."""
        single = isinstance(self.model, CausalModel) and self.tokenizer.kind == "nucleotide"
        if not single or not sum(map(len, self.valid)) > 0 or self.bases > FLOOR_BASES:
            return {}
        markov = Markov([codes_of(ids) for ids in self.train], FLOOR_ORDER)
        bits = np.concatenate(
            [np.where(ids < SOFT, markov.bits(codes_of(ids)), np.nan) for ids in self.valid]
        )
        name = f"order-{FLOOR_ORDER} Markov model"
        return {"valid_bits_per_base": {name: float(np.nanmean(bits))}}

    def _validation_steps(self) -> Iterator[tuple[float, int]]:
        """Nats and number of the tokens that count, sequence by sequence."""
        for contig in self.valid:
            ids = torch.from_numpy(np.concatenate([[PAD], contig.astype(np.int64)]))[None]
            state: Any = None
            for first in range(0, ids.shape[1] - 1, self.seq_len):
                piece = ids[:, first : first + self.seq_len + 1]
                inputs, targets, counted = self._tokens(
                    Batch(piece[:, :-1], piece[:, 1:], None, None)
                )
                if isinstance(self.model, CausalModel):
                    chances, state = self.model(inputs, state)
                    state = state if self.carry else None
                else:
                    hidden, chosen = hide(
                        targets, self.model.allowed, self.tokenizer.mask_id, self.hidden_share
                    )
                    chances, counted = self.model(hidden), counted & chosen
                nats = target_nats(chances, targets)[counted]
                yield nats.double().sum().item(), int(counted.sum())

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        save_tokenizer(self.tokenizer, folder)


def codes_of(ids: Ids) -> UInt8[np.ndarray, " T"]:
    """Tokens of single bases as `Markov` counts them."""
    plain = ids % SOFT
    return np.minimum(plain - FIRST_BASE, UNKNOWN).astype(np.uint8)


def other_strand(ids: Ids, complement: Int[np.ndarray, " V"]) -> Ids:
    """The tokens of the other strand, in its direction."""
    return (complement[ids % SOFT] + ids // SOFT * SOFT)[::-1].astype(np.uint16)


def _grows(model: CausalModel | MaskedModel) -> bool:
    return not model.config.backbone.bounded
