"""`titans timeseries`: data on stdout and talk on stderr, from training to the benchmark."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from console import Done, Titans, assert_refused, contents
from tiny_timeseries import HORIZON, SETTINGS, numbers, table

from titans_domains.config import override
from titans_domains.runs import load_run_table, train_run
from titans_domains.timeseries import longhorizon, synthetic
from titans_domains.timeseries.config import DOMAIN
from titans_domains.timeseries.download import SETS
from titans_domains.timeseries.task import load_run

TINY = [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture(scope="session")
def forecasting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a run."""
    folder = tmp_path_factory.mktemp("forecasting")
    table(80).to_csv(folder / "data.csv", index_label="date")
    config = override(DOMAIN.presets["tiny"], [f'data.source="{folder / "data.csv"}"', *SETTINGS])
    train_run(DOMAIN, config, folder / "run", device=torch.device("cpu"))
    return folder


@pytest.fixture
def there(forecasting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them as the working folder."""
    folder = tmp_path / "there"
    shutil.copytree(forecasting, folder)
    config = folder / "run/config.json"
    config.write_text(config.read_text().replace(str(forecasting), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_training_talks_on_stderr_and_can_be_taken_up_again(there: Path, titans: Titans) -> None:
    options = ["--data", "data.csv", "--mixer", "mac", "--seed", "7", "--prediction-length", "5"]
    done = titans("timeseries", "train", *TINY, *options, "--set", "train.steps=3", "--out", "new")
    assert (done.code, done.out) == (0, "new\n")
    assert done.err.startswith("mac, ")
    assert "data.csv, 3 series of h" in done.err
    assert "training 3/3 loss " in done.err
    assert "held out: loss" in done.err
    assert "Warning" not in done.err
    assert sorted(p.name for p in (there / "new").iterdir()) == [
        "best", "checkpoints", "config.json", "facts.json", "metrics.csv", "report.html", "spec.json",
    ]  # fmt: skip
    config, _ = load_run_table(there / "new", DOMAIN)
    assert (config.model.mixer, config.seed, config.forecast.prediction_length) == ("mac", 7, 6)
    finished = contents(there / "new/checkpoints")
    done = titans("timeseries", "train", "--resume", "--out", "new")
    assert (done.code, done.out) == (0, "new\n")
    assert contents(there / "new/checkpoints") == finished
    again = titans("timeseries", "train", *TINY, "--data", "data.csv", "--out", "new", "--force")
    assert again.code == 0


def test_without_data_the_generated_set_is_trained_on(
    there: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = synthetic.generate
    monkeypatch.setattr(synthetic, "generate", lambda: made(num_series=2, length=100))
    done = titans("timeseries", "train", *TINY, "--set", "train.steps=1")
    assert (done.code, done.out) == (0, "runs/tiny\n")
    assert "generated, 2 series of h" in done.err


def test_evaluation_as_json_and_as_text(there: Path, titans: Titans) -> None:
    done = titans("timeseries", "eval", "run", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert list(figures) == [
        "lmm, window", "lmm, carried", "lmm, frozen", "seasonal naive", "last value",
        "linear ridge (20)",
    ]  # fmt: skip
    assert set(figures["last value"]) == {"MSE", "MAE", "MASE", "CRPS", "coverage"}
    assert done.err.splitlines()[-1].startswith("forecasting 36/36")
    header, *rows = titans("timeseries", "eval", "run").out.splitlines()
    assert header.split() == ["MSE", "MAE", "MASE", "CRPS", "coverage"]
    assert rows[4].split() == [
        "last",
        "value",
        *(f"{v:.4g}" for name, v in figures["last value"].items() if name != "coverage"),
        "-",
    ]
    assert figures["last value"]["coverage"] is None


def test_a_backtest_asks_for_its_own_origins(there: Path, titans: Titans) -> None:
    options = ["--data", "data.csv", "--windows", "3", "--distance", "2", "--json"]
    done = titans("timeseries", "backtest", "run", *options)
    assert next(iter(json.loads(done.out))) == "titans"
    carried = json.loads(titans("timeseries", "backtest", "run", *options, "--carry").out)
    assert carried["lmm, window"] == json.loads(done.out)["titans"]
    table(80).assign(s0=1.0, s1=2.0, s2=3.0).to_csv(there / "flat.csv", index_label="date")
    flat = titans("timeseries", "backtest", "run", "--data", "flat.csv", "--json")
    assert json.loads(flat.out, parse_constant=pytest.fail)["titans"]["MASE"] is None


def test_forecasts_are_written_as_csv(there: Path, titans: Titans) -> None:
    done = titans("timeseries", "forecast", "run")
    assert (done.code, done.err) == (0, "")
    predictor, _ = load_run(there / "run", torch.device("cpu"))
    wanted = predictor.forecast(there / "data.csv", quantiles=[0.1, 0.5, 0.9])
    read = pd.read_csv(io.StringIO(done.out), parse_dates=["timestamp"])
    pd.testing.assert_frame_equal(read, wanted, check_dtype=False)
    options = [
        "--data",
        "data.csv",
        "--quantiles",
        "0.9,0.25",
        "--out",
        "next.csv",
        "--plot",
        "n.png",
    ]
    done = titans("timeseries", "forecast", "run", *options)
    assert (done.out, done.err) == ("next.csv\n", "n.png: drawn\n")
    assert list(rows_of((there / "next.csv").read_text())[0]) == [
        "item_id", "timestamp", "mean", "0.25", "0.9",
    ]  # fmt: skip
    assert (there / "n.png").read_bytes()[:4] == b"\x89PNG"
    table(30, 1, seed=9).to_csv(there / "other.csv", index_label="date")
    other = rows_of(titans("timeseries", "forecast", "run", "--data", "other.csv").out)
    assert len(other) == HORIZON
    assert numbers(read).shape[0] == 3 * HORIZON


def test_a_picture_does_not_replace_the_table(there: Path, titans: Titans) -> None:
    done = titans("timeseries", "forecast", "run", "--out", "x.png", "--plot", "./x.png")
    assert_refused(done, "--out and --plot are both x.png: give two names.")
    assert not (there / "x.png").exists()


def test_data_of_another_frequency_is_warned_of(there: Path, titans: Titans) -> None:
    assert json.loads((there / "run/spec.json").read_text())["freq"] == "h"
    table(80, freq="D").to_csv(there / "daily.csv", index_label="date")
    for command in ("forecast", "backtest"):
        done = titans("timeseries", command, "run", "--data", "daily.csv")
        assert done.code == 0
        warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == 1
        assert "daily.csv is sampled by D, and run was trained on data by h" in warnings[0]
    assert "warning" not in titans("timeseries", "forecast", "run").err
    # Runs of an earlier version did not write it.
    spec = json.loads((there / "run/spec.json").read_text())
    del spec["freq"]
    (there / "run/spec.json").write_text(json.dumps(spec))
    done = titans("timeseries", "forecast", "run", "--data", "daily.csv")
    assert (done.code, "warning" in done.err) == (0, False)


def test_sets_are_listed_without_a_network(titans: Titans) -> None:
    done = titans("timeseries", "data")
    assert [line.split("\t")[0] for line in done.out.splitlines()] == list(SETS)


def test_the_benchmark_prints_and_writes_its_table(there: Path, titans: Titans) -> None:
    settings = [
        "patch_len=4", "model.dim=16", "fit.steps=2", "fit.valid_every=1", "fit.batch_size=4",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    table(200).interpolate().to_csv(there / "whole.csv", index_label="date")
    done = titans(
        "timeseries", "benchmark", "--data", "whole.csv", "--horizons", "4,6", "--lookback", "16",
        "--seeds", "0,1", "--out", "results", *options,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == (there / "results/results.md").read_text()
    assert "look-back 16" in done.out
    results = json.loads((there / "results/results.json").read_text())
    assert list(results["horizons"]) == ["4", "6"]
    assert_refused(
        titans("timeseries", "benchmark", "--data", "whole.csv", "--out", "results"),
        "is there already",
    )


def test_a_benchmark_that_breaks_off_has_written_what_it_had(
    there: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = longhorizon.run_network

    def breaks_off(*args: Any) -> dict[str, Any]:
        if args[3] == 6:
            raise ValueError("the lights went out")
        return whole(*args)

    monkeypatch.setattr(longhorizon, "run_network", breaks_off)
    table(200).interpolate().to_csv(there / "whole.csv", index_label="date")
    settings = ["patch_len=4", "model.dim=16", "fit.steps=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = titans(
        "timeseries", "benchmark", "--data", "whole.csv", "--horizons", "4,6", "--lookback", "16",
        "--device", "cpu", "--out", "results", *options,
    )  # fmt: skip
    assert_refused_at_last(done, "the lights went out")
    results = json.loads((there / "results/results.json").read_text())
    assert list(results["horizons"]) == ["4"]
    assert "look-back 16" in (there / "results/results.md").read_text()


def assert_refused_at_last(done: Done, sentence: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"error: {sentence}"


def test_known_features_are_forecast_with_from_the_rows_after_the_last_target(
    there: Path, titans: Titans
) -> None:
    wide = table(80 + HORIZON, 2)
    long = wide.rename_axis("timestamp").reset_index().melt("timestamp", var_name="item_id")
    long["price"], long["shop"] = np.arange(2.0 * len(wide)) % 7, (long["item_id"] == "s1") * 1
    future = long["timestamp"] >= wide.index[80]
    long.rename(columns={"value": "target"}).assign(
        target=long["value"].ffill().mask(future)
    ).to_csv(there / "long.csv", index=False)
    options = [
        'data.feat_dynamic_real=["price"]', 'data.feat_static_cat=["shop"]', "data.cardinality=[2]",
    ]  # fmt: skip
    settings = [part for setting in options for part in ("--set", setting)]
    done = titans("timeseries", "train", *TINY, *settings, "--data", "long.csv", "--out", "priced")
    assert done.code == 0, done.err
    done = titans("timeseries", "forecast", "priced")
    assert done.code == 0, done.err
    rows = rows_of(done.out)
    assert [row["item_id"] for row in rows] == ["s0"] * HORIZON + ["s1"] * HORIZON
    assert rows[0]["timestamp"] == str(wide.index[80])
    assert titans("timeseries", "eval", "priced", "--json").code == 0
    pd.read_csv(there / "long.csv").loc[~future].to_csv(there / "past.csv", index=False)
    assert_refused(
        titans("timeseries", "forecast", "priced", "--data", "past.csv"),
        "series 's0' must have 'feat_dynamic_real' for 80 rows of the past and 6 of the future",
    )


NEW = ("--out", "new/run")
TRAIN: dict[str, tuple[tuple[str, ...], str]] = {
    "missing file": (("--data", "missing.csv", *NEW), "There is no file 'missing.csv'"),
    "empty file": (("--data", "empty.csv", *NEW), "empty.csv is empty"),
    "binary": (("--data", "binary.csv", *NEW), "binary.csv"),
    "disorder": (("--data", "disorder.csv", *NEW), "series 's0', row 3 (2024-01-01 01:00:00) comes be"),
    "text": (("--data", "text.csv", *NEW), "series 's1', row 5 (2024-01-01 04:00:00): column 's1' must"),
    "short": (("--data", "short.csv", *NEW), "series 's0' has 20 rows, all of which"),
    "preset": (("--preset", "huge", *NEW), "--preset must be one of tiny, small"),
    "mixer": (("--mixer", "rnn", *NEW), "mixer must be one of lmm"),
    "horizon": (("--set", "forecast.prediction_length=0", *NEW), "prediction_length must be at least 1"),
    "key": (("--set", "forecast.patch=3", *NEW), "(did you mean 'patch_len'?)"),
    "output": (("--set", "forecast.output=gamma", *NEW), "forecast.output must be one of 'student_t'"),
    "column": (('--set', 'data.feat_dynamic_real=["x"]', *NEW), "covariates need a long one"),
    "device": (("--device", "tpu", *NEW), "--device must be auto, cpu, cuda or cuda:N"),
    "there already": (("--out", "run"), "run is there already: choose another --out"),
    "resume and force": (("--out", "run", "--resume", "--force"), "give one of them"),
    "other model": (("--resume", "--out", "run", "--set", "model.dim=32"), "differs in model.dim"),
}  # fmt: skip


def write_bad_tables(there: Path) -> None:
    (there / "empty.csv").write_text("")
    (there / "binary.csv").write_bytes(bytes(range(256)))
    wide = table(80)
    wide.iloc[[0, 2, 1, 3]].to_csv(there / "disorder.csv", index_label="date")
    wide.iloc[:20].to_csv(there / "short.csv", index_label="date")
    wide.astype(object).assign(s1=["much" if i == 4 else 1 for i in range(80)]).to_csv(
        there / "text.csv", index_label="date"
    )


@pytest.mark.parametrize(("args", "sentence"), TRAIN.values(), ids=TRAIN)
def test_what_cannot_be_trained_costs_a_line(
    there: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    write_bad_tables(there)
    before = contents(there)
    plain = "--resume" in args or "--preset" in args
    start = () if plain else ("--data", "data.csv", *TINY)
    assert_refused(titans("timeseries", "train", *start, *args), sentence)
    assert contents(there) == before


def cut(name: str) -> Callable[[Path], None]:
    return lambda there: (there / "run" / name).write_bytes(
        (there / "run" / name).read_bytes()[:50]
    )


USE: dict[str, tuple[tuple[str, ...], Callable[[Path], object], str]] = {
    "no run": (("forecast", "nowhere"), lambda _: None, "There is no run folder 'nowhere'"),
    "not a run": (("forecast", "."), lambda _: None, "There is no file config.json"),
    "weights cut": (("forecast", "run"), cut("best/model.safetensors"), "is cut short or is no safe"),
    "spec cut": (("forecast", "run"), cut("spec.json"), "spec.json is cut short or is no JSON"),
    "data gone": (("forecast", "run"), lambda t: (t / "data.csv").unlink(), "There is no file"),
    "quantiles": (("forecast", "run", "--quantiles", "1,2"), lambda _: None, "between 0 and 1"),
    "file there": (("forecast", "run", "--out", "data.csv"), lambda _: None, "is there already"),
    "no folder": (("forecast", "run", "--out", "a/b.csv"), lambda _: None, "There is no folder a: make it"),
    "picture": (("forecast", "run", "--plot", "p.xyz"), lambda _: None, "must be named *.png"),
    "windows": (("backtest", "run", "--windows", "0"), lambda _: None, "windows must be at least 1"),
    "too many": (("backtest", "run", "--windows", "20"), lambda _: None, "series 's0' has 80 rows, too"),
    "another set": (("data", "ECL"), lambda _: None, "must be one of ETTh1"),
    "horizons": (("benchmark", "--horizons", "0"), lambda _: None, "--horizons must be numbers"),
    "lookback": (("benchmark", "--lookback", "0"), lambda _: None, "lookback must be at least 1: got 0"),
    "below": (("benchmark", "--lookback", "-5"), lambda _: None, "lookback must be at least 1: got -5"),
    "shares": (("benchmark", "--shares", "0.7,0.3"), lambda _: None, "shares must be three numbers, of tr"),
    "seeds": (("benchmark", "--seeds", "0,0"), lambda _: None, "seeds must name each once: got 0, 0"),
    "repeats": (("benchmark", "--horizons", "4,4"), lambda _: None, "horizons must name each once"),
    "device": (("benchmark", "--device", "tpu"), lambda _: None, "--device must be auto, cpu, cuda or cuda"),
    "gaps": (("benchmark", "--data", "data.csv"), lambda _: None, "must hold a finite number everywhere"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "damage", "sentence"), USE.values(), ids=USE)
def test_what_cannot_be_used_costs_a_line(
    there: Path,
    titans: Titans,
    args: tuple[str, ...],
    damage: Callable[[Path], object],
    sentence: str,
) -> None:
    damage(there)
    before = contents(there)
    assert_refused(titans("timeseries", *args), sentence)
    assert contents(there) == before
