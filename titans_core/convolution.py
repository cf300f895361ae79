"""Depthwise causal convolution over time that can be fed in pieces.

B batch, T time, C channels, S = size - 1 earlier inputs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
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
        start: Float[Tensor, "1 S C"] | None = None,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B S C"]]:
        """The outputs, and the last `size - 1` inputs of the document that each row is in.

        `start` is what stands before a document that begins at a reset: zeros where it is None.
        """
        keep, time = self.size - 1, x.shape[1]
        span = torch.cat([tail.to(x.dtype), x], 1)
        if reset is None or time == 0:
            y = torch.zeros_like(x)
            if time:
                y = F.conv1d(span.mT, self.weight[:, None], groups=self.weight.shape[0]).mT
            return y, last_written(span, keep, mask)
        before = tail.new_zeros(1, keep, x.shape[2]) if start is None else start
        # Token t has `since[t]` earlier tokens in its document, or more than the kernel reaches.
        index = torch.arange(time, device=x.device)
        first = index.where(reset, -self.size).cummax(1).values
        since = torch.where(first >= 0, index - first, self.size)
        y = torch.zeros_like(x)
        for lag in range(self.size):
            value = span[:, keep - lag : keep - lag + time]
            if lag > 0:
                value = torch.where((since < lag)[..., None], earlier(before, lag - since), value)
            y = y + value * self.weight[:, keep - lag]
        return y, self._tail(span, mask, first[:, -1:], before)

    def _tail(
        self, span: Tensor, mask: Tensor | None, first: Tensor, before: Tensor
    ) -> Float[Tensor, "B S C"]:
        """The last inputs of the document that began at token `first` of the call."""
        keep = self.size - 1
        index = torch.arange(span.shape[1], device=span.device).expand(len(span), -1) - keep
        missing = first - last_written(index[..., None], keep, mask)[..., 0]
        # Of a document that is all padding, nothing was written after its first token.
        missing = missing - (missing[:, -1:] - 1).clamp_min(0)
        tail = last_written(span, keep, mask)
        began = (first >= 0) & (missing > 0)
        return torch.where(began[..., None], earlier(before, missing), tail)


def earlier(before: Float[Tensor, "1 S C"], lag: Tensor) -> Tensor:
    """What stood `lag` tokens before a document's first one: [B, T, C] for lags [B, T]."""
    size = before.shape[1]
    return before[0, (size - lag).clamp(0, size - 1)]


def last_written(
    span: Shaped[Tensor, "B L *C"], keep: int, mask: Bool[Tensor, "B T"] | None
) -> Shaped[Tensor, "B S *C"]:
    """The last `keep` of each row before its padding; the last T of the span are what mask covers."""
    if mask is None:
        # A copy: a view would hold all of the span for as long as the state is kept.
        return span[:, span.shape[1] - keep :].clone()
    time = mask.shape[1]
    index = torch.arange(1, time + 1, device=span.device)
    end = (index * mask).amax(1) if time else index.new_zeros(len(span))
    take = (span.shape[1] - time - keep) + end[:, None] + torch.arange(keep, device=span.device)
    take = take.reshape(*take.shape, *(1,) * (span.ndim - 2))
    return span.gather(1, take.expand(-1, -1, *span.shape[2:]))
