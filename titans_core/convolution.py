"""Depthwise causal convolution over time that can be fed in pieces. B batch, T time, C channels."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """Each channel's weighted sum of its last `size` values; never across the start of a document."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        # Torch's own start for a depthwise kernel: uniform within 1 / sqrt(size).
        self.weight = nn.Parameter(torch.empty(channels, size).uniform_(-(size**-0.5), size**-0.5))

    def fresh_tail(self, batch: int, like: Tensor) -> Float[Tensor, "B S C"]:
        return like.new_zeros(batch, self.size - 1, self.weight.shape[0])

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        tail: Float[Tensor, "B S C"],
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B S C"]]:
        """The outputs, and the last `size - 1` inputs of the document that each row is in."""
        time = x.shape[1]
        span = torch.cat([tail.to(x.dtype), x], 1)
        if reset is None:
            y = F.conv1d(span.mT, self.weight[:, None], groups=self.weight.shape[0]).mT
            document = None
        else:
            document = F.pad(reset.long().cumsum(1), (self.size - 1, 0))  # [B, S + T]
            y = torch.zeros_like(x)
            for lag in range(self.size):
                first = self.size - 1 - lag
                same = document[:, first : first + time] == document[:, self.size - 1 :]
                y = y + span[:, first : first + time] * self.weight[:, first] * same[..., None]
        return y, self._next_tail(span, mask, document)

    def _next_tail(self, span: Tensor, mask: Tensor | None, document: Tensor | None) -> Tensor:
        """The last inputs before each row's padding, zero where they belong to another document."""
        keep = self.size - 1
        batch, length, channels = span.shape
        if mask is None and document is None:
            return span[:, length - keep :]
        time = length - keep
        index = torch.arange(1, time + 1, device=span.device)
        end = index.expand(batch, time) if mask is None else index * mask
        end = end.amax(1) if time else end.new_zeros(batch)
        take = end[:, None] + torch.arange(keep, device=span.device)  # [B, S]
        tail = span.gather(1, take[..., None].expand(-1, -1, channels))
        if document is None:
            return tail
        same = document.gather(1, take) == document[:, -1:]
        return torch.where(same[..., None], tail, 0)
