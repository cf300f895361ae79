"""GluonTS transformations: from an entry of a data set to what the network reads."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from gluonts.core.component import validated
from gluonts.transform import SimpleTransformation, Transformation

from titans_domains.config import from_dict
from titans_domains.timeseries.checks import check_entry
from titans_domains.timeseries.frequency import old_names
from titans_domains.timeseries.series import Arrays, SeriesSpec, arrays

INPUTS = (
    "past_target", "past_features", "future_features", "feat_static_real", "feat_static_cat",
)  # fmt: skip


class Prepare(Transformation):
    """Checks each entry and adds its `arrays`; to forecast, those of the last steps alone.

    float64 becomes float32, and a missing value stays NaN.
    """

    @validated()
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = from_dict(SeriesSpec, spec, "spec")

    def __call__(self, data_it: Iterable[Any], is_train: bool) -> Iterator[Any]:
        ahead = 0 if is_train else self.spec.prediction_length
        for number, entry in enumerate(data_it):
            check_entry(entry, self.spec, number, train=is_train)
            with old_names():
                used = entry if is_train else last_steps(entry, self.spec.history)
                prepared = {**used, "arrays": arrays(used, self.spec, ahead)}
            yield prepared


class LastWindow(SimpleTransformation):
    """The inputs for the steps that follow an entry, padded on the left with missing ones."""

    @validated()
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = from_dict(SeriesSpec, spec, "spec")

    def transform(self, data: Any) -> Any:
        entry = dict(data)
        found: Arrays = entry.pop("arrays")
        with old_names():
            entry["forecast_start"] = entry["start"] + len(found.target)
        return entry | window_inputs(found, self.spec)


def window_inputs(found: Arrays, spec: SeriesSpec) -> dict[str, np.ndarray]:
    """The inputs of the network for the steps after the target, without those of no features."""
    length, steps = spec.context_length, len(found.target)
    past = last_rows(found.target, length, np.nan)
    features = [
        last_rows(found.lags, length, np.nan),
        last_rows(found.known[:steps], length, 0.0),
        last_rows(found.past_only, length, 0.0),
    ]
    inputs = {
        "past_target": past if spec.channels > 1 else past[:, 0],
        "past_features": np.concatenate(features, 1),
        "future_features": found.known[steps : steps + spec.prediction_length],
        "feat_static_real": found.static_real,
        "feat_static_cat": found.static_cat,
    }
    return {name: x for name, x in inputs.items() if x.shape[-1]}


def last_rows(table: np.ndarray, length: int, blank: float) -> np.ndarray:
    """The last rows [length, F], with blanks before the first."""
    missing = max(0, length - len(table))
    return np.pad(table[-length:], ((missing, 0), (0, 0)), constant_values=blank)


def last_steps(entry: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The entry without all but its last steps; known features keep their future."""
    length = np.shape(entry["target"])[-1]
    first = max(0, length - steps)
    if not first:
        return dict(entry)
    cut = dict(entry)
    cut["start"] = entry["start"] + first
    for field in ("target", "feat_dynamic_real", "past_feat_dynamic_real"):
        if field in cut and np.size(cut[field]):
            cut[field] = np.asarray(cut[field])[..., first:]
    return cut
