"""Saved predictors come back bit for bit; a stranger's folder is read as numbers or refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from console import contents
from safetensors.torch import load_file, save_file
from tiny_timeseries import entry, numbers, table, untrained

from titans_domains.timeseries.carrying import CarryingPredictor
from titans_domains.timeseries.outputs import NAMES
from titans_domains.timeseries.predictor import TitansPredictor


@pytest.mark.parametrize("output", NAMES)
def test_every_output_comes_back_bit_for_bit(output: str, tmp_path: Path) -> None:
    predictor = untrained(output=output, lags_seq=(2,), freq="h", time_features=("hour_of_day",))
    predictor.save(tmp_path / "deep/in/folder")
    again = TitansPredictor.load(str(tmp_path / "deep/in/folder"))
    for ours, theirs in zip(predictor.predict([entry()]), again.predict([entry()]), strict=True):
        np.testing.assert_array_equal(ours.quantile(0.3), theirs.quantile(0.3))
    assert (again.batch_size, again.module.carry) == (predictor.batch_size, True)
    assert list((tmp_path / "deep/in").iterdir()) == [tmp_path / "deep/in/folder"]


def test_all_that_a_model_reads_comes_back(tmp_path: Path) -> None:
    whole = {"num_feat_static_real": 1, "cardinality": (3, 2), "num_past_feat_dynamic_real": 1}
    predictor = untrained(mixer="mac", **whole)
    predictor.save(tmp_path / "p")
    assert TitansPredictor.load(tmp_path / "p").module.model.config == predictor.module.model.config


def test_what_is_there_is_not_replaced_without_leave(tmp_path: Path) -> None:
    untrained().save(tmp_path / "p")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="p is there already: choose another"):
        untrained(mixer="mac").save(tmp_path / "p")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis is not a predictor of titans, so force does"):
        untrained().save(tmp_path / "thesis", force=True)
    shutil.rmtree(tmp_path / "thesis")
    assert contents(tmp_path) == before
    untrained(mixer="mac").save(tmp_path / "p", force=True)
    assert TitansPredictor.load(tmp_path / "p").module.model.config.model.mixer == "mac"


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("titans_domains.timeseries.saved.write_tensors", full)
    with pytest.raises(OSError, match="no space"):
        untrained().save(tmp_path / "p")
    assert contents(tmp_path) == {}


def change(path: Path, **changes: Any) -> None:
    table = json.loads(path.read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        inner = table
        for name in outer:
            inner = inner[name]
        inner[last] = value
    path.write_text(json.dumps(table))


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("code of the folder was run",))


def plant_pickles(folder: Path) -> None:
    for name in ("model.safetensors", "streams.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:200])


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "predictor.json", **changes)


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "model.safetensors")


def large(folder: Path) -> None:
    with (folder / "predictor.json").open("a") as file:
        file.write(" " * 2**24)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no settings": (lambda f: (f / "predictor.json").unlink(), "is not a predictor of titans: it has no"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "not a predictor of titans: it has no"),
    "settings cut": (cut("predictor.json"), "predictor.json is cut short or is no JSON"),
    "settings too large": (large, "predictor.json is larger than 16777216 bytes"),
    "weights cut": (cut("model.safetensors"), "is cut short or is no safetensors file"),
    "pickles": (plant_pickles, "is cut short or is no safetensors file"),
    "other weights": (other_weights, "is of another model: network"),
    "version": (setting(schema=9), "has schema version 9: this titans reads 1"),
    "kind": (setting(kind="other"), "is not that of a predictor: its kind is 'other'"),
    "wider": (setting(network__model__dim=32), "is of another model: network"),
    "huge": (setting(network__prediction_length=10**9), "is of another model: network"),
    "deep": (setting(network__model__num_layers=1000), "is of another model: it has"),
    "categories": (setting(network__cardinality=[10**9]), "is of another model: network"),
    "class for an output": (setting(output={"name": "os.system"}), "output must be one of student_t"),
    "class for a mixer": (setting(network__model__mixer="os.system"), "mixer must be one of lmm"),
    "code for a feature": (setting(spec__time_features=["os.system"]), "time_features must be among"),
    "other output": (setting(output={"name": "mse"}), "its output does not fit its network"),
    "unknown setting": (setting(network__code="x"), "network has no setting 'code'"),
    "batch": (setting(batch_size=-1), "it has no batch_size"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_a_strangers_folder_is_refused_in_one_sentence(
    damage: Callable[[Path], None], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained().save(tmp_path / "p")
    damage(tmp_path / "p")
    monkeypatch.setattr(torch, "load", pytest.fail)
    with pytest.raises(ValueError, match=sentence):
        TitansPredictor.load(tmp_path / "p")


def part(name: str, becomes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "streams.safetensors")
        key = f"0.{name}"
        save_file({**tensors, key: becomes(tensors[key])}, folder / "streams.safetensors")

    return damage


CHANGED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "of another shape": lambda x: torch.cat([x, x], -1),
    "of another type": lambda x: x.double(),
    "flat": lambda x: x[0].clone(),
}


STREAMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no streams": (lambda f: (f / "streams.json").unlink(), "not a predictor of titans: it has no streams"),
    "cut": (cut("streams.json"), "streams.json is cut short or is no JSON"),
    "no list": (lambda f: change(f / "streams.json", streams=3), "has no list of streams"),
    "count": (
        lambda f: change(f / "streams.json", streams=[{**first(f), "count": 10**9}]), "damaged at stream 1",
    ),
    "freq": (
        lambda f: change(f / "streams.json", streams=[{**first(f), "freq": "__import__"}]),
        "damaged at stream 1",
    ),
    "nothing waits": (
        lambda f: change(f / "streams.json", streams=[{**first(f), "written": 60}]),
        "damaged at stream 1: ValueError: count and written are 60 and 60",
    ),
    "read and not begun": (
        lambda f: change(f / "streams.json", streams=[{**first(f), "begun": False}]),
        "item_id, begun and read are 's0', False and True",
    ),
    "a name that is none": (
        lambda f: change(f / "streams.json", streams=[{**first(f), "item_id": ["s0"]}]),
        r"item_id, begun and read are \['s0'\]",
    ),
    **{
        f"{name} {what}": (part(name, becomes), f"damaged at stream 1: .*{name}")
        for name in (
            "target", "lags", "known", "static_cat", "static_real", "future", "loc", "scale", "values",
            "observed",
        )
        for what, becomes in CHANGED.items()
    },
    "category": (
        part("static_cat", lambda x: x + 3), "damaged at stream 1: .* category must be below 3, got 4",
    ),
    "pickles": (plant_pickles, "is cut short or is no safetensors file"),
    "memory cut": (cut("streams.memory"), "streams.memory"),
}  # fmt: skip


def first(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "streams.json").read_text())["streams"][0]


@pytest.mark.parametrize(("damage", "sentence"), STREAMS.values(), ids=STREAMS)
def test_damaged_streams_are_refused_in_one_sentence(
    damage: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    whole = {"lags_seq": (2,), "num_feat_dynamic_real": 1, "num_feat_static_real": 1}
    carrying = untrained(**whole, cardinality=(3,)).carry()
    features = {
        "feat_dynamic_real": np.zeros((1, 66)), "feat_static_real": [0.5], "feat_static_cat": [1],
    }  # fmt: skip
    carrying.update([entry(60, item_id="s0", **features)])
    carrying.save(tmp_path / "c")
    assert len(CarryingPredictor.load(tmp_path / "c").predict()) == 1
    damage(tmp_path / "c")
    with pytest.raises(ValueError, match=sentence):
        CarryingPredictor.load(tmp_path / "c")


def test_another_models_memory_is_refused(tmp_path: Path) -> None:
    for name, output in (("a", "mse"), ("b", "mae")):
        carrying = untrained(output=output).carry()
        with torch.no_grad():
            carrying.predictor.module.model.network.embed.weight.add_(1.0 if name == "b" else 0.0)
            for weight in carrying.predictor.module.model.network.backbone.parameters():
                weight.mul_(1.5 if name == "b" else 1.0)
        carrying.update(table(60, 1))
        carrying.save(tmp_path / name)
    shutil.copy(tmp_path / "b/streams.memory", tmp_path / "a/streams.memory")
    with pytest.raises(ValueError, match="memory of another model"):
        CarryingPredictor.load(tmp_path / "a")
    assert np.isfinite(numbers(CarryingPredictor.load(tmp_path / "b").forecast())).all()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        TitansPredictor.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty is not a predictor of titans: it has no predictor\.json"
    ):
        TitansPredictor.load(tmp_path / "empty")
