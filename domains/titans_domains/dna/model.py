"""The classifier's network: an encoder, a head that knows position, and linear models beside them.

B batch, T tokens, C outputs: classes, or labels that may hold together.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_domains.dna.encoder import Encoder, ModelConfig, reverse
from titans_domains.dna.heads import KmerBag, Linear, Pooling
from titans_domains.dna.tokenizers import FIRST_BASE, DnaTokenizer, NucleotideTokenizer


class SequenceNetwork(nn.Module):
    """Logits [B, C] of padded tokens, which are the same however far a sequence is padded.

    Only strands="one" goes without tokens that have a complement.
    """

    complement: Tensor

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: DnaTokenizer,
        outputs: int,
    ) -> None:
        super().__init__()
        self.config, self.outputs = config, outputs
        vocab_size, complement = tokenizer.vocab_size, tokenizer.complement
        if config.strands != "one" and complement is None:
            raise ValueError(
                f"strands must be 'one' for tokens that have no complement: got {config.strands!r}. "
                "Single bases and k-mers of stride 1 have one."
            )
        ids = torch.empty(0, dtype=torch.long)
        if complement is not None:
            ids = torch.from_numpy(complement).long()
        self.register_buffer("complement", ids, persistent=False)
        head = config.head
        self.encoder = Encoder(config, vocab_size)
        places = -(-head.positions // config.stem.pool)
        self.pooling = Pooling(self.encoder.width, places, head, config.dropout)
        # Pooled features are all positive: uncentred, a few steps can drive every hidden unit to zero.
        self.norm = nn.LayerNorm(self.pooling.width)
        self.hidden = nn.Linear(self.pooling.width, head.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(head.hidden, outputs)
        self.linear = Linear(vocab_size, head.positions, outputs) if head.linear else None
        bases = tokenizer.kind == NucleotideTokenizer.kind
        self.bag = KmerBag(head.kmers, outputs, FIRST_BASE) if head.kmers and bases else None

    def other_strand(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None
    ) -> Int[Tensor, "B T"]:
        """The reverse complement of each row; padding stays on the right."""
        return reverse(self.complement[tokens], mask)

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
        scale: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """The vector that the last layer sees, which is the sequence's embedding."""
        return self._read(tokens, mask, scale)[0]

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"] | None = None,
        scale: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Logits; in training under strands="average", of either strand of each row by chance.

        `scale` multiplies each token's input: the gradient by it at 1 is input times gradient.
        """
        hidden, linear = self._read(tokens, mask, scale)
        return self.out(self.dropout(hidden)) + linear

    def _read(
        self, tokens: Tensor, mask: Tensor | None, scale: Tensor | None
    ) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B C"]]:
        """What comes of the strand or strands that are read, before the last layer."""
        if self.config.strands == "one":
            return self._strand(tokens, mask, scale)
        other = self.other_strand(tokens, mask)
        if self.training and self.config.strands == "average":
            turned = torch.rand(len(tokens), 1, device=tokens.device) < 0.5
            return self._strand(torch.where(turned, other, tokens), mask, scale)
        # The last layer and the linear models add up, so their means are those of the logits.
        back = None if scale is None else reverse(scale, mask)
        here, there = self._strand(tokens, mask, scale), self._strand(other, mask, back)
        return (here[0] + there[0]) / 2, (here[1] + there[1]) / 2

    def _strand(
        self, tokens: Tensor, mask: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = self.encoder.embedding(tokens)
        if scale is not None:
            x = x * scale[..., None]
        hidden, _ = self.encoder.from_embedded(x, mask)
        pooled = self.pooling(hidden, self.encoder.stem.pool_mask(mask))
        hidden = F.gelu(self.hidden(self.dropout(self.norm(pooled))))
        score = hidden.new_zeros(len(tokens), self.outputs)
        for part in (self.linear, self.bag):
            if part is not None:
                score = score + part(tokens, mask, scale)
        return hidden, score
