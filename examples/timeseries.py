"""Train a forecaster, forecast, and go on learning as the series grow: python timeseries.py [EPOCHS]"""

import sys

import numpy as np
import pandas as pd

from titans_domains.timeseries import TitansEstimator, backtest

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
hours = pd.date_range("2026-01-01", periods=24 * 60, freq="h")
noise = np.random.default_rng(0).normal(0, 0.1, (len(hours), 2))
day, week = (np.sin(np.arange(len(hours)) * 2 * np.pi / period) for period in (24, 168))
table = pd.DataFrame({"load": 10 + day + week, "price": 3 - day}, index=hours) + noise
past, coming = table[: 24 * 58], table[24 * 58 :]

estimator = TitansEstimator(24, context_length=96, trainer_kwargs={"max_epochs": epochs})
predictor = estimator.train(past)
print(predictor.forecast(past).head())  # quantiles, a row for each series and hour
print(backtest(predictor, past, windows=4))  # beside seasonal-naive, last value and a linear map

# The memory goes on with the series: each new day is read, and never the whole past again.
stream = predictor.carry()
stream.update(past)
for number in range(2):
    new = coming[24 * number : 24 * (number + 1)]
    forecast = stream.forecast(quantiles=[0.5]).pivot(
        index="timestamp", columns="item_id", values="0.5"
    )
    error = float(np.abs(forecast.to_numpy() - new[forecast.columns].to_numpy()).mean())
    print(f"day {number + 1}: mean error of the median {error:.3f}")
    stream.update(new)
