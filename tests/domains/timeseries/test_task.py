"""Forecasting as a task of the shared trainer: resumed bit for bit, its best weights kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from console import contents
from safetensors.torch import load_file, save_file
from tiny_timeseries import CONTEXT, HORIZON, SETTINGS, numbers, table

from titans_domains.config import override
from titans_domains.runs import resume_run, train_run
from titans_domains.timeseries.config import DOMAIN, TimeseriesConfig
from titans_domains.timeseries.task import TimeseriesTask, load_run, series_for

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    table(80).to_csv(path, index_label="date")
    return path


def config(source: Path, *settings: str) -> TimeseriesConfig:
    changes = [f"data.source={json.dumps(str(source))}", *SETTINGS, *settings]
    return override(DOMAIN.presets["tiny"], changes)


def train(source: Path, out: Path, *settings: str) -> Path:
    train_run(DOMAIN, config(source, *settings), out, device=CPU)
    return out


@pytest.mark.parametrize("carry", ["none", "true"])
def test_a_stopped_run_goes_on_bit_for_bit(carry: str, source: Path, tmp_path: Path) -> None:
    run = train(source, tmp_path / "whole", f"train.carry={carry}")
    shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step-0000006")
    resume_run(DOMAIN, tmp_path / "again", device=CPU)
    for part in ("checkpoints", "best"):
        assert contents(tmp_path / "again" / part) == contents(run / part)


def test_training_validation_and_test_do_not_meet(source: Path) -> None:
    task = TimeseriesTask(config(source), CPU)
    assert task.train.windows.lengths.tolist() == [80 - 4 * HORIZON] * 3
    assert task.valid is not None
    assert task.valid.windows.lengths.tolist() == [80 - 2 * HORIZON] * 3
    assert task.valid.ends.min() == 80 - 4 * HORIZON
    assert task.valid.ends.max() == 80 - 3 * HORIZON
    assert TimeseriesTask(config(source, "data.valid_windows=0"), CPU).validate() == {}


def test_the_best_weights_are_kept(source: Path, tmp_path: Path) -> None:
    run = train(source, tmp_path / "bad", "train.lr=20", "train.clip=0.0", "train.warmup=0")
    best = load_file(run / "best/model.safetensors")
    # Nothing that such steps led to was better than the linear map.
    assert not best["network.head.weight"].any()
    assert best["network.linear.weight"].any()
    newest = load_file(run / "checkpoints/step-0000006/model.safetensors")
    assert newest["network.head.weight"].any()
    torch.testing.assert_close(newest["network.linear.weight"], best["network.linear.weight"])
    predictor, _ = load_run(run, CPU)
    assert not predictor.module.model.network.head.weight.any()


def test_a_loss_that_is_no_number_is_not_the_best(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(source, tmp_path / "run")
    before = contents(run / "best")
    task = TimeseriesTask(config(source), CPU, run)
    none = torch.tensor(float("nan"))
    monkeypatch.setattr(task, "loss", lambda batch: (none, torch.tensor(1)))
    assert np.isnan(task.validate()["loss"])
    assert contents(run / "best") == before


def test_a_run_without_validation_is_read_at_its_end(source: Path, tmp_path: Path) -> None:
    run = train(source, tmp_path / "run", "data.valid_windows=0")
    predictor, found = load_run(run, CPU)
    newest = load_file(run / "checkpoints/step-0000006/model.safetensors")
    ours = predictor.module.model.state_dict()
    assert all(torch.equal(ours[name], newest[name]) for name in newest)
    forecast = predictor.forecast(series_for(run, found, None))
    assert np.isfinite(numbers(forecast)).all()


def test_a_run_knows_when_its_data_changed(source: Path, tmp_path: Path) -> None:
    run = train(source, tmp_path / "run")
    _, found = load_run(run, CPU)
    table(80, seed=5).to_csv(source, index_label="date")
    with pytest.raises(ValueError, match="has changed since .* name it with --data"):
        series_for(run, found, None)
    assert len(series_for(run, found, str(source))) == 3
    with pytest.raises(ValueError, match="The data is not what it was"):
        resume_run(DOMAIN, run, device=CPU)


CHANGES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "points and quantiles": (["forecast.output=quantiles", "forecast.patch_len=1"], {"outputs": 9}),
    "features": (["forecast.time_features=true", "forecast.lags_seq=[1,24]"], {"num_lags": 2}),
    "channels": (
        ["data.channels=true", "forecast.mixing=channels"], {"channels": 3, "mixing": "channels"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "wanted"), CHANGES.values(), ids=CHANGES)
def test_settings_reach_the_network(
    settings: list[str], wanted: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    run = train(source, tmp_path / "run", "train.steps=2", *settings)
    predictor, found = load_run(run, CPU)
    network = predictor.module.model.config
    assert {name: getattr(network, name) for name in wanted} == wanted
    assert (network.context_length, network.prediction_length) == (CONTEXT, HORIZON)
    assert len(predictor.forecast(series_for(run, found, None))) == 3 * HORIZON


def test_covariates_of_a_long_table_are_trained_with(tmp_path: Path) -> None:
    wide = table(80, 2)
    long = wide.rename_axis("ds").reset_index().melt("ds", var_name="id", value_name="y")
    long["price"], long["size"] = np.arange(160.0) % 7, (long["id"] == "s1") * 1.0
    long["kind"], long["note"] = (long["id"] == "s1") * 2, "x"
    long.to_csv(tmp_path / "long.csv", index=False)
    columns = [
        "data.item_id=id", "data.target=y", 'data.past_feat_dynamic_real=["price"]',
        'data.feat_static_real=["size"]', "train.steps=2",
        'data.feat_static_cat=["kind"]', "data.cardinality=[3]", 'data.ignored=["note"]',
    ]  # fmt: skip
    run = train(tmp_path / "long.csv", tmp_path / "run", *columns)
    predictor, found = load_run(run, CPU)
    assert predictor.spec.num_past_feat_dynamic_real == 1
    assert predictor.spec.num_feat_static_real == 1
    assert predictor.spec.cardinality == (3,)
    assert len(predictor.forecast(series_for(run, found, None))) == 2 * HORIZON


def test_categories_need_their_number(source: Path) -> None:
    with pytest.raises(ValueError, match=r"one number for each of the 1 columns in .*: got \[\]"):
        config(source, 'data.feat_static_cat=["kind"]')


def test_what_is_too_short_is_said_before_a_run_begins(source: Path, tmp_path: Path) -> None:
    for windows, sentence in (
        ("20", "all of which are in the 20 . 2 horizons"),
        ("11", "training needs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(source, tmp_path / "new", f"data.valid_windows={windows}")
    assert not (tmp_path / "new").exists()


def test_the_best_weights_are_read_only_under_their_own_settings(
    source: Path, tmp_path: Path
) -> None:
    run = train(source, tmp_path / "run")
    told = json.loads((run / "config.json").read_text())
    told["config"]["model"]["memory"]["max_surprise"] = 0.25
    (run / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"model.safetensors was trained with .*max_surprise = "):
        load_run(run, CPU)
    # Files of before, which do not say under which settings, are not asked.
    best = run / "best/model.safetensors"
    save_file(load_file(best), best)
    load_run(run, CPU)
