"""One trained predictor for all that only read it."""

import pytest
from tiny_timeseries import estimator, table

from titans_domains.timeseries.predictor import TitansPredictor


@pytest.fixture(scope="session")
def predictor() -> TitansPredictor:
    return estimator(seed=3).train(table(60).iloc[:48], table(60))
