"""What a network's numbers per step mean: a distribution, quantiles or a point.

GluonTS's outputs, of which those that work as a head are let in, and one for points.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gluonts.core.component import validated
from gluonts.itertools import select
from gluonts.model.forecast import Forecast, SampleForecast
from gluonts.model.forecast_generator import ForecastGenerator
from gluonts.torch.distributions import (
    LaplaceOutput,
    NormalOutput,
    Output,
    QuantileOutput,
    StudentTOutput,
)
from torch import Tensor

QUANTILES = tuple(round(0.1 * k, 1) for k in range(1, 10))
LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}
DISTRIBUTIONS = {"student_t": StudentTOutput, "normal": NormalOutput, "laplace": LaplaceOutput}
NAMES = (*DISTRIBUTIONS, "quantiles", *LOSSES)


class PointForecastGenerator(ForecastGenerator):
    """One path per series: mean and every quantile are the point."""

    @validated()
    def __init__(self) -> None:
        pass

    def __call__(
        self,
        inference_data_loader: Any,
        prediction_net: Any,
        input_names: list[str],
        output_transform: Any,
        num_samples: int | None,
        **kwargs: Any,
    ) -> Iterator[Forecast]:
        for batch in inference_data_loader:
            inputs = select(input_names, batch, ignore_missing=True)
            (points,), loc, scale = prediction_net(**inputs)
            paths = (points * scale + loc).cpu().numpy()
            for row, path in enumerate(paths):
                yield SampleForecast(
                    path[None],
                    start_date=batch["forecast_start"][row],
                    item_id=batch["item_id"][row] if "item_id" in batch else None,
                    info=batch["info"][row] if "info" in batch else None,
                )


class PointOutput(Output):
    """A point per step, under a loss by name: mse, mae or huber."""

    @validated()
    def __init__(self, name: str = "mse") -> None:
        if name not in LOSSES:
            raise ValueError(
                f"The loss of a point must be one of {', '.join(LOSSES)}: got {name!r}."
            )
        self.name = name
        self.args_dim = {"point": 1}

    @property
    def forecast_generator(self) -> ForecastGenerator:
        return PointForecastGenerator()

    @property
    def event_shape(self) -> tuple[()]:
        return ()

    def domain_map(self, *args: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.squeeze(-1) for part in args)

    def loss(
        self,
        target: Tensor,
        distr_args: tuple[Tensor, ...],
        loc: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        (point,) = distr_args
        if scale is not None:
            point = point * scale
        if loc is not None:
            point = point + loc
        return LOSSES[self.name](point, target, reduction="none")


def make_output(what: Output | str) -> Output:
    """An output by its name, or as it is; ValueError for one that cannot be a head here."""
    if isinstance(what, str):
        if what in DISTRIBUTIONS:
            return DISTRIBUTIONS[what]()
        if what == "quantiles":
            return QuantileOutput(list(QUANTILES))
        if what in LOSSES:
            return PointOutput(what)
    elif type(what) in (*DISTRIBUTIONS.values(), QuantileOutput, PointOutput):
        return what
    raise ValueError(
        f"distr_output must be one of {', '.join(NAMES)}, or a StudentTOutput, NormalOutput, "
        f"LaplaceOutput or QuantileOutput of gluonts.torch.distributions: got {what!r}."
    )


def to_table(output: Output) -> dict[str, Any]:
    """An output as JSON: a name and its settings, no class."""
    if isinstance(output, QuantileOutput):
        return {"name": "quantiles", "quantiles": list(output.quantiles)}
    if isinstance(output, PointOutput):
        return {"name": output.name}
    for name, kind in DISTRIBUTIONS.items():
        if type(output) is kind:
            return {"name": name, "beta": getattr(output, "beta", 0.0)}
    raise ValueError(f"{type(output).__name__} cannot be saved.")


def from_table(table: Any) -> Output:
    """What `to_table` wrote; ValueError where it is something else."""
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"output must be one of {', '.join(NAMES)}: got {name!r}.")
    if name == "quantiles":
        levels = table.get("quantiles")
        if not isinstance(levels, list) or not 0 < len(levels) <= 1000:
            raise ValueError("output must have a list of up to 1000 quantiles.")
        if not all(isinstance(level, float) and 0 < level < 1 for level in levels):
            raise ValueError(f"output must have quantiles between 0 and 1: got {levels}.")
        return QuantileOutput(levels)
    if name in DISTRIBUTIONS:
        beta = table.get("beta", 0.0)
        if not isinstance(beta, float) or not 0 <= beta <= 1:
            raise ValueError(f"output must have a beta between 0 and 1: got {beta!r}.")
        return DISTRIBUTIONS[name](beta=beta)
    if name in LOSSES:
        return PointOutput(name)
    raise ValueError(f"output must be one of {', '.join(NAMES)}: got {name!r}.")


def sizes(output: Output) -> list[int]:
    """How many numbers per step each argument of the output takes."""
    return list(output.args_dim.values())


def located(output: Output) -> tuple[int, ...]:
    """Which of an output's numbers per step say where it lies: the linear path is added to them."""
    if isinstance(output, QuantileOutput):
        return tuple(range(sum(sizes(output))))
    names = np.repeat(list(output.args_dim), sizes(output))
    return tuple(i for i, name in enumerate(names) if name in ("loc", "point"))


def arguments(output: Output, numbers: Tensor) -> tuple[Tensor, ...]:
    """A network's numbers [..., P] as the arguments of the output."""
    return output.domain_map(*torch.split(numbers, sizes(output), -1))
