"""The long-horizon benchmark as a whole, on a small table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_mixers import SETTINGS

from titans_domains.config import from_dict, to_dict
from titans_domains.timeseries import longhorizon
from titans_domains.timeseries.fit import FitConfig
from titans_domains.timeseries.longhorizon import Recipe, Work, fit_map, markdown, run_benchmark
from titans_domains.timeseries.protocol import read_series

QUICK = Recipe(
    model=SETTINGS["lmm"].config(),
    patch_len=4,
    fit=FitConfig(steps=4, batch_size=4, warmup=1, valid_every=2, valid_stride=4),
)
SHARES = (0.6, 0.2, 0.2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pandas

    path = tmp_path_factory.mktemp("data") / "some.csv"
    dates = pandas.date_range("2020-01-01", periods=200, freq="h")
    steps = torch.arange(200.0)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    values = torch.sin(steps * torch.pi / 12) + 0.3 * noise
    pandas.DataFrame({"date": dates, "a": values.numpy(), "b": 3 * values.numpy()}).to_csv(
        path, index=False
    )
    return path


@pytest.fixture(scope="module")
def results(table: Path) -> dict[str, Any]:
    return run_benchmark(
        table, shares=SHARES, horizons=(4, 8), lookback=24, seeds=(0, 1), recipe=QUICK
    )


def test_every_figure_has_its_floors_and_lookback(results: dict[str, Any]) -> None:
    assert results["lookback"] == 24
    assert results["lookback by"] == "given"
    assert results["rows"] == {"train": 120, "valid": 160, "test": 200}
    assert json.loads(json.dumps(results)) == results
    for horizon, row in results["horizons"].items():
        assert row["test windows"] == 40 - int(horizon) + 1
        assert set(row["floors"]) == {"ridge", "seasonal naive(24)", "last value"}
        assert set(row["models"]["Titans"]) == {"0", "1"}
        for run in row["models"]["Titans"].values():
            assert run["valid"]["mae"] <= run["ridge valid"]["mae"]
    assert from_dict(Recipe, results["recipe"]) == QUICK


def test_averages_are_of_horizons_and_spreads_of_seeds(results: dict[str, Any]) -> None:
    rows = results["horizons"].values()
    ridge = sum(row["floors"]["ridge"]["mse"] for row in rows) / 2
    assert results["average"]["ridge"]["mse"] == pytest.approx(ridge)
    seeds = [sum(row["models"]["Titans"][s]["mse"] for row in rows) / 2 for s in ("0", "1")]
    entry = results["average"]["Titans"]
    assert entry["mse"] == pytest.approx(sum(seeds) / 2)
    assert entry["mse spread"] == pytest.approx(abs(seeds[0] - seeds[1]) / 2**0.5)


def test_the_text_names_lookback_seeds_and_every_row(results: dict[str, Any]) -> None:
    text = markdown(results)
    assert "look-back 24 (given)" in text
    assert "2 seeds" in text
    lines = text.splitlines()
    assert lines[2] == "| | 4 | 8 | average |"
    assert [line.split(" | ")[0] for line in lines[4:]] == [
        "| Titans", "| ridge", "| seasonal naive(24)", "| last value",
    ]  # fmt: skip
    ridge = results["horizons"]["4"]["floors"]["ridge"]
    assert f"{ridge['mse']:.4f} / {ridge['mae']:.4f}" in text


def test_the_ridge_chooses_the_lookback_on_validation(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longhorizon, "LOOKBACKS", (6, 24, 32, 500))
    seen: list[Work] = []
    results = run_benchmark(
        table, shares=SHARES, horizons=(4,), seeds=(0,), recipe=QUICK, progress=seen.append
    )
    series = read_series(table, SHARES)
    tried = {n: fit_map(series, n, 4).valid_mse for n in (6, 24, 32)}
    assert results["lookback"] == min(tried, key=tried.__getitem__)
    # 500 rows are more than there are.
    assert results["ridge on validation"] == {str(n): mse for n, mse in tried.items()}
    assert seen[0] == Work("choosing the look-back", 0, 3)
    assert seen[-1] == Work("Titans, look-back 24, horizon 4, seed 0", 4, 4)


def test_what_the_ridge_says_is_told_of_a_given_lookback_too(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longhorizon, "LOOKBACKS", (6, 24))
    results = run_benchmark(
        table, shares=SHARES, horizons=(4,), lookback=12, seeds=(0,), recipe=QUICK
    )
    assert (results["lookback"], results["lookback by"]) == (12, "given")
    series = read_series(table, SHARES)
    assert results["ridge on validation"] == {
        str(n): fit_map(series, n, 4).valid_mse for n in (6, 24)
    }


def test_a_table_without_a_season_is_told(table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    (tmp_path / "gap.csv").write_text("\n".join([*lines[:50], *lines[51:]]))
    said: list[str] = []
    results = run_benchmark(
        tmp_path / "gap.csv", shares=SHARES, horizons=(4,), lookback=24, seeds=(0,), recipe=QUICK,
        talk=said.append,
    )  # fmt: skip
    assert (
        said[0] == "gap: its stamps have no known season, so there is no seasonal naive beside it"
    )
    assert results["season"] is None


ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "lookback": ({"lookback": -5}, "lookback must be at least 1: got -5"),
    "no lookback": ({"lookback": 0}, "lookback must be at least 1: got 0"),
    "seeds": ({"seeds": (0, 1, 0)}, "seeds must name each once: got 0, 1, 0"),
    "no seeds": ({"seeds": ()}, r"seeds must be one or more numbers of 0 or more: got \[\]"),
    "horizons": ({"horizons": (4, 4)}, "horizons must name each once: got 4, 4"),
    "horizon": ({"horizons": (0,)}, r"horizons must be one or more numbers of 1 or more: got \[0\]"),
    "baselines": ({"baselines": ("DLinear", "DLinear")}, "baselines must name each once"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "sentence"), ASKED.values(), ids=ASKED)
def test_what_cannot_be_asked_is_refused(
    table: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_benchmark(table, shares=SHARES, recipe=QUICK, **{"horizons": (4,), **options})


def test_one_seed_has_no_spread(table: Path) -> None:
    results = run_benchmark(
        table, shares=SHARES, horizons=(4,), lookback=12, seeds=(3,), recipe=QUICK
    )
    assert "±" not in markdown(results)
    # A season that does not fit in the look-back is no floor.
    assert set(results["horizons"]["4"]["floors"]) == {"ridge", "last value"}


def test_channels_may_be_mixed(table: Path) -> None:
    recipe = replace(QUICK, mixing="channels")
    results = run_benchmark(
        table, shares=SHARES, horizons=(4,), lookback=12, seeds=(0,), recipe=recipe
    )
    network = recipe.network(read_series(table, SHARES), 12, 4)
    assert (to_dict(recipe)["mixing"], network.mixing) == ("channels", "channels")
    assert results["horizons"]["4"]["models"]["Titans"]["0"]["mse"] > 0


def test_too_few_rows_for_any_lookback(table: Path) -> None:
    with pytest.raises(ValueError, match="120 rows for training, too few for a look-back of 96"):
        run_benchmark(table, shares=SHARES, horizons=(96,), recipe=QUICK)


def test_a_baseline_that_is_not_there(table: Path) -> None:
    with pytest.raises(ValueError, match="no baseline 'N-BEATS': there are PatchTST, DLinear"):
        run_benchmark(
            table, shares=SHARES, horizons=(4,), lookback=12, seeds=(0,), recipe=QUICK,
            baselines=("N-BEATS",),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["PatchTST", "DLinear", "iTransformer"])
def test_networks_of_gluonts_are_scored_by_the_same_protocol(
    table: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from titans_domains.timeseries import gluonts_baselines

    monkeypatch.setattr(gluonts_baselines, "EPOCHS", 1)
    monkeypatch.setattr(gluonts_baselines, "BATCHES", 3)
    monkeypatch.chdir(tmp_path)
    results = run_benchmark(
        table, shares=SHARES, horizons=(4,), lookback=24, seeds=(0,), recipe=QUICK,
        baselines=(name,),
    )  # fmt: skip
    found = results["horizons"]["4"]["models"][name]["0"]
    assert 0 < found["mae"] < 2
    assert f"| {name} |" in markdown(results)
    assert not list(tmp_path.iterdir())
