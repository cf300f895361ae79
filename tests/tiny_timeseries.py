"""Forecasters, series and configurations that are small enough for tests."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from titans_core import AttentionConfig, BackboneConfig, HybridConfig, MemoryConfig
from titans_domains.config import to_dict
from titans_domains.timeseries.estimator import TitansEstimator
from titans_domains.timeseries.model import network_config
from titans_domains.timeseries.module import TitansModule
from titans_domains.timeseries.outputs import make_output
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.series import SeriesSpec

HORIZON, CONTEXT, PATCH = 6, 20, 4

SETTINGS = (
    "model.dim=16",
    "model.num_layers=1",
    "model.memory.num_heads=1",
    "model.memory.chunk_size=4",
    "model.attention.num_heads=1",
    "forecast.prediction_length=6",
    "forecast.context_length=20",
    "forecast.patch_len=4",
    "data.valid_windows=2",
    "data.test_windows=2",
    "train.batch_size=4",
    "train.steps=6",
    "train.warmup=2",
    "train.valid_every=3",
    "train.checkpoint_every=3",
)


def backbone(mixer: str = "lmm") -> BackboneConfig:
    return BackboneConfig(
        dim=16,
        num_layers=1,
        mixer=mixer,
        memory=MemoryConfig(num_heads=1, chunk_size=4),
        attention=AttentionConfig(num_heads=1),
        hybrid=HybridConfig(num_persistent=2, window=6, segment_len=8),
    )


def estimator(**settings: Any) -> TitansEstimator:
    trainer = {"max_epochs": 2, **settings.pop("trainer_kwargs", {})}
    defaults = {
        "prediction_length": HORIZON,
        "context_length": CONTEXT,
        "patch_len": PATCH,
        "mixer": backbone(),
        "batch_size": 4,
        "num_batches_per_epoch": 5,
        "num_validation_windows": 8,
    }
    return TitansEstimator(**{**defaults, **settings}, trainer_kwargs=trainer)


def untrained(
    *, mixer: str = "lmm", output: str = "quantiles", mixing: str = "none", **spec: Any
) -> TitansPredictor:
    """A predictor whose every part takes part in its forecasts, though it has learned nothing."""
    found = SeriesSpec(prediction_length=HORIZON, context_length=CONTEXT, **spec)
    network = network_config(
        found, make_output(output), patch_len=PATCH, mixing=mixing, model=backbone(mixer)
    )
    torch.manual_seed(1)
    module = TitansModule(
        spec=to_dict(found), network=to_dict(network), distr_output=make_output(output), carry=True
    )
    with torch.no_grad():
        for weight in module.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return TitansPredictor.of(module, batch_size=3)


def table(length: int = 60, series: int = 3, *, freq: str = "h", seed: int = 0) -> pd.DataFrame:
    """A wide table of noisy waves around 100, some of its values missing."""
    random = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=length, freq=freq)
    steps = np.arange(length)[:, None]
    values = 100 + 5 * np.sin(steps / 4 + np.arange(series)) + random.normal(size=(length, series))
    values[random.random(values.shape) < 0.05] = np.nan
    values[0] = 100.0
    return pd.DataFrame(values, index=index, columns=[f"s{i}" for i in range(series)])


def entry(length: int = 60, *, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """One series as GluonTS has it."""
    values = table(length, 1, seed=seed)["s0"].to_numpy()
    return {"start": pd.Period("2024-01-01", freq="h"), "target": values, "item_id": "a", **fields}


def numbers(frame: pd.DataFrame) -> np.ndarray:
    """The figures of a table of forecasts."""
    return frame.drop(columns=["item_id", "timestamp"]).to_numpy()
