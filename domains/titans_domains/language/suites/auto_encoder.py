"""The model of MAD's compression: a row through one state of the backbone and out again."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core import BackboneConfig, build_backbone


class AutoEncoder(nn.Module):
    """Logits of every token of a row, each from the hidden state of its last one and a place alone.

    No causal model of the next token: what is given at a place has seen all of the row. So a row is read
    whole, and a state is not gone on from.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int) -> None:
        super().__init__()
        dim = config.dim
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.backbone = build_backbone(config)
        self.decoder = nn.Sequential(
            nn.RMSNorm(dim, eps=1e-5), nn.Linear(dim, dim), nn.GELU(),
            nn.RMSNorm(dim, eps=1e-5), nn.Linear(dim, dim), nn.GELU(),
            nn.RMSNorm(dim, eps=1e-5), nn.Linear(dim, vocab_size),
        )  # fmt: skip

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        state: Any = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T V"], Any]:
        if state is not None:
            raise ValueError(
                "state must be None: an auto-encoder reads a row as a whole. Give all of it at once."
            )
        rows, time = tokens.shape
        hidden, state = self.backbone(self.embedding(tokens), mask=mask)
        ends = torch.full((rows,), time) if mask is None else mask.sum(1)
        code = hidden[torch.arange(rows, device=hidden.device), ends.to(hidden.device) - 1]
        return self.decoder(code[:, None] + place_waves(time, code)), state


def place_waves(time: int, like: Float[Tensor, "B dim"]) -> Float[Tensor, "T dim"]:
    """Sines and cosines of each place, of wavelengths from 2 pi to 20,000 pi."""
    half = -(-like.shape[1] // 2)
    rates = torch.exp(torch.arange(half) * (-math.log(10_000) / max(1, half - 1)))
    angles = torch.arange(time)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, : like.shape[1]].to(like)
