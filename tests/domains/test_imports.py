"""What only reads runs does not wait for the trainer's libraries."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["titans_domains.language.task", "titans_domains.runs"])
def test_tasks_and_runs_are_imported_without_lightning(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    heavy = ("lightning", "pytorch_lightning", "datasets", "pandas", "pyarrow", "matplotlib")
    assert loaded.isdisjoint(heavy)
