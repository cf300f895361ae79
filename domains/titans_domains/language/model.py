"""A language model: token embedding, backbone, and the embedding again as the output layer."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core import BackboneConfig, build_backbone


class LanguageModel(nn.Module):
    """Logits of the next token [B, T, vocab] for tokens [B, T], and the state after them."""

    def __init__(self, config: BackboneConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.backbone = build_backbone(config)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        state: Any = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T V"], Any]:
        hidden, state = self.backbone(
            self.embedding(tokens), state, mask=mask, reset=reset, write=write
        )
        return F.linear(hidden, self.embedding.weight), state


def next_token_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None
) -> Float[Tensor, ""]:
    """Mean nats per token that is not padding."""
    if mask is not None:
        targets = targets.masked_fill(~mask, -100)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten(), ignore_index=-100)


@torch.no_grad()
def token_nats(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """What each target costs, in float64 nats."""
    return F.cross_entropy(logits.mT.double(), targets, reduction="none")
