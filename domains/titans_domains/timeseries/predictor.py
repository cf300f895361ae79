"""The trained forecaster: GluonTS's predictor, with tables, plain files and a memory that goes on."""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gluonts.model.forecast import Forecast
from gluonts.torch.model.predictor import PyTorchPredictor

from titans_domains.config import to_dict
from titans_domains.timeseries.frames import as_dataset, to_table
from titans_domains.timeseries.module import TitansModule
from titans_domains.timeseries.outputs import QUANTILES
from titans_domains.timeseries.series import SeriesSpec
from titans_domains.timeseries.transform import INPUTS, LastWindow, Prepare

if TYPE_CHECKING:
    import pandas as pd

    from titans_domains.timeseries.carrying import CarryingPredictor


class TitansPredictor(PyTorchPredictor):
    """Forecasts what follows each series, from its last `context_length` steps.

    `save` and `load` write and read numbers and settings alone. GluonTS's `serialize` and `deserialize`
    work too, but `deserialize` makes objects of any class that the files name: never use it on a folder
    from a stranger.
    """

    @classmethod
    def of(
        cls, module: TitansModule, *, batch_size: int = 32, device: str = "auto"
    ) -> "TitansPredictor":
        spec = to_dict(module.spec)
        return cls(
            input_names=list(INPUTS),
            prediction_net=module,
            batch_size=batch_size,
            prediction_length=module.spec.prediction_length,
            input_transform=Prepare(spec) + LastWindow(spec),
            forecast_generator=module.model.output.forecast_generator,
            device=device,
        )

    @property
    def module(self) -> TitansModule:
        return self.prediction_net

    @property
    def spec(self) -> SeriesSpec:
        return self.module.spec

    def predict(self, dataset: Any, num_samples: int | None = None) -> Iterator[Forecast]:
        """GluonTS forecasts, one for each series, in order; also takes what `forecast` takes."""
        found = super().predict(as_dataset(dataset), num_samples)
        while True:
            # GluonTS's generator would leave gradients off for its caller between two forecasts.
            with torch.no_grad():
                forecast = next(found, None)
            if forecast is None:
                return
            yield forecast

    def forecast(
        self, data: Any, *, quantiles: Sequence[float] = QUANTILES, **options: Any
    ) -> "pd.DataFrame":
        """A table of item_id, timestamp, mean and quantiles, from a table, a CSV file or a data set.

        `options` say how to read a table: see `frames.from_table`.
        """
        return to_table(self.predict(as_dataset(data, **options)), quantiles)

    def carry(self) -> "CarryingPredictor":
        """A predictor that reads series as they grow, and remembers."""
        from titans_domains.timeseries.carrying import CarryingPredictor

        return CarryingPredictor(self)

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Writes a folder of JSON and safetensors, whole or not at all."""
        from titans_domains.timeseries.saved import save_predictor

        save_predictor(self, Path(path), force=force)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str = "auto") -> "TitansPredictor":
        """What `save` wrote; nothing in the folder is run, and no class is looked up by name."""
        from titans_domains.timeseries.saved import load_predictor

        return load_predictor(Path(path), device=device)

    def serialize(self, path: str | PathLike[str]) -> None:
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        super().serialize(path)
