"""POST /v1/forecast: what follows each series of a table."""

import math
from typing import Any

from fastapi import FastAPI, Request, Response

from titans_domains.serving.bodies import ForecastBody
from titans_domains.serving.errors import ServiceError
from titans_domains.serving.queue import Queued
from titans_domains.serving.service import Service
from titans_domains.timeseries.config import TimeseriesConfig
from titans_domains.timeseries.frames import from_table, to_table
from titans_domains.timeseries.predictor import TitansPredictor


class Forecasts(Queued):
    """A forecaster behind its route."""

    domain = "timeseries"

    def __init__(
        self, service: Service, predictor: TitansPredictor, config: TimeseriesConfig
    ) -> None:
        super().__init__(service)
        self.predictor, self.config = predictor, config

    def add_routes(self, app: FastAPI) -> None:
        @app.post("/v1/forecast", response_model=None)
        async def forecast(body: ForecastBody, request: Request) -> Response:
            self.service.check_model(body.model)
            return self.queue.answer(lambda: self.forecast(body))

    def forecast(self, body: ForecastBody) -> dict[str, Any]:
        import pandas as pd

        name = self.config.data.item_id
        try:
            for number, row in enumerate(body.rows):
                if isinstance(row.get(name), list | dict):
                    raise ValueError(f"rows.{number}.{name} must be a name or a number.")
            table = pd.DataFrame(body.rows)
            series = from_table(table, **self.config.data.options())
            found = to_table(self.predictor.predict(series), body.quantiles)
        except OverflowError as error:
            raise ServiceError(
                400, "rows must hold finite numbers: got one that is too large.", param="rows",
                code="invalid_table",
            ) from error  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServiceError(400, str(error), param="rows", code="invalid_table") from error
        self.service.metrics.count("titans_items_total", len(series))
        found["timestamp"] = [stamp.isoformat() for stamp in found["timestamp"]]
        rows = [
            {name: _number(value) for name, value in row.items()}
            for row in found.to_dict("records")
        ]
        return {
            "object": "forecast", "model": self.service.config.name, "freq": series.freq,
            "prediction_length": self.predictor.prediction_length, "quantiles": body.quantiles,
            "rows": rows,
        }  # fmt: skip


def _number(value: Any) -> Any:
    """JSON has no number for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
