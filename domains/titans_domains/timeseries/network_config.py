"""The shape of a forecasting network, and what fits it.

B batch, L steps of the past, H of the future, C channels, F features.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from titans_core import BackboneConfig
from titans_domains.timeseries.scaling import Scaling


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a forecasting network. Counts of features have GluonTS's names."""

    prediction_length: int
    context_length: int
    patch_len: int = 16  # steps per token; 1 for points
    channels: int = 1
    # none: every channel is a series of its own; channels: they attend to each other at each patch
    mixing: Literal["none", "channels"] = "none"
    outputs: int = 1  # numbers per step: 1 for a point, 3 for Student's t, one per quantile
    located: tuple[int, ...] = (0,)  # which of them the linear path is added to
    scaling: Scaling = "std"
    dropout: float = 0.0  # of patches' embeddings and of what the head reads
    # The first of the past features are earlier values of the target, in its units.
    num_lags: int = 0
    num_feat_dynamic_real: int = 0  # known in the past and the future, time features among them
    num_past_feat_dynamic_real: int = 0
    num_feat_static_real: int = 0
    cardinality: tuple[int, ...] = ()  # of each static category
    embedding_dimension: tuple[int, ...] | None = None  # None for min(50, (cardinality + 1) // 2)
    model: BackboneConfig = field(default_factory=BackboneConfig)

    def __post_init__(self) -> None:
        for name in ("prediction_length", "context_length", "patch_len", "channels", "outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        if self.patch_len > self.context_length:
            raise ValueError(
                f"patch_len must be at most context_length = {self.context_length}: got "
                f"{self.patch_len}."
            )
        for name in ("num_lags", "num_feat_dynamic_real", "num_past_feat_dynamic_real"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more: got {getattr(self, name)}.")
        self._check_names()
        self._check_static()
        if self.num_lags and self.channels > 1:
            raise ValueError("num_lags must be 0 where there are several channels.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1: got {self.dropout}.")
        if any(not 0 <= at < self.outputs for at in self.located):
            raise ValueError(
                f"located must name outputs from 0 to {self.outputs - 1}: got {self.located}."
            )

    def _check_names(self) -> None:
        for name, known in (("mixing", ("none", "channels")), ("scaling", ("std", "mean", "none"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}: got {getattr(self, name)!r}."
                )

    def _check_static(self) -> None:
        if self.num_feat_static_real < 0:
            raise ValueError(
                f"num_feat_static_real must be 0 or more: got {self.num_feat_static_real}."
            )
        if any(count < 1 for count in self.cardinality):
            raise ValueError(f"cardinality must be at least 1 each: got {self.cardinality}.")
        sizes = self.embedding_dimension
        if sizes is not None and (len(sizes) != len(self.cardinality) or min(sizes, default=1) < 1):
            raise ValueError(
                "embedding_dimension must have one size of at least 1 for each of "
                f"{len(self.cardinality)} categories: got {sizes}."
            )

    @property
    def embeddings(self) -> tuple[int, ...]:
        if self.embedding_dimension is not None:
            return self.embedding_dimension
        return tuple(min(50, (count + 1) // 2) for count in self.cardinality)

    @property
    def num_past_features(self) -> int:
        """Lags, known features and past ones, in this order."""
        return self.num_lags + self.num_feat_dynamic_real + self.num_past_feat_dynamic_real


class Given(NamedTuple):
    """What a network reads; None for features that there are none of."""

    past: Tensor  # [B, L, C]
    observed: Tensor  # [B, L, C]
    past_features: Tensor | None  # [B, L, Fp]
    future_features: Tensor | None  # [B, steps ahead, F]
    static_real: Tensor | None  # [B, S]
    static_cat: Tensor | None  # [B, K]

    def check(self, config: NetworkConfig, *, ahead: int) -> None:
        """Everything that the configuration names is there, for `ahead` steps of the future."""
        if self.past.ndim != 3 or not self.past.shape[1]:
            raise ValueError(
                f"past must have shape [B, L, C] with at least one step: got {list(self.past.shape)}."
            )
        batch, steps = self.past.shape[:2]
        for name, shape in {
            "past": [batch, steps, config.channels],
            "observed": [batch, steps, config.channels],
            "past_features": [batch, steps, config.num_past_features],
            "future_features": [batch, ahead, config.num_feat_dynamic_real],
            "static_real": [batch, config.num_feat_static_real],
            "static_cat": [batch, len(config.cardinality)],
        }.items():
            tensor = getattr(self, name)
            # What is not there stands for no columns.
            if (tensor is None and shape[-1]) or (
                tensor is not None and list(tensor.shape) != shape
            ):
                got = "none" if tensor is None else list(tensor.shape)
                raise ValueError(f"{name} must have shape {shape}: got {got}.")
        if self.observed.dtype != torch.bool:
            raise TypeError(f"observed must be bool: got {self.observed.dtype}.")

    def check_scale(self, config: NetworkConfig, loc: Tensor, scale: Tensor) -> None:
        shape = [len(self.past), 1, config.channels]
        for name, x in (("loc", loc), ("scale", scale)):
            if list(x.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}: got {list(x.shape)}.")
