"""Forecasting: time series in, forecasts out, with a memory that goes on learning."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from titans_domains.timeseries.config import DOMAIN, TimeseriesConfig

if TYPE_CHECKING:
    from titans_domains.timeseries.backtesting import backtest
    from titans_domains.timeseries.carrying import CarryingPredictor
    from titans_domains.timeseries.estimator import TitansEstimator
    from titans_domains.timeseries.frames import as_dataset, to_table
    from titans_domains.timeseries.plotting import plot
    from titans_domains.timeseries.predictor import TitansPredictor
    from titans_domains.timeseries.synthetic import generate
    from titans_domains.timeseries.task import load_run

# It works without, and says so at every start.
warnings.filterwarnings("ignore", "Using `json`-module", UserWarning)

# Imported when they are asked for: GluonTS and Lightning take seconds, and on a machine with CUDA
# `gluonts.torch` makes new processes start by `spawn`.
LATER = {
    "CarryingPredictor": "carrying",
    "TitansEstimator": "estimator",
    "TitansPredictor": "predictor",
    "as_dataset": "frames",
    "backtest": "backtesting",
    "generate": "synthetic",
    "load_run": "task",
    "plot": "plotting",
    "to_table": "frames",
}

__all__ = [
    "DOMAIN",
    "CarryingPredictor",
    "TimeseriesConfig",
    "TitansEstimator",
    "TitansPredictor",
    "as_dataset",
    "backtest",
    "generate",
    "load_run",
    "plot",
    "to_table",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{LATER[name]}"), name)
