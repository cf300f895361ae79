"""The network with an output on it: its loss on windows and on streams, and GluonTS's way to call it.

B batch, L steps of context, S steps of a stream after it, H of the horizon, C channels, N patches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gluonts.torch.distributions import Output, QuantileOutput
from torch import Tensor, nn

from titans_domains.timeseries.network import ForecastNetwork
from titans_domains.timeseries.network_config import NetworkConfig
from titans_domains.timeseries.outputs import arguments, located, sizes
from titans_domains.timeseries.scaling import normalise
from titans_domains.timeseries.series import SeriesSpec
from titans_domains.timeseries.windows import Batch

FARTHEST = 50.0
"""Target, in units of the scale, beyond which an error counts no more: after a constant window every
change is thousands of scales away."""


def network_config(spec: SeriesSpec, output: Output, **settings: Any) -> NetworkConfig:
    """The network for series of this kind; `settings` are what neither series nor output decide."""
    return NetworkConfig(
        prediction_length=spec.prediction_length,
        context_length=spec.context_length,
        channels=spec.channels,
        outputs=sum(sizes(output)),
        located=located(output),
        num_lags=len(spec.lags_seq),
        num_feat_dynamic_real=spec.known,
        num_past_feat_dynamic_real=spec.num_past_feat_dynamic_real,
        num_feat_static_real=spec.num_feat_static_real,
        cardinality=spec.cardinality,
        **settings,
    )


class Forecaster(nn.Module):
    """Distributions for the steps after a window; missing values are NaN."""

    def __init__(self, config: NetworkConfig, output: Output) -> None:
        super().__init__()
        self.network = ForecastNetwork(config)
        self.output = output

    @property
    def config(self) -> NetworkConfig:
        return self.network.config

    def forward(
        self,
        past_target: Tensor,
        past_features: Tensor | None = None,
        future_features: Tensor | None = None,
        feat_static_real: Tensor | None = None,
        feat_static_cat: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Arguments of the output, location and scale, as GluonTS's forecast generators want them.

        A target [B, L] gives arguments [B, H]; one of several channels [B, L, C] gives [B, H, C].
        """
        several = past_target.ndim == 3
        past = past_target if several else past_target[..., None]
        numbers, loc, scale = self.network(
            past.nan_to_num(),
            ~past.isnan(),
            past_features=past_features,
            future_features=future_features,
            static_real=feat_static_real,
            static_cat=feat_static_cat,
        )
        return self.shaped(numbers, loc, scale, several)

    def shaped(
        self, numbers: Tensor, loc: Tensor, scale: Tensor, several: bool
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The network's numbers [B, H, C, P] as arguments; without the channel where there is one."""
        if isinstance(self.output, QuantileOutput):
            # Levels are learned one by one, and may cross.
            numbers = numbers.sort(-1).values
        args = arguments(self.output, numbers)
        if several:
            return args, loc, scale
        return tuple(part.squeeze(2) for part in args), loc.squeeze(2), scale.squeeze(2)

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the observed steps after each window."""
        return self.counted_loss(batch)[0]

    def counted_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean, and over how many numbers."""
        length = self.config.context_length
        past, future = batch["target"].tensor_split([length], 1)
        seen = ~past.isnan()
        numbers, loc, scale = self.network(
            past.nan_to_num(),
            seen,
            past_features=self.past_features(batch, length),
            future_features=self.known(batch, length),
            static_real=batch.get("static_real"),
            static_cat=batch.get("static_cat"),
        )
        return self.mean_loss(numbers, future, loc, scale, seen.any(1, keepdim=True))

    def stream_loss(self, batch: Batch) -> Tensor:
        """Mean over the observed steps after every patch from the end of the context on.

        The stream is read as a carried one will be: from a fresh memory, with the scale of the first
        context throughout.
        """
        return self.counted_stream_loss(batch)[0]

    def counted_stream_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean, and over how many numbers."""
        config = self.config
        size, horizon, length = config.patch_len, config.prediction_length, config.context_length
        steps = batch["target"].shape[1] - horizon
        past = batch["target"][:, :steps]
        seen = ~past.isnan()
        loc, scale = self.network.scale(past[:, :length].nan_to_num(), seen[:, :length])
        filled = -steps % size
        numbers, _ = self.network.read(
            past.nan_to_num(),
            seen,
            loc=loc,
            scale=scale,
            past_features=self.past_features(batch, steps),
            future_features=self.known(batch, size - filled),
            static_real=batch.get("static_real"),
            static_cat=batch.get("static_cat"),
        )
        ahead = batch["target"][:, size - filled :].unfold(1, horizon, size)  # [B, N, C, H]
        first = math.ceil(length / size) - 1
        numbers, ahead = numbers[:, first:].flatten(0, 1), ahead[:, first:].mT.flatten(0, 1)
        count = len(ahead) // len(past)
        begun = seen[:, :length].any(1, keepdim=True)
        loc, scale, begun = (x.repeat_interleave(count, 0) for x in (loc, scale, begun))
        return self.mean_loss(numbers, ahead, loc, scale, begun)

    def mean_loss(
        self, numbers: Tensor, future: Tensor, loc: Tensor, scale: Tensor, begun: Tensor
    ) -> tuple[Tensor, Tensor]:
        """In units of the scale, so that every series weighs the same; `begun` is False without a past."""
        counted = ~future.isnan() & begun
        target = normalise(future.nan_to_num(), counted, loc, scale).clamp(-FARTHEST, FARTHEST)
        loss = self.output.loss(target, arguments(self.output, numbers))
        count = counted.sum()
        return loss.masked_fill(~counted, 0).sum() / count.clamp(min=1), count

    @staticmethod
    def past_features(batch: Batch, steps: int) -> Tensor | None:
        parts = [batch[name][:, :steps] for name in ("lags", "known", "past_only") if name in batch]
        return torch.cat(parts, -1) if parts else None

    @staticmethod
    def known(batch: Batch, first: int) -> Tensor | None:
        return batch["known"][:, first:] if "known" in batch else None
