"""From hidden states at places to one vector or score for a sequence, by a head that knows position.

B batch, T tokens, P places, V vocabulary, C channels, K slots.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    positions: int = 256  # first tokens whose position is known; later ones are pooled alone
    slots: int = 4  # weighted means, each with weights of its own for content and position
    place_channels: int = 16  # channels that each place hands on by itself; 0 for none
    hidden: int = 64  # width of the layer before the classes
    linear: bool = True  # a score for each token at each position, beside the network
    kmers: int = (
        6  # a score for each run of up to so many bases, wherever it is; of single bases alone
    )

    def __post_init__(self) -> None:
        for name in ("positions", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"head.{name} must be at least 1: got {getattr(self, name)}.")
        for name in ("slots", "place_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"head.{name} must be 0 or more: got {getattr(self, name)}.")
        if not 0 <= self.kmers <= 8:
            raise ValueError(f"head.kmers must be between 0 and 8 bases: got {self.kmers}.")


def first(x: Float[Tensor, "B P C"], count: int) -> Float[Tensor, "B N C"]:
    """The first `count` places, with zeros where a sequence is shorter."""
    return F.pad(x[:, :count], (0, 0, 0, max(0, count - x.shape[1])))


class Pooling(nn.Module):
    """One vector for a sequence of any length: largest values, weighted means, and each place by itself.

    A weighted mean's weights come of what stands at a place, of its distance from the sequence's start
    and of that from its end. Places beyond the last known position count as being there.
    """

    def __init__(self, width: int, places: int, config: HeadConfig, dropout: float) -> None:
        super().__init__()
        self.places, self.slots = places, config.slots
        if config.slots:
            self.content = nn.Linear(width, config.slots)
            self.from_start = nn.Parameter(torch.zeros(places, config.slots))
            self.from_end = nn.Parameter(torch.zeros(places, config.slots))
        self.narrow = self.by_place = None
        if config.place_channels:
            self.narrow = nn.Linear(width, config.place_channels)
            self.by_place = nn.Linear(places * config.place_channels, config.hidden)
        self.dropout = nn.Dropout(dropout)
        self.width = width * (1 + config.slots) + config.hidden * bool(config.place_channels)

    def forward(
        self, x: Float[Tensor, "B P C"], mask: Bool[Tensor, "B P"] | None
    ) -> Float[Tensor, "B W"]:
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        parts = [x.masked_fill(~mask[..., None], -torch.inf).amax(1)]
        if self.slots:
            parts.append((self._weights(x, mask).mT @ x).flatten(1))
        if self.narrow is not None and self.by_place is not None:
            # A bias would tell padding from the lack of it.
            narrow = self.narrow(x).masked_fill(~mask[..., None], 0)
            places = self.dropout(first(narrow, self.places).flatten(1))
            parts.append(F.gelu(self.by_place(places)))
        return torch.cat(parts, 1)

    def _weights(self, x: Tensor, mask: Tensor) -> Float[Tensor, "B P K"]:
        index = torch.arange(x.shape[1], device=x.device)
        back = (mask.sum(1, keepdim=True) - 1 - index).clamp(0, self.places - 1)
        score = self.content(x) + self.from_start[index.clamp_max(self.places - 1)]
        score = score + self.from_end[back]
        return score.masked_fill(~mask[..., None], -torch.inf).softmax(1)


class Linear(nn.Module):
    """A score for every token at each of the first positions, summed: logistic regression on one-hot."""

    def __init__(self, vocab_size: int, positions: int, outputs: int) -> None:
        super().__init__()
        self.positions = positions
        self.weight = nn.Parameter(torch.zeros(positions, vocab_size, outputs))

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
        scale: Float[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B outputs"]:
        tokens = tokens[:, : self.positions]
        index = torch.arange(tokens.shape[1], device=tokens.device)
        scores = self.weight[index, tokens]
        for factor in (mask, scale):
            if factor is not None:
                scores = scores * factor[:, : self.positions, None]
        return scores.sum(1)


GAIN = 10.0
"""Of the scores of k-mers, whose frequencies are small, so that they learn as fast as the network."""


class KmerBag(nn.Module):
    """A score for every k-mer of up to `longest` bases: logistic regression on their frequencies.

    Frequencies are 1 + log of the counts, of length 1 for each sequence (sublinear tf). Tokens are those
    of single bases, from `first_base` on; k-mers with another token in them do not count.
    """

    def __init__(self, longest: int, outputs: int, first_base: int) -> None:
        super().__init__()
        self.longest, self.first_base = longest, first_base
        self.weight = nn.Parameter(torch.zeros(sum(4**k for k in range(1, longest + 1)), outputs))

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
        scale: Float[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B outputs"]:
        counts = self.counts(tokens, mask, scale)
        # Where a k-mer is absent the logarithm is of 1, so that its gradient is finite.
        seen = counts > 0
        frequency = (1 + torch.where(seen, counts, 1).log()) * seen
        frequency = frequency * torch.rsqrt(frequency.square().sum(1, keepdim=True) + 1e-12)
        return GAIN * frequency @ self.weight

    def counts(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None,
        scale: Float[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B K"]:
        """How often each k-mer stands in each row; each time counts as the mean scale of its bases."""
        codes = tokens - self.first_base
        known = (codes >= 0) & (codes < 4)
        if mask is not None:
            known = known & mask
        weight = torch.ones_like(codes, dtype=self.weight.dtype) if scale is None else scale
        found = weight.new_zeros(len(tokens), len(self.weight))
        number, complete, total, offset = codes, known, weight, 0
        for k in range(1, self.longest + 1):
            if k > 1:
                number = number[:, :-1] * 4 + codes[:, k - 1 :]
                complete = complete[:, :-1] & known[:, k - 1 :]
                total = total[:, :-1] + weight[:, k - 1 :]
            places = offset + number.where(complete, 0)
            found = found.scatter_add(1, places, (total / k).where(complete, 0))
            offset += 4**k
        return found
