"""The configuration of a forecasting run; apart from the task, whose libraries take seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from titans_core import PRESETS, BackboneConfig
from titans_domains.timeseries.scaling import Scaling
from titans_domains.timeseries.synthetic import SOURCE
from titans_domains.train_config import TrainConfig

if TYPE_CHECKING:
    import torch

    from titans_domains.timeseries.task import TimeseriesTask

OutputName = Literal["student_t", "normal", "laplace", "quantiles", "mse", "mae", "huber"]


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """What is forecast, from what, and how the network is made of patches."""

    prediction_length: int = 24  # steps to forecast
    context_length: int = 168  # steps that a forecast is made from
    patch_len: int = 8  # steps that become one token
    output: OutputName = "student_t"  # distribution or quantiles, or the error of a point forecast
    mixing: Literal["none", "channels"] = "none"  # whether the channels of a series see each other
    scaling: Scaling = "std"  # what the steps of a context are divided by
    dropout: float = 0.0  # share of numbers that training leaves out
    time_features: bool = False  # those that GluonTS has for the frequency of the data
    lags_seq: tuple[int, ...] = ()  # steps back whose values are read beside each step
    linear_start: bool = True  # the linear path is the ridge fitted on the training windows
    carry_length: int | None = None  # of streams, with train.carry; None for 4 contexts


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = SOURCE  # generated, or a CSV file
    freq: str | None = None  # None: inferred from the stamps
    # Columns of a long table; one without `target` is a wide one.
    item_id: str = "item_id"  # column with the names of the series
    timestamp: str | None = None  # None: found by its name, or the first column
    target: str = "target"  # column with the values to forecast
    feat_dynamic_real: tuple[str, ...] = ()  # rows after a series' last target are their future
    past_feat_dynamic_real: tuple[str, ...] = ()  # known of the past alone
    feat_static_real: tuple[str, ...] = ()  # the same in all rows of a series
    feat_static_cat: tuple[str, ...] = ()  # of whole numbers from 0 on
    cardinality: tuple[int, ...] = ()  # how many there are, for each of feat_static_cat
    ignored: tuple[str, ...] = ()  # columns that are not read
    channels: bool = False  # the columns of a wide table are channels of one series
    valid_windows: int = 7  # horizons before the test part, kept for validation
    test_windows: int = 7  # horizons at each series' end, kept for `eval`

    def __post_init__(self) -> None:
        for name in ("valid_windows", "test_windows"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must be 0 or more: got {getattr(self, name)}.")
        if len(self.cardinality) != len(self.feat_static_cat):
            raise ValueError(
                "data.cardinality must have one number for each of the "
                f"{len(self.feat_static_cat)} columns in data.feat_static_cat: got "
                f"{list(self.cardinality)}."
            )

    def options(self) -> dict[str, Any]:
        """What says how to read a table: see `frames.from_table`."""
        names = (
            "freq", "item_id", "timestamp", "target", "feat_dynamic_real",
            "past_feat_dynamic_real", "feat_static_real", "feat_static_cat", "ignored", "channels",
        )  # fmt: skip
        future = None if self.feat_dynamic_real else 0
        return {**{name: getattr(self, name) for name in names}, "future_length": future}


@dataclass(frozen=True, kw_only=True)
class TimeseriesConfig:
    model: BackboneConfig = PRESETS["tiny"]
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0  # of initial weights and the windows that are drawn

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 or more, and below 2**63: got {self.seed}.")


def _train(steps: int, **settings: Any) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=32, lr=2e-3, weight_decay=0.01, valid_every=steps // 6,
        checkpoint_every=steps // 6, **settings,
    )  # fmt: skip


TIMESERIES_PRESETS: dict[str, TimeseriesConfig] = {
    "tiny": TimeseriesConfig(train=_train(300)),
    "small": TimeseriesConfig(model=PRESETS["small"], train=_train(1500)),
    # Reads on as the series grow: trained on streams of five contexts.
    "carry": TimeseriesConfig(train=_train(300, carry=True)),
}


class TimeseriesDomain:
    """Forecasting: distributions of what follows a series."""

    name = "timeseries"
    config_type = TimeseriesConfig
    presets: Mapping[str, TimeseriesConfig] = TIMESERIES_PRESETS

    def absolute(self, config: TimeseriesConfig) -> TimeseriesConfig:
        source = config.data.source
        if source != SOURCE and Path(source).exists():
            source = str(Path(source).resolve())
        return replace(config, data=replace(config.data, source=source))

    def task(
        self, config: TimeseriesConfig, device: torch.device, folder: Path | None = None
    ) -> TimeseriesTask:
        from titans_domains.timeseries.task import TimeseriesTask

        return TimeseriesTask(config, device, folder)

    def subject(self, run: Path, device: torch.device, checkpoint: str) -> Any:
        from titans_domains.timeseries.inspected import series_subject

        return series_subject(run, device, checkpoint)


DOMAIN = TimeseriesDomain()
