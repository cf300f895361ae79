"""GluonTS's own networks on the long-horizon protocol: trained by GluonTS, scored by our evaluator.

B windows, L steps of look-back, H of horizon, C channels.
"""

import tempfile
from typing import Any

import torch
from gluonts.dataset.common import ListDataset
from gluonts.torch import DLinearEstimator, PatchTSTEstimator
from gluonts.torch.model.i_transformer import ITransformerEstimator
from gluonts.transform.sampler import ExpectedNumInstanceSampler
from jaxtyping import Float
from torch import Tensor

from titans_domains.timeseries.protocol import Forecaster, Series
from titans_domains.timeseries.quiet import quiet, seeded, trainer_settings

ESTIMATORS = {
    "PatchTST": (PatchTSTEstimator, {"patch_len": 16}),
    "DLinear": (DLinearEstimator, {}),
    "iTransformer": (ITransformerEstimator, {}),
}
TOGETHER = ("iTransformer",)
"""Those that read all channels as one series of vectors."""

EPOCHS, BATCHES, BATCH_SIZE = 20, 50, 64
START = "2000-01-01"


def train_baseline(
    name: str,
    series: Series,
    lookback: int,
    horizon: int,
    seed: int,
) -> Forecaster:
    """GluonTS's defaults but for standard scaling, and the epoch of least validation loss.

    An iTransformer's batch is of windows of all channels, so it reads as many more numbers in a step.
    """
    build, settings = ESTIMATORS[name]
    together = name in TOGETHER
    with tempfile.TemporaryDirectory() as folder, quiet(), seeded(seed):
        estimator: Any = build(
            prediction_length=horizon,
            context_length=lookback,
            scaling="std",
            batch_size=BATCH_SIZE,
            num_batches_per_epoch=BATCHES,
            trainer_kwargs=trainer_settings({"max_epochs": EPOCHS}, folder),
            train_sampler=_sampler(lookback, horizon, 1.0),
            validation_sampler=_sampler(lookback, horizon, 512.0 if together else 64.0),
            **settings,
        )
        predictor = estimator.train(
            _entries(series.region("train", lookback), together),
            validation_data=_entries(series.region("valid", lookback), together),
            cache_data=True,
        )
    # The module around an iTransformer draws samples.
    network = predictor.prediction_net.model.eval().cpu()
    return forecaster(network, estimator.distr_output, together)


def forecaster(network: Any, output: Any, together: bool) -> Forecaster:
    """The mean of the distributions that a network of GluonTS foresees."""

    @torch.no_grad()
    def forecast(past: Float[Tensor, "B L C"]) -> Float[Tensor, "B H C"]:
        x = past.contiguous() if together else past.mT.flatten(0, 1)
        args, loc, scale = network(past_target=x, past_observed_values=torch.ones_like(x))
        mean = output.distribution(args, loc=loc, scale=scale).mean
        return mean if together else mean.unflatten(0, (len(past), -1)).mT

    return forecast


def _sampler(lookback: int, horizon: int, windows: float) -> ExpectedNumInstanceSampler:
    """`windows` of each series; whole ones, as everywhere in the protocol."""
    return ExpectedNumInstanceSampler(
        num_instances=windows, min_past=lookback, min_future=horizon, min_instances=1
    )


def _entries(rows: Float[Tensor, "T C"], together: bool) -> ListDataset:
    values = rows.T.numpy()
    entries = [values] if together else list(values)
    return ListDataset(
        [{"start": START, "target": x} for x in entries], freq="h", one_dim_target=not together
    )
