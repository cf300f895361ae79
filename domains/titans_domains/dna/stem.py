"""What stands before the backbone: a convolution as wide as motifs, pooling, more convolutions.

B batch, T tokens, P places after pooling, C channels, S earlier tokens. Padding stands on the right of
each sequence and is zero after every layer, so a sequence does not know how far it was padded.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

INNER_SIZE = 5
"""Places that the convolutions after the first see."""
MOST_DEPTH = 64
"""Far beyond what anybody trains: a file that asks for more is not one to build a model from."""


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    size: int = 11  # tokens that the first convolution sees, odd; 0 for no convolution
    pool: int = 4  # tokens that become one place, by their largest values
    depth: int = 2  # convolutions, the first one among them
    channels: int = 64  # width of the convolutions

    def __post_init__(self) -> None:
        if self.size < 0 or (self.size and self.size % 2 == 0):
            raise ValueError(f"stem.size must be odd, or 0 for no convolution: got {self.size}.")
        for name in ("depth", "channels", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"stem.{name} must be at least 1: got {getattr(self, name)}.")

        if self.depth > MOST_DEPTH:
            raise ValueError(f"stem.depth must be at most {MOST_DEPTH}: got {self.depth}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens, then places, that each convolution sees."""
        return (self.size, *[INNER_SIZE] * (self.depth - 1)) if self.size else ()


def blank(x: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T C"]:
    """Zero on padding."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of [B, T, C], in training by the mean and variance of what is not padding."""

    def forward(
        self, x: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T C"]:
        if mask is None or not self.training:
            return super().forward(x.flatten(0, 1)).view_as(x)
        normed = torch.zeros_like(x)
        normed[mask] = super().forward(x[mask])
        return normed


class Convolution(nn.Module):
    """Convolution, norm, ReLU: [B, T, inputs] to [B, T, channels].

    Batch norm: a norm of each token by itself hides how well a motif fits. A causal convolution sees no
    later token, and nothing of a batch either, so it has no norm. It can be fed in pieces: `tail` is
    what stood before, and what stands before the next piece comes back.
    """

    def __init__(self, inputs: int, channels: int, size: int, *, causal: bool) -> None:
        super().__init__()
        self.before = size - 1 if causal else size // 2
        self.after = size - 1 - self.before
        self.conv = nn.Conv1d(inputs, channels, size)
        self.norm = None if causal else MaskedBatchNorm(channels)

    def fresh_tail(self, batch: int) -> Float[Tensor, "B S C"]:
        return self.conv.weight.new_zeros(batch, self.before, self.conv.in_channels)

    def forward(
        self, x: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"] | None, tail: Tensor
    ) -> tuple[Float[Tensor, "B T D"], Tensor]:
        span = F.pad(torch.cat([tail.to(x.dtype), x], 1), (0, 0, 0, self.after))
        y = self.conv(span.mT).mT
        y = y if self.norm is None else self.norm(y, mask)
        return blank(F.relu(y), mask), span[:, x.shape[1] : x.shape[1] + self.before]


class Stem(nn.Module):
    """A convolution over tokens, the largest value of each `pool` of them, then convolutions over these
    places, each added to what it reads."""

    def __init__(self, inputs: int, config: StemConfig, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.config = config
        widths = [inputs, *[config.channels] * len(config.sizes)]
        self.convolutions = nn.ModuleList(
            Convolution(width, config.channels, size, causal=causal)
            for width, size in zip(widths, config.sizes, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.width = widths[-1]

    def fresh_state(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(layer.fresh_tail(batch) for layer in self.convolutions)  # type: ignore[operator]

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        mask: Bool[Tensor, "B T"] | None = None,
        state: tuple[Tensor, ...] | None = None,
    ) -> tuple[Float[Tensor, "B P D"], tuple[Tensor, ...]]:
        if not self.convolutions:
            return self._pool(x, mask), ()
        first, *others = self.convolutions
        tail, *tails = state or self.fresh_state(len(x))
        y, tail = first(x, mask, tail)
        x = self.dropout(self._pool(y, mask))
        mask, after = self.pool_mask(mask), [tail]
        for layer, tail in zip(others, tails, strict=True):
            y, tail = layer(x, mask, tail)
            x = self.dropout(x + y)
            after.append(tail)
        return x, tuple(after)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.pool == 1:
            return x
        if mask is not None:
            x = x.masked_fill(~mask[..., None], -torch.inf)
        x = F.max_pool1d(x.mT, self.config.pool, ceil_mode=True).mT
        return blank(x, self.pool_mask(mask))

    def pool_mask(self, mask: Bool[Tensor, "B T"] | None) -> Bool[Tensor, "B P"] | None:
        """True on places that hold a token."""
        return mask if mask is None else mask[:, :: self.config.pool]
