"""The forecasting network: patches into a backbone, and a linear path beside it.

B batch, L steps of the past, H of the future, C channels, P outputs per step, N patches, F features,
R rows of the backbone: every channel of every series, R = B C.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core import Backbone
from titans_domains.timeseries.channels import with_channels
from titans_domains.timeseries.network_config import Given, NetworkConfig
from titans_domains.timeseries.scaling import fill_gaps, normalise, window_scale

__all__ = ["ForecastNetwork", "ForecastState", "NetworkConfig"]


class ForecastState(NamedTuple):
    """What a stream carries: the backbone's state and, for the linear path, the last window."""

    backbone: Any
    values: Float[Tensor, "R L"]  # normalised
    observed: Bool[Tensor, "R L"]


class ForecastNetwork(nn.Module):
    """Forecasts in normalised units, of a window or, in a stream, after every patch.

    What the backbone adds starts at zero, so a new network is its linear path: the last value, until
    `start_at` is given the weights of a fitted map.
    """

    # Decay would draw a fitted map to zero.
    no_decay = ("linear",)

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dim, steps = config.model.dim, config.prediction_length
        self.linear = nn.Linear(config.context_length, steps, bias=False)
        self.embed = nn.Linear(config.patch_len * (2 + config.num_past_features), dim)
        self.dropout = nn.Dropout(config.dropout)
        self.categories = nn.ModuleList(
            nn.Embedding(count, size)
            for count, size in zip(config.cardinality, config.embeddings, strict=True)
        )
        static = config.num_feat_static_real + sum(config.embeddings)
        self.static = nn.Linear(static, dim, bias=False) if static else None
        mixed = config.mixing == "channels"
        self.channel = nn.Parameter(torch.randn(config.channels, dim) * 0.1) if mixed else None
        self.backbone = Backbone(config.model, with_channels(config.channels) if mixed else None)
        self.head = nn.Linear(dim, steps * config.outputs)
        self.future = FutureHead(config) if config.num_feat_dynamic_real else None
        for weight in (self.linear.weight, self.head.weight, self.head.bias):
            nn.init.zeros_(weight)

    @torch.no_grad()
    def start_at(self, weight: Float[Tensor, "H L"]) -> None:
        """Makes the linear path this map, of the past less its last value (see `linear.py`)."""
        if weight.shape != self.linear.weight.shape:
            raise ValueError(
                f"weight must have shape [H, L] = {list(self.linear.weight.shape)}: got "
                f"{list(weight.shape)}."
            )
        self.linear.weight.copy_(weight)

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """Makes what is added to the linear path `share` times as large."""
        for layer in (self.head, *(() if self.future is None else (self.future.out,))):
            layer.weight.mul_(share)
            if layer.bias is not None:
                layer.bias.mul_(share)

    def fresh_state(self, batch: int) -> ForecastState:
        """The state before the first step of `batch` series."""
        rows = batch * self.config.channels
        values = self.linear.weight.new_zeros(rows, self.config.context_length)
        observed = torch.zeros_like(values, dtype=torch.bool)
        return ForecastState(self.backbone.fresh_state(rows), values, observed)

    def scale(
        self, past: Float[Tensor, "B L C"], observed: Bool[Tensor, "B L C"]
    ) -> tuple[Float[Tensor, "B 1 C"], Float[Tensor, "B 1 C"]]:
        """Location and scale of a window; a stream keeps those of its first one."""
        return window_scale(past, observed, self.config.scaling)

    def forward(
        self,
        past: Float[Tensor, "B L C"],
        observed: Bool[Tensor, "B L C"],
        *,
        past_features: Float[Tensor, "B L Fp"] | None = None,
        future_features: Float[Tensor, "B H F"] | None = None,
        static_real: Float[Tensor, "B S"] | None = None,
        static_cat: Int[Tensor, "B K"] | None = None,
    ) -> tuple[Float[Tensor, "B H C P"], Float[Tensor, "B 1 C"], Float[Tensor, "B 1 C"]]:
        """Outputs for the steps after a window, and the location and scale that they are in."""
        if past.shape[1] != self.config.context_length:
            raise ValueError(
                f"past must have context_length = {self.config.context_length} steps: got "
                f"{past.shape[1]}. Pad it on the left, and let observed be False there."
            )
        given = Given(past, observed, past_features, future_features, static_real, static_cat)
        given.check(self.config, ahead=self.config.prediction_length)
        loc, scale = self.scale(past, observed)
        args, _ = self._read(given, loc, scale, self.fresh_state(len(past)), last=True)
        return args[:, -1], loc, scale

    def read(
        self,
        past: Float[Tensor, "B L C"],
        observed: Bool[Tensor, "B L C"],
        *,
        loc: Float[Tensor, "B 1 C"],
        scale: Float[Tensor, "B 1 C"],
        state: ForecastState | None = None,
        past_features: Float[Tensor, "B L Fp"] | None = None,
        future_features: Float[Tensor, "B T F"] | None = None,
        static_real: Float[Tensor, "B S"] | None = None,
        static_cat: Int[Tensor, "B K"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B N H C P"], ForecastState]:
        """Outputs for the steps after each patch of the next L steps, and the state after the last.

        L need not be a multiple of the patch: the first patch is then filled up with missing steps on
        its left. So steps that do not yet fill a patch can be read, and the state of that dropped.
        Known features begin with the step after the first patch: T = (N - 1) patch_len + H.
        `write=False` leaves the memory as it is.
        """
        config = self.config
        given = Given(past, observed, past_features, future_features, static_real, static_cat)
        patches = math.ceil(past.shape[1] / config.patch_len)
        given.check(config, ahead=(patches - 1) * config.patch_len + config.prediction_length)
        given.check_scale(config, loc, scale)
        state = self.fresh_state(len(past)) if state is None else state
        return self._read(given, loc, scale, state, write=write)

    def _read(
        self,
        given: Given,
        loc: Tensor,
        scale: Tensor,
        state: ForecastState,
        *,
        write: bool = True,
        last: bool = False,
    ) -> tuple[Tensor, ForecastState]:
        """Outputs [B, N, H, C, P] after every patch, or after the last alone."""
        config, batch = self.config, len(given.past)
        values = self._rows(normalise(given.past, given.observed, loc, scale))  # [R, L]
        seen = self._rows(given.observed)
        tokens = self._tokens(values, seen, self._past_features(given.past_features, loc, scale))
        tokens = tokens + self._context(given.static_real, given.static_cat, batch)
        hidden, backbone = self.backbone(self.dropout(tokens), state.backbone, write=write)
        values, seen = torch.cat([state.values, values], 1), torch.cat([state.observed, seen], 1)
        hidden = self.dropout(hidden[:, -1:] if last else hidden)
        args = self._add_linear(self._head(hidden, given.future_features), values, seen)
        after = ForecastState(backbone, *(x[:, -config.context_length :] for x in (values, seen)))
        return args.unflatten(0, (batch, config.channels)).movedim(1, 3), after

    def _rows(self, x: Tensor) -> Tensor:
        """[B, L, C] as [B C, L]."""
        return x.mT.flatten(0, 1)

    def _tokens(self, values: Tensor, seen: Tensor, features: Tensor | None) -> Tensor:
        """Embedded patches [R, N, dim]; the first is filled up on its left with missing steps."""
        size = self.config.patch_len
        parts = [values[..., None], seen[..., None].to(values.dtype)]
        if features is not None:
            parts.append(features.repeat_interleave(self.config.channels, 0))
        steps = torch.cat(parts, -1)
        steps = F.pad(steps, (0, 0, -steps.shape[1] % size, 0))
        return self.embed(steps.unflatten(1, (-1, size)).flatten(2))

    def _past_features(self, features: Tensor | None, loc: Tensor, scale: Tensor) -> Tensor | None:
        """Lags scaled as the target is; a missing one, NaN, is its location."""
        if features is None or not self.config.num_lags:
            return features
        lags, others = features.tensor_split([self.config.num_lags], -1)
        return torch.cat([normalise(lags, ~lags.isnan(), loc, scale), others], -1)

    def _context(self, real: Tensor | None, cat: Tensor | None, batch: int) -> Tensor:
        """What is added to every patch of a row [R, 1, dim]: its channel and static features."""
        context = self.embed.bias.new_zeros(batch, self.config.channels, self.config.model.dim)
        if self.channel is not None:
            context = context + self.channel
        if self.static is not None:
            parts = [] if real is None else [real]
            if cat is not None:
                parts += [embed(cat[:, at]) for at, embed in enumerate(self.categories)]
            context = context + self.static(torch.cat(parts, -1))[:, None]
        return context.flatten(0, 1)[:, None]

    def _head(self, hidden: Tensor, known: Tensor | None) -> Tensor:
        """Outputs [R, N, H, P] from hidden states and the known features of the steps ahead."""
        config = self.config
        args = self.head(hidden).unflatten(-1, (config.prediction_length, config.outputs))
        if self.future is None or known is None:
            return args
        ahead = known.unfold(1, config.prediction_length, config.patch_len).mT  # [B, N, H, F]
        return args + self.future(hidden, ahead.repeat_interleave(config.channels, 0))

    def _add_linear(self, args: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Adds the linear path to the outputs [R, N, H, P] that it locates.

        `values` hold a window of steps before those that were read.
        """
        config = self.config
        located = args.new_zeros(config.outputs)
        located[list(config.located)] = 1
        count = args.shape[1]
        first = values.shape[1] - config.context_length - (count - 1) * config.patch_len
        windows, masks = (
            x[:, first:].unfold(1, config.context_length, config.patch_len).flatten(0, 1)
            for x in (values, seen)
        )
        filled = fill_gaps(windows, masks)
        end = filled[:, -1:]
        # Steps before a series begins stand at its location.
        ahead = self.linear(filled - end) + end
        return args + ahead.unflatten(0, (-1, count))[..., None] * located


class FutureHead(nn.Module):
    """Outputs [R, N, H, P] from a hidden state and the known features of each step; starts at zero."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.model.dim
        self.hidden = nn.Linear(width, width)
        self.features = nn.Linear(config.num_feat_dynamic_real, width, bias=False)
        self.out = nn.Linear(width, config.outputs, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, hidden: Float[Tensor, "R N dim"], known: Float[Tensor, "R N H F"]
    ) -> Float[Tensor, "R N H P"]:
        return self.out(F.gelu(self.hidden(hidden)[:, :, None] + self.features(known)))
