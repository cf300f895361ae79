"""What the package offers, and what it costs to import."""

import subprocess
import sys

import pytest

from titans_domains import timeseries


def test_the_names_are_these() -> None:
    assert timeseries.__all__ == [
        "DOMAIN",
        "CarryingPredictor",
        "TimeseriesConfig",
        "TitansEstimator",
        "TitansPredictor",
        "as_dataset",
        "backtest",
        "generate",
        "load_run",
        "plot",
        "to_table",
    ]
    for name in timeseries.__all__:
        assert getattr(timeseries, name) is not None
    # A module of the same name would take its place as soon as it is imported.
    assert all(callable(getattr(timeseries, name)) for name in timeseries.LATER)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        timeseries.nothing  # noqa: B018


def test_domain_and_network_are_imported_without_gluonts() -> None:
    modules = "titans_domains.timeseries, titans_domains.timeseries.longhorizon"
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    heavy = ("gluonts", "lightning", "pytorch_lightning", "pandas", "matplotlib", "scipy")
    assert set(done.stdout.split()).isdisjoint(heavy)
