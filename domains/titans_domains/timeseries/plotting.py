"""Forecasts with their intervals behind what is known of each series, as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titans_domains.targets import check_plots
from titans_domains.timeseries.frames import as_dataset
from titans_domains.timeseries.frequency import old_names

if TYPE_CHECKING:
    from gluonts.model.forecast import Forecast
    from matplotlib.figure import Figure

MOST = 12
"""Series in one picture; the first ones, where there are more."""
INTERVALS = ((0.1, 0.9, "80 %"), (0.25, 0.75, "50 %"))


def plot(
    forecasts: Iterable[Forecast], data: Any = None, *, history: int | None = None, **options: Any
) -> Figure:
    """A panel for each of the first 12 series: its last `history` rows, median, 50 % and 80 % intervals.

    `history` is four horizons where not given. Rows of `data` that lie after a forecast's start are
    drawn too, to compare. Needs matplotlib, which the extra `plot` brings.
    """
    check_plots("A picture")
    from matplotlib.figure import Figure

    panels = list(panels_of(forecasts))[:MOST]
    if not panels:
        raise ValueError("There is no forecast to draw.")
    known = {} if data is None else columns_of(as_dataset(data, **options))
    columns = 1 if len(panels) < 4 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (item, forecast, channel) in zip(axes, panels, strict=False):
        draw(axis, item, forecast, channel, known.get(item), history)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """The picture whole, in the format that the file's name asks for."""
    from matplotlib import rc_context

    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"A picture must be named *.png, *.pdf or *.svg: got {str(path)!r}.")
    draft = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        with rc_context({"svg.hashsalt": "titans"}):
            figure.savefig(draft, dpi=120)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def panels_of(forecasts: Iterable[Forecast]) -> Iterable[tuple[str, Forecast, int | None]]:
    """A name, the forecast and the channel of it for every panel."""
    for number, forecast in enumerate(forecasts):
        item = str(forecast.item_id if forecast.item_id is not None else f"series-{number}")
        median = forecast.quantile(0.5)
        if median.ndim == 1:
            yield item, forecast, None
            continue
        names = (forecast.info or {}).get("channels")
        for channel in range(median.shape[1]):
            yield names[channel] if names else f"{item}[{channel}]", forecast, channel


def columns_of(dataset: Any) -> dict[str, tuple[Any, np.ndarray]]:
    """Start and values of every series or channel, by the name that its panel has."""
    found = {}
    for number, entry in enumerate(dataset):
        item = str(entry.get("item_id", f"series-{number}"))
        target = np.asarray(entry["target"], float)
        if target.ndim == 1:
            found[item] = (entry["start"], target)
            continue
        names = (entry.get("info") or {}).get("channels")
        for channel, values in enumerate(target):
            found[names[channel] if names else f"{item}[{channel}]"] = (entry["start"], values)
    return found


def draw(
    axis: Any,
    item: str,
    forecast: Forecast,
    channel: int | None,
    known: tuple[Any, np.ndarray] | None,
    history: int | None,
) -> None:
    def at(level: float) -> np.ndarray:
        values = forecast.quantile(level)
        return values if channel is None else values[:, channel]

    with old_names():
        ahead = forecast.index.to_timestamp()
        if known is not None:
            stamps, values = recent(forecast, known, history)
            axis.plot(stamps, values, color="0.25", linewidth=1, label="observed")
    for number, (low, high, label) in enumerate(INTERVALS):
        shade = 0.25 + 0.2 * number
        axis.fill_between(
            ahead, at(low), at(high), color="C0", alpha=shade, linewidth=0, label=label
        )
    axis.plot(ahead, at(0.5), color="C0", linewidth=1.5, label="median")
    axis.set_title(item, fontsize="medium", loc="left")
    axis.tick_params(labelsize="small")
    for label in axis.get_xticklabels():
        label.set(rotation=20, ha="right")


def recent(
    forecast: Forecast, known: tuple[Any, np.ndarray], history: int | None
) -> tuple[Any, np.ndarray]:
    """The rows before a forecast, and those in its horizon that are known already."""
    import pandas as pd

    start, values = known
    steps = 4 * forecast.prediction_length if history is None else history
    origin = (forecast.start_date - start).n // start.freq.n
    first, last = max(0, origin - steps), min(len(values), origin + forecast.prediction_length)
    index = pd.period_range(start + first, periods=last - first, freq=start.freq)
    return index.to_timestamp(), values[first:last]
