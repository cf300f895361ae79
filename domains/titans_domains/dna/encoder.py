"""From tokens to hidden states at places: embedding, stem, and the backbone in one direction or both.

B batch, T tokens, P places after the stem's pooling, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core import Backbone, BackboneConfig, MemoryConfig
from titans_core.presets import LAPTOP
from titans_domains.dna.heads import HeadConfig
from titans_domains.dna.stem import Stem, StemConfig, blank

ONE_HOT = 16
"""Vocabularies up to this size are embedded in as many numbers, and begin as one-hot."""


Strands = Literal["one", "average", "equivariant"]
Direction = Literal["both", "forward"]


SMALL = BackboneConfig(
    dim=32, num_layers=1, memory=MemoryConfig(num_heads=4, expansion=2), hybrid=LAPTOP
)
"""For sequences of some hundred bases on a laptop."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    stem: StemConfig = field(default_factory=StemConfig)
    backbone: BackboneConfig = SMALL
    head: HeadConfig = field(default_factory=HeadConfig)
    direction: Direction = "both"  # what a place knows: both sides of it, or what stands before it
    # one: the strand that is given is read. average: either strand in training, the mean of both in
    # prediction. equivariant: the mean of both in training too.
    strands: Strands = "one"
    dropout: float = 0.2  # share of numbers that training leaves out

    def __post_init__(self) -> None:
        for name, allowed in (("direction", get_args(Direction)), ("strands", get_args(Strands))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}: got {getattr(self, name)!r}."
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1: got {self.dropout}.")
        if self.direction == "forward" and self.stem.pool > 1:
            raise ValueError(
                f"stem.pool must be 1 where direction is 'forward': got {self.stem.pool}."
            )


class EncoderState(NamedTuple):
    tails: tuple[Tensor, ...]  # of the stem's convolutions
    backbone: tuple[Any, ...]


def reverse(
    x: Float[Tensor, "B T *C"] | Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None
) -> Tensor:
    """Each row from its last token to its first; padding stays on the right."""
    if mask is None:
        return x.flip(1)
    index = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    mirrored = mask.sum(1, keepdim=True) - 1 - index
    index = torch.where(mask, mirrored, index)
    return x.gather(1, index.reshape(*index.shape, *(1,) * (x.ndim - 2)).expand_as(x))


class Encoder(nn.Module):
    """Hidden states [B, P, dim], and the state after them where it reads forward.

    In both directions one backbone reads the sequence and its mirror image, told apart by a learned
    vector, and the two readings of a place are added.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        causal = config.direction == "forward"
        dim = config.backbone.dim
        one_hot = vocab_size <= ONE_HOT and bool(config.stem.size)
        self.embedding = nn.Embedding(vocab_size, vocab_size if one_hot else dim)
        if one_hot:
            nn.init.eye_(self.embedding.weight)
        else:
            nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        width = self.embedding.embedding_dim
        self.stem = Stem(width, config.stem, causal=causal, dropout=config.dropout)
        self.into = nn.Linear(self.stem.width, dim, bias=False)
        self.backbone = Backbone(config.backbone)
        self.side = None if causal else nn.Parameter(torch.zeros(2, dim))
        self.width = self.stem.width + dim

    def fresh_state(self, batch: int) -> EncoderState:
        return EncoderState(self.stem.fresh_state(batch), self.backbone.fresh_state(batch))

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
        state: EncoderState | None = None,
        *,
        begin: Bool[Tensor, " B"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B P D"], EncoderState | None]:
        """Hidden states; rows of `begin` forget their state before the first token."""
        x = self.embedding(tokens)
        return self.from_embedded(x, mask, state, begin=begin, write=write)

    def from_embedded(
        self,
        x: Float[Tensor, "B T C"],
        mask: Bool[Tensor, "B T"] | None = None,
        state: EncoderState | None = None,
        *,
        begin: Bool[Tensor, " B"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B P D"], EncoderState | None]:
        """What comes of embedded tokens, or of mixtures of them."""
        tails = None if state is None else state.tails
        reset = None
        if begin is not None and tails is not None:
            tails = tuple(tail.masked_fill(begin[:, None, None], 0) for tail in tails)
            reset = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            reset[:, 0] = begin
        x, tails = self.stem(blank(x, mask), mask, tails)
        mask = self.stem.pool_mask(mask)
        hidden = self.into(x)
        if self.side is None:
            inner = None if state is None else state.backbone
            y, inner = self.backbone(hidden, inner, mask=mask, reset=reset, write=write)
            state = EncoderState(tails, inner)
        else:
            if state is not None:
                raise ValueError(
                    "A model that reads in both directions has no state to go on from."
                )
            y = self._both(hidden, mask)
        # Motifs go on beside what the backbone made of their order.
        return blank(torch.cat([x, y], -1), mask), state

    def _both(self, x: Tensor, mask: Tensor | None) -> Tensor:
        assert self.side is not None
        sides = torch.cat([x + self.side[0], reverse(x, mask) + self.side[1]])
        masks = None if mask is None else torch.cat([mask, mask])
        there, back = self.backbone(sides, mask=masks)[0].chunk(2)
        return there + reverse(back, mask)
