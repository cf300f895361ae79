"""POST /v1/forecast: what follows each series of a table."""

import math
from typing import Any

from fastapi import FastAPI, Request, Response

from titans_domains.serving.bodies import ForecastBody
from titans_domains.serving.errors import ServiceError
from titans_domains.serving.queue import Queued
from titans_domains.serving.service import Service
from titans_domains.timeseries.columns import UnknownColumnError
from titans_domains.timeseries.config import TimeseriesConfig
from titans_domains.timeseries.frames import SeriesSet, checked_quantiles, from_table, to_table
from titans_domains.timeseries.frequency import period_alias, same_freq
from titans_domains.timeseries.predictor import TitansPredictor


class Forecasts(Queued):
    """A forecaster behind its route."""

    domain = "timeseries"

    def __init__(
        self,
        service: Service,
        predictor: TitansPredictor,
        config: TimeseriesConfig,
        freq: str | None = None,
    ) -> None:
        """`freq` is that of what the forecaster was trained on, where it is known."""
        super().__init__(service)
        self.predictor, self.config, self.freq = predictor, config, freq

    def add_routes(self, app: FastAPI) -> None:
        @app.post("/v1/forecast", response_model=None)
        async def forecast(body: ForecastBody, request: Request) -> Response:
            """What follows each series of a table: its mean and quantiles, a row for each step."""
            self.service.check_model(body.model)
            return self.queue.answer(lambda: self.forecast(body))

    def forecast(self, body: ForecastBody) -> dict[str, Any]:
        param = "quantiles"
        try:
            levels = checked_quantiles(body.quantiles)
            param = "freq"
            freq = None if body.freq is None else period_alias(body.freq)
        except ValueError as error:
            raise ServiceError(400, str(error), param=param, code="invalid_value") from error
        self._check_cells(body.rows)
        try:
            series = self._series(body.rows, freq)
            found = to_table(self.predictor.predict(series), levels)
        except UnknownColumnError as error:
            raise ServiceError(
                400, f"rows are a long table, since they have {self.config.data.target!r}, and the model "
                f"reads no {error.column!r} in it: leave that away.",
                param="rows", code="invalid_table",
            ) from error  # fmt: skip
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

    def _check_cells(self, rows: list[dict[str, Any]]) -> None:
        """400 for what pandas would take for a number or a name, though it is none."""
        data = self.config.data
        flags = {
            *data.feat_dynamic_real, *data.past_feat_dynamic_real, *data.feat_static_real,
            *data.feat_static_cat, *data.ignored,
        }  # fmt: skip
        for number, row in enumerate(rows):
            for name, value in row.items():
                if isinstance(value, bool) and name not in flags:
                    wrong = f"a number or null: got {str(value).lower()}"
                elif isinstance(value, list | dict) and name == data.item_id:
                    wrong = "a name or a number"
                else:
                    continue
                raise ServiceError(
                    400, f"rows.{number}.{name} must be {wrong}.", param=f"rows.{number}.{name}",
                    code="invalid_table",
                )  # fmt: skip

    def _series(self, rows: list[dict[str, Any]], freq: str | None) -> SeriesSet:
        """The series of the rows; 400 where they are sampled otherwise than those of the training."""
        import pandas as pd

        table, options = pd.DataFrame(rows), self.config.data.options()
        # A client need not send what is not read.
        options["ignored"] = [name for name in options["ignored"] if name in table.columns]
        options["freq"] = freq or options["freq"]
        series = from_table(table, usual_freq=self.freq, **options)
        # A model that reads features of the stamps says by itself what it can read.
        usual = None if self.predictor.spec.freq else self.freq
        if freq is None and usual is not None and not same_freq(usual, series.freq):
            raise ServiceError(
                400, f"The model was trained on data by {usual!r}, and rows are by {series.freq!r}: "
                f"resample them, or give freq {series.freq!r} to have them forecast all the same.",
                param="rows", code="other_freq",
            )  # fmt: skip
        return series


def _number(value: Any) -> Any:
    """JSON has no number for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
