"""The Lightning module that GluonTS trains, serialises and predicts with."""

from typing import Any

import lightning.pytorch as pl
import torch
from gluonts.core.component import validated
from gluonts.torch.distributions import Output
from torch import Tensor

from titans_core import decay_groups
from titans_domains.config import from_dict
from titans_domains.timeseries.model import Forecaster
from titans_domains.timeseries.network_config import NetworkConfig
from titans_domains.timeseries.series import SeriesSpec
from titans_domains.timeseries.windows import Batch

WARMUP = 0.05
"""Share of all steps in which the learning rate rises; then it falls along a cosine."""
LINEAR_RATE = 0.1
"""Learning rate of the linear path, as a share of the others': it starts at a fitted map."""


def parameter_groups(model: Forecaster, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser, the linear path a group of its own."""
    linear = model.network.linear.weight
    groups = [
        {"lr": lr, **group, "params": [p for p in group["params"] if p is not linear]}
        for group in decay_groups(model, weight_decay)
    ]
    return [*groups, {"params": [linear], "lr": LINEAR_RATE * lr, "weight_decay": 0.0}]


class TitansModule(pl.LightningModule):
    """Loss, optimiser and, for GluonTS's predictor, the forward call.

    `spec` and `network` are the fields of `SeriesSpec` and `NetworkConfig`. Plain tables, so that no
    class but this one and the output's is named in GluonTS's files. `carry`: see `TitansEstimator`.
    """

    @validated()
    def __init__(
        self,
        spec: dict[str, Any],
        network: dict[str, Any],
        distr_output: Output,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        carry: bool = False,
    ) -> None:
        super().__init__()
        self.spec = from_dict(SeriesSpec, spec, "spec")
        self.model = Forecaster(from_dict(NetworkConfig, network, "network"), distr_output)
        self.lr, self.weight_decay, self.carry = lr, weight_decay, carry

    def forward(
        self,
        past_target: Tensor,
        past_features: Tensor | None = None,
        future_features: Tensor | None = None,
        feat_static_real: Tensor | None = None,
        feat_static_cat: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        return self.model(
            past_target, past_features, future_features, feat_static_real, feat_static_cat
        )

    def loss(self, batch: Batch) -> Tensor:
        return self.model.stream_loss(batch) if self.carry else self.model.loss(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if not loss.isfinite():
            raise ValueError(
                f"The loss of step {self.global_step + 1} is not finite: train anew with a smaller lr."
            )
        self.log("train_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        size = len(batch["target"])
        self.log("val_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=size)
        return loss

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.lr, self.weight_decay)
        optimizer = torch.optim.AdamW(groups)
        total = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=total,
            # The scheduler divides by the warm-up's steps less one, which 20 steps in all would make 0.
            pct_start=max(WARMUP, 1.5 / total),
            div_factor=10.0,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
