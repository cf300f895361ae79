"""Models that predict bases: the next one (causal), or hidden ones (masked), without labels.

B batch, T tokens, V vocabulary, k the order of the Markov model that a prediction may begin from.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_domains.dna.encoder import Encoder, EncoderState, ModelConfig
from titans_domains.dna.markov import Markov
from titans_domains.dna.tokenizers import BASES, FIRST_BASE, PAD, DnaTokenizer


def predictable(tokenizer: DnaTokenizer) -> Bool[Tensor, " V"]:
    """True for tokens that are predicted: neither padding and mask, nor what holds an unknown base."""
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    return torch.tensor([bool(piece) and BASES[-1] not in piece for piece in pieces])


class CausalState(NamedTuple):
    encoder: EncoderState
    recent: Int[Tensor, "B k"]  # the last k tokens


class CausalModel(nn.Module):
    """Log-chances of the next token [B, T, V] for tokens [B, T], and the state after them.

    With a Markov model (single bases alone) its log-chances, weighted by what the network makes of the
    place, are added to the network's own logits. Token 0 stands before the first one.
    """

    allowed: Tensor
    table: Tensor

    def __init__(self, config: ModelConfig, tokenizer: DnaTokenizer, order: int = 0) -> None:
        super().__init__()
        if config.direction != "forward":
            raise ValueError(
                f"direction must be 'forward' to predict each next token: got {config.direction!r}."
            )
        if order and tokenizer.kind != "nucleotide":
            raise ValueError(f"order must be 0 for tokens of kind {tokenizer.kind!r}: got {order}.")
        self.config, self.order = config, order
        self.encoder = Encoder(config, tokenizer.vocab_size)
        self.out = nn.Linear(self.encoder.width, tokenizer.vocab_size)
        nn.init.normal_(self.out.weight, std=0.1 * self.encoder.width**-0.5)
        nn.init.zeros_(self.out.bias)
        self.weight = nn.Linear(self.encoder.width, 1) if order else None
        if self.weight is not None:
            # It begins as the Markov model.
            nn.init.zeros_(self.weight.weight)
            nn.init.ones_(self.weight.bias)
        self.register_buffer("allowed", predictable(tokenizer), persistent=False)
        # Contexts are numbered over all five codes, so that an unknown base has a row too.
        self.register_buffer("table", torch.zeros(5**order if order else 0, 4))

    def begin_from(self, markov: Markov) -> None:
        """Takes over a Markov model of the model's order; contexts with an unknown base are even."""
        assert markov.order == self.order
        digits = np.indices((5,) * self.order).reshape(self.order, -1)
        known = (digits < 4).all(0)
        codes = sum(digit * 4 ** (self.order - 1 - i) for i, digit in enumerate(digits))
        table = np.full((5**self.order, 4), np.log(0.25))
        table[known] = np.log(markov.chances[-1][codes[known]])
        self.table.copy_(torch.from_numpy(table))

    def fresh_state(self, batch: int) -> CausalState:
        recent = torch.zeros(batch, self.order, dtype=torch.long, device=self.out.weight.device)
        return CausalState(self.encoder.fresh_state(batch), recent)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        state: CausalState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        begin: Bool[Tensor, " B"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T V"], CausalState]:
        """Rows of `begin` forget their state before the first token."""
        state = state or self.fresh_state(len(tokens))
        hidden, encoder = self.encoder(tokens, mask, state.encoder, begin=begin, write=write)
        logits = self.out(hidden)
        recent = state.recent if begin is None else state.recent.masked_fill(begin[:, None], PAD)
        span = torch.cat([recent, tokens], 1)
        if self.weight is not None:
            start = self.weight(hidden) * self._markov(span, tokens.shape[1])
            logits = logits + F.pad(start, (FIRST_BASE, logits.shape[2] - FIRST_BASE - 4))
        logits = logits.masked_fill(~self.allowed, -torch.inf)
        assert encoder is not None
        recent = span[:, span.shape[1] - self.order :]
        return logits.log_softmax(-1), CausalState(encoder, recent)

    def _markov(self, span: Tensor, time: int) -> Float[Tensor, "B T 4"]:
        codes = torch.where((span >= FIRST_BASE) & (span < FIRST_BASE + 4), span - FIRST_BASE, 4)
        context = torch.zeros_like(codes[:, :time])
        # After token t of the call, the last of the span up to it is the context's last base.
        for place in range(self.order):
            context = context * 5 + codes[:, place + 1 : place + 1 + time]
        return self.table[context]


class MaskedModel(nn.Module):
    """Log-chances of every token [B, T, V] from the tokens on both sides, hidden ones among them."""

    allowed: Tensor

    def __init__(self, config: ModelConfig, tokenizer: DnaTokenizer) -> None:
        super().__init__()
        if config.direction != "both" or config.stem.pool != 1:
            raise ValueError(
                "direction must be 'both' and stem.pool 1 to predict hidden tokens: got "
                f"{config.direction!r} and {config.stem.pool}."
            )
        if tokenizer.kind == "kmer":
            raise ValueError(
                "A masked model needs tokens that share no base, as the neighbours of a hidden k-mer "
                "spell it out: take data.tokenizer=nucleotide, got kmer."
            )
        self.config = config
        self.encoder = Encoder(config, tokenizer.vocab_size)
        self.out = nn.Linear(self.encoder.width, tokenizer.vocab_size)
        self.register_buffer("allowed", predictable(tokenizer), persistent=False)

    def forward(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        hidden, _ = self.encoder(tokens, mask)
        return self.out(hidden).masked_fill(~self.allowed, -torch.inf).log_softmax(-1)


def hide(
    tokens: Int[Tensor, "B T"], allowed: Bool[Tensor, " V"], mask_id: int, share: float
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Tokens with a share of the predictable ones chosen, and which: of ten eight are hidden, one is
    another token, one stays (as BERT has it)."""
    chosen = (torch.rand(tokens.shape, device=tokens.device) < share) & allowed[tokens]
    lot = torch.rand(tokens.shape, device=tokens.device)
    choices = allowed.nonzero()[:, 0]
    other = choices[torch.randint(len(choices), tokens.shape, device=tokens.device)]
    hidden = torch.where(chosen & (lot < 0.8), mask_id, tokens)
    return torch.where(chosen & (lot >= 0.9), other, hidden), chosen


def target_nats(
    log_chances: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """What each target costs."""
    return -log_chances.gather(-1, targets[..., None])[..., 0]
