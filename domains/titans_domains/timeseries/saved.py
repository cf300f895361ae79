"""Predictors as folders of JSON and safetensors: numbers and settings, and nothing that is run.

predictor.json      schema, spec, network, output, how it was trained
model.safetensors   the weights
(and what a carrying predictor holds besides: see `saved_streams.py`)

Loading makes our own classes alone, from settings that are checked where they are made. A file's tensors
must have the shapes that the settings ask for before any memory is taken for them.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titans_core.files import shapes_in, write_tensors
from titans_domains.checkpoints import SCHEMA, read_json
from titans_domains.config import from_dict, to_dict
from titans_domains.timeseries.module import TitansModule
from titans_domains.timeseries.network_config import NetworkConfig
from titans_domains.timeseries.outputs import from_table, located, sizes, to_table
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.series import SeriesSpec
from titans_domains.weights import check_weights, load_weights, planned

PREDICTOR, WEIGHTS = "predictor.json", "model.safetensors"
LARGEST_JSON = 2**24
"""Bytes of a settings file; ours are some thousands, and a hundred for each stream."""


def save_predictor(predictor: TitansPredictor, path: Path, *, force: bool) -> None:
    write_folder(path, lambda draft: write_predictor(predictor, draft), force=force)


def write_folder(path: Path, fill: Callable[[Path], None], *, force: bool) -> None:
    """The folder whole: what stood there stays until all of the new one is written."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not force:
            raise FileExistsError(f"{path} is there already: choose another, or give force=True.")
        if not (path / PREDICTOR).is_file():
            raise FileExistsError(
                f"{path} is not a predictor of titans, so force does not replace it."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        fill(draft)
        if path.exists():
            shutil.rmtree(path)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_predictor(predictor: TitansPredictor, folder: Path) -> None:
    module = predictor.module
    table = {
        "schema": SCHEMA,
        "kind": "titans-forecaster",
        "spec": to_dict(module.spec),
        "network": to_dict(module.model.config),
        "output": to_table(module.model.output),
        "carry": module.carry,
        "batch_size": predictor.batch_size,
    }
    (folder / PREDICTOR).write_text(json.dumps(table, indent=2) + "\n")
    weights = module.model.state_dict()
    write_tensors(weights, folder / WEIGHTS)


def load_predictor(path: Path, *, device: str) -> TitansPredictor:
    table = settings(path, PREDICTOR)
    if table.get("kind") != "titans-forecaster":
        raise ValueError(
            f"{path / PREDICTOR} is not that of a predictor: its kind is {table.get('kind')!r}."
        )
    spec = from_dict(SeriesSpec, table.get("spec"), "spec")
    network = from_dict(NetworkConfig, table.get("network"), "network")
    output = from_table(table.get("output"))
    if (network.outputs, network.located) != (sum(sizes(output)), located(output)):
        raise ValueError(f"{path / PREDICTOR} is damaged: its output does not fit its network.")
    batch_size, carry = table.get("batch_size"), table.get("carry")
    if type(batch_size) is not int or not 0 < batch_size < 2**20 or type(carry) is not bool:
        raise ValueError(f"{path / PREDICTOR} is damaged: it has no batch_size or carry.")
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} is not a predictor of titans: it has no {WEIGHTS}.")
    shapes = shapes_in(path / WEIGHTS)
    if max(network.model.num_layers, len(network.cardinality)) > len(shapes):
        raise ValueError(f"{path / WEIGHTS} is of another model: it has {len(shapes)} tensors.")
    arguments = {
        "spec": to_dict(spec), "network": to_dict(network), "distr_output": output, "carry": carry,
    }  # fmt: skip
    check_weights(planned(lambda: TitansModule(**arguments)).model, path / WEIGHTS)
    module = TitansModule(**arguments)
    load_weights(module.model, path / WEIGHTS)
    return TitansPredictor.of(module, batch_size=batch_size, device=device)


def settings(path: Path, name: str) -> dict[str, Any]:
    """The table of a folder's settings file; the error says where there is no such folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path)!r}.")
    file = path / name
    if not file.is_file():
        raise ValueError(f"{path} is not a predictor of titans: it has no {name}.")
    if file.stat().st_size > LARGEST_JSON:
        raise ValueError(
            f"{file} is larger than {LARGEST_JSON} bytes: it was not written by titans."
        )
    return read_json(file)
