"""Forecasting as a task of the shared trainer, and the runs it leaves.

A run holds the trainer's checkpoints, and in `best` the weights with the least validation loss: the start,
which is the fitted linear path, is the first candidate. `TitansEstimator` trains the same model on the
same windows under GluonTS's own loop; this task is for runs, which can be stopped and taken up again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titans_core import count_parameters
from titans_core.files import write_tensors, write_whole
from titans_domains.checkpoints import SCHEMA, WEIGHTS, latest, read_json
from titans_domains.config import from_dict, to_dict
from titans_domains.domain import Step
from titans_domains.ranks import is_first
from titans_domains.report import Floors
from titans_domains.runs import choose_device, load_run_table
from titans_domains.timeseries import synthetic
from titans_domains.timeseries.checks import check_entry, name_of
from titans_domains.timeseries.config import DOMAIN, TimeseriesConfig
from titans_domains.timeseries.estimator import feature_names
from titans_domains.timeseries.frames import SeriesSet, from_table, read_csv
from titans_domains.timeseries.frequency import period_alias, same_freq
from titans_domains.timeseries.loaders import (
    stream_places,
    stream_steps,
    train_places,
    trained_ends,
    validation_places,
)
from titans_domains.timeseries.model import Forecaster, network_config
from titans_domains.timeseries.module import TitansModule
from titans_domains.timeseries.network_config import NetworkConfig
from titans_domains.timeseries.outputs import make_output
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.series import SeriesSpec, arrays
from titans_domains.timeseries.windows import Batch, Places, Windows, linear_map
from titans_domains.weights import check_weights, header_of, load_weights, make_model, planned

BEST, BEST_SCORE, SPEC = "best", "score.json", "spec.json"
VALID_WINDOWS = 512


def read_data(
    config: TimeseriesConfig, source: str | None = None, usual_freq: str | None = None
) -> SeriesSet:
    """The series of a configuration, or those of another source read in its way."""
    source = config.data.source if source is None else source
    options = config.data.options()
    if source == synthetic.SOURCE:
        return from_table(synthetic.generate(), channels=config.data.channels)
    return from_table(read_csv(source), name=source, usual_freq=usual_freq, **options)


def fingerprint(data: SeriesSet) -> str:
    """SHA-256 of all series: names, stamps and numbers."""
    digest = hashlib.sha256()
    for entry in data:
        digest.update(f"{entry.get('item_id')}\n{entry['start']}\n{data.freq}\n".encode())
        for field in sorted(entry):
            if isinstance(entry[field], np.ndarray):
                digest.update(f"{field} {entry[field].shape}\n".encode())
                digest.update(np.ascontiguousarray(entry[field], np.float64).tobytes())
    return digest.hexdigest()


def make_spec(config: TimeseriesConfig, data: SeriesSet) -> SeriesSpec:
    forecast, columns = config.forecast, config.data
    target = data.entries[0]["target"]
    return SeriesSpec(
        prediction_length=forecast.prediction_length,
        context_length=forecast.context_length,
        channels=1 if target.ndim == 1 else len(target),
        freq=data.freq if forecast.time_features else None,
        lags_seq=forecast.lags_seq,
        time_features=feature_names(data.freq if forecast.time_features else None, None),
        num_feat_dynamic_real=len(columns.feat_dynamic_real),
        num_past_feat_dynamic_real=len(columns.past_feat_dynamic_real),
        num_feat_static_real=len(columns.feat_static_real),
        cardinality=columns.cardinality,
    )


def make_network(config: TimeseriesConfig, spec: SeriesSpec) -> NetworkConfig:
    forecast = config.forecast
    return network_config(
        spec,
        make_output(forecast.output),
        patch_len=forecast.patch_len,
        mixing=forecast.mixing,
        scaling=forecast.scaling,
        dropout=forecast.dropout,
        model=config.model,
    )


class TimeseriesTask:
    """A forecaster, its series and its loss; follows `titans_domains.domain.Task`."""

    def __init__(
        self, config: TimeseriesConfig, device: torch.device, folder: Path | None = None
    ) -> None:
        self.config, self.device, self.folder = config, device, folder
        self.fitted = False  # whether it begins as a linear map
        data = read_data(config)
        self.data_sha256: str | None = fingerprint(data)
        self.data_freq = data.freq
        self.spec = make_spec(config, data)
        network = make_network(config, self.spec)
        self.carry = config.train.carry is True
        self._cut(data)
        torch.manual_seed(config.seed)
        output = make_output(config.forecast.output)
        self.model = make_model(lambda: Forecaster(network, output), device).to(device)
        if config.forecast.linear_start:
            # Held at the fitted map, which one learning rate for all would carry away.
            self.model.network.linear.weight.requires_grad_(False)
            if folder is None:
                self._start_linear()
        self.amount = (
            f"{len(data)} series of {data.freq}, {self.train.windows.lengths.sum():,} rows"
        )

    def _cut(self, data: SeriesSet) -> None:
        """The windows for training and validation; what comes after them is left for `eval`."""
        config, spec = self.config.data, self.spec
        horizon = spec.prediction_length
        trained = [
            held_out(entry, config.test_windows + config.valid_windows, horizon) for entry in data
        ]
        for number, entry in enumerate(trained):
            if not np.size(entry["target"]):
                raise ValueError(
                    f"{name_of(entry, number)} has {data.entries[number]['target'].shape[-1]} rows, all "
                    f"of which are in the {config.valid_windows} + {config.test_windows} horizons of "
                    f"{horizon} that validation and test keep: set data.valid_windows and "
                    "data.test_windows lower, or leave the series out."
                )
            check_entry(entry, spec, number, train=True)
        series = [arrays(entry, spec) for entry in trained]
        length = past = spec.context_length
        self.plain = train_places(Windows(series, length, horizon), horizon, least=length)
        if self.carry:
            past = stream_steps(
                series,
                self.config.forecast.carry_length,
                past,
                self.config.forecast.patch_len,
                horizon,
            )
        windows = Windows(series, past, horizon)
        if self.carry:
            self.train = stream_places(windows, horizon, length)
        else:
            self.train = train_places(windows, horizon, least=1)
        self.valid: Places | None = None
        if config.valid_windows:
            known = [held_out(entry, config.test_windows, horizon) for entry in data]
            windows = Windows([arrays(entry, spec) for entry in known], past, horizon)
            self.valid = validation_places(
                windows,
                known,
                horizon,
                trained_ends(trained),
                context=length if self.carry else None,
            )

    def _start_linear(self) -> None:
        ridge = linear_map(self.plain, self.config.forecast.scaling, self.spec.context_length)
        if ridge is not None:
            self.model.network.start_at(ridge.weight.float())
            self.fitted = True

    def describe(self) -> str:
        return (
            f"{self.config.model.mixer}, {count_parameters(self.model):,} parameters; "
            f"{self.config.data.source}, {self.amount} to train on, SHA-256 {(self.data_sha256 or '')[:16]}"
        )

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        step = 0 if cursor is None else int(cursor["step"])
        while True:
            # Of the step alone, so that a run goes on with the windows it would have had.
            seed = int(np.random.SeedSequence([self.config.seed, step]).generate_state(1)[0])
            random = torch.Generator().manual_seed(seed)
            step += 1
            yield self.train.drawn(self.config.train.rows, random), {"step": step}

    def fresh_state(self) -> Any:
        """Nothing is carried from batch to batch: a stream is read within one."""
        return ()

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean, and over how many numbers."""
        kind = next(self.model.parameters()).dtype
        batch = {
            name: x.to(self.device, kind if x.is_floating_point() else x.dtype)
            for name, x in batch.items()
        }
        if self.carry:
            return self.model.counted_stream_loss(batch)
        return self.model.counted_loss(batch)

    def step(self, batch: Batch, state: Any) -> Step:
        loss, count = self.loss(batch)
        rows, steps, channels = batch["target"].shape
        read = (steps - self.spec.prediction_length) // self.config.forecast.patch_len
        return Step(loss, (), rows * channels * read, {"loss": loss.item()}, count.item())

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on the windows after the training part; the weights are kept where it is the least."""
        if self.valid is None:
            return {}
        was_training = self.model.training
        self.model.eval()
        total = count = 0.0
        for batch in self.valid.spread(VALID_WINDOWS, 64):
            size = len(batch["target"])
            total, count = total + size * self.loss(batch)[0].item(), count + size
        self.model.train(was_training)
        loss = total / count
        if self.folder is not None and is_first() and loss < best_loss(self.folder):
            save_best(self.model, self.folder, loss)
        return {"loss": loss}

    def floors(self) -> Floors:
        """The fitted linear map that the training begins from, and whose loss the run keeps then."""
        if self.folder is None or self.valid is None or not self.fitted:
            return {}
        return {"valid_loss": {"fitted linear map alone": best_loss(self.folder)}}

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        (folder / SPEC).write_text(
            json.dumps({"schema": SCHEMA, "spec": to_dict(self.spec), "freq": self.data_freq})
            + "\n"
        )
        self.folder = folder
        self.validate()


def held_out(entry: dict[str, Any], windows: int, horizon: int) -> dict[str, Any]:
    """The entry without its last windows."""
    end = max(0, np.shape(entry["target"])[-1] - windows * horizon)
    fields = ("target", "feat_dynamic_real", "past_feat_dynamic_real")
    return {**entry, **{f: entry[f][..., :end] for f in fields if f in entry}}


def best_loss(run: Path) -> float:
    path = run / BEST / BEST_SCORE
    if not path.exists():
        return float("inf")
    value = read_json(path).get("loss")
    if not isinstance(value, float):
        raise ValueError(f"{path} is damaged: it has no loss.")
    return value


def save_best(model: torch.nn.Module, run: Path, loss: float) -> None:
    folder = run / BEST
    folder.mkdir(exist_ok=True)
    draft = folder / f".{WEIGHTS}.tmp"
    write_tensors(model.state_dict(), draft, header_of(model))
    os.replace(draft, folder / WEIGHTS)
    write_whole(folder / BEST_SCORE, json.dumps({"schema": SCHEMA, "loss": loss}) + "\n")


def load_run(
    run: str | Path, device: str | torch.device = "auto"
) -> tuple[TitansPredictor, TimeseriesConfig]:
    """The predictor of a run, with its best weights (without validation its newest), and its settings."""
    run, device = Path(run), choose_device(str(device))
    config, _ = load_run_table(run, DOMAIN)
    spec = from_dict(SeriesSpec, read_json(run / SPEC).get("spec"), "spec")
    best = run / BEST / WEIGHTS
    weights = best if best.exists() else latest(run / "checkpoints") / WEIGHTS

    def make() -> TitansModule:
        return TitansModule(
            spec=to_dict(spec),
            network=to_dict(make_network(config, spec)),
            distr_output=make_output(config.forecast.output),
            carry=config.train.carry is True,
        )

    check_weights(planned(make).model, weights)
    module = make()
    load_weights(module.model, weights)
    return TitansPredictor.of(module, batch_size=64, device=str(device)), config


def trained_freq(run: Path, config: TimeseriesConfig) -> str | None:
    """How often what a run was trained on is sampled; None where an earlier version did not write it."""
    table = read_json(run / SPEC)
    found = table.get("freq") or table["spec"].get("freq") or config.data.freq
    return None if found is None else period_alias(str(found))


def series_for(
    run: Path,
    config: TimeseriesConfig,
    source: str | None,
    talk: Callable[[str], None] = lambda line: None,
) -> Sequence[dict[str, Any]]:
    """The series to forecast: another source's, or the run's own where they are what they were.

    Told is where they are sampled more or less often than those that the run was trained on.
    """
    usual = trained_freq(run, config)
    data = read_data(config, source, usual)
    if usual is not None and not same_freq(usual, data.freq):
        talk(
            f"{source} is sampled by {data.freq}, and {run} was trained on data by {usual}: the figures "
            "may mean nothing."
        )
    if source is None and fingerprint(data) != load_run_table(run, DOMAIN)[1]["data_sha256"]:
        raise ValueError(
            f"{config.data.source} has changed since {run} was trained: name it with --data."
        )
    return data.entries
