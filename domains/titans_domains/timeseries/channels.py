"""Channels that attend to each other beside a mixer over time.

R rows, every channel C of every series B, T time, H heads, D width of a head.
"""

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from titans_core import MIXERS, BackboneConfig, Mixer


def with_channels(channels: int) -> Callable[[BackboneConfig], nn.Module]:
    """Builds a backbone's mixers with a mixer of channels beside each; its rows are [B C]."""
    return lambda config: ChannelMixer(MIXERS[config.mixer](config), config, channels)


class ChannelMixer(nn.Module):
    """A mixer over time, plus attention of the channels to each other at the same token.

    It stays causal, and its state is that of the mixer over time. Channels have no order: what tells
    them apart is in their tokens.
    """

    def __init__(self, mixer: nn.Module, config: BackboneConfig, channels: int) -> None:
        super().__init__()
        heads = config.attention.num_heads
        if config.dim % heads:
            raise ValueError(
                f"dim must be a multiple of attention.num_heads = {heads}: got {config.dim}."
            )
        self.time, self.channels, self.heads = mixer, channels, heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    @property
    def _mixer(self) -> Mixer:
        return cast(Mixer, self.time)

    def fresh_state(self, batch: int) -> Any:
        return self._mixer.fresh_state(batch)

    def restart_memory(self, state: Any) -> Any:
        return self._mixer.restart_memory(state)

    def restart_caches(self, state: Any) -> Any:
        return self._mixer.restart_caches(state)

    def forward(self, x: Tensor, state: Any = None, **context: Any) -> tuple[Tensor, Any]:
        y, state = self._mixer(x, state, **context)
        return y + self._attend(x), state

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(0, (-1, self.channels)).unflatten(-1, (self.heads, -1)).transpose(1, 3)
            for part in self.qkv(x).chunk(3, -1)
        )  # [B, H, T, C, D]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 3).flatten(3).flatten(0, 1))
