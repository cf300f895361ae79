"""Benchmarks of trained runs: whose figures are reported, and what of a stream is."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_language import VOCAB, tiny_config
from torch import Tensor, nn

from titans_domains.language.tokenizers import ByteTokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def test_figures_are_used_again_only_where_all_that_made_them_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = benchmark("cells", monkeypatch)
    path, made = tmp_path / "results.json", []

    def figures(run: str, weights: str = "trained", **made_of: Any) -> Any:
        folder = tmp_path / run / "checkpoints/step-0000001"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(weights)
        given = {"book": "a.txt", "bytes": 10, **made_of}
        return cells.cell(path, tmp_path / run, given, lambda: made.append(run) or {"n": len(made)})

    first = figures("here/lmm")
    assert first["n"] == 1
    assert first["made of"] | {"book": "a.txt", "bytes": 10} == first["made of"]
    assert first["made of"]["commit"]
    assert figures("here/lmm") == first
    assert len(made) == 1
    for changes in (
        {"book": "b.txt"},
        {"bytes": 9},
        {"weights": "trained on"},
        {"run": "there/lmm", "weights": "of another folder"},
    ):
        again = figures(**{"run": "here/lmm", **changes})
        assert again["n"] == len(made)
        assert json.loads(path.read_text())["runs"]["lmm"] == again
        assert figures("here/lmm")["n"] == len(made)
        assert len(made) % 2 == 1
    figures("here/mac")
    monkeypatch.setattr(cells, "provenance", lambda: {"commit": "later"})
    assert figures("here/lmm")["made of"]["commit"] == "later"
    # Only the cell that was measured is said to be of the new commit.
    kept = json.loads(path.read_text())["runs"]
    assert kept["mac"]["made of"]["commit"] != "later"


class Overflowing(nn.Module):
    """Fine logits, and a state that is infinite after just so many tokens: how many it has read."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.calls: list[tuple[int, int]] = []

    @property
    def backbone(self) -> "Overflowing":
        return self

    def fresh_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, dtype=torch.long), torch.zeros(batch)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before = (self.fresh_state(1) if state is None else state)[0]
        self.calls.append((tokens.shape[1], int(before)))
        after = before + tokens.shape[1]
        value = torch.where(after == self.at, torch.inf, torch.zeros(1))
        return torch.zeros(*tokens.shape, VOCAB), (after, value)


@pytest.mark.parametrize(
    ("at", "finite"), [(0, True), (1024, False), (2048, False), (3048, False), (3148, False)]
)
def test_a_stream_is_finite_with_its_state_and_its_first_call_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, finite: bool
) -> None:
    long_stream = benchmark("long_stream", monkeypatch)
    model, config = Overflowing(at), tiny_config(tmp_path)
    monkeypatch.setattr(long_stream, "load_run", lambda *_: (model, ByteTokenizer(), config))
    (tmp_path / "a.txt").write_bytes(bytes(range(250)) * 9)
    found = long_stream.stream(tmp_path, tmp_path / "a.txt", 2048, 1100)
    assert found["finite"] is finite
    # What warms up is read from a state of its own.
    assert model.calls[:4] == [(1024, 0), (1, 1024), (1024, 0), (1024, 1024)]
    assert len(model.calls) == 4 + 1100
    assert [row["tokens"] for row in found["pieces"]] == [1_000]
