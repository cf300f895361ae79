"""Diagnostics of the memory: what is counted, compared and kept, on sizes that take no time."""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_benchmarks import benchmark
from tiny_language import VOCAB, tiny_model
from torch import Tensor

from titans_core import Backbone, BackboneConfig, MemoryConfig, count_parameters
from titans_core.memory import Recall
from titans_domains.config import override


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    return benchmark(name, monkeypatch)


def drawn(
    memories: ModuleType, count: int, keys: int = 6, values: int = 5
) -> tuple[Tensor, Tensor]:
    k, v = memories.pairs(memories.Draw(0, 3, 2), keys, values)(count)
    return k.double(), v.double()


def test_the_matrices_follow_their_rules_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = module("memories", monkeypatch)
    k, v = drawn(memories, 9)
    for steps in (None, (0.5, 1.0)):
        memory = memories.Matrix(steps)
        torch.set_default_dtype(torch.float64)
        try:
            state = memory.write(k[:, 4:], v[:, 4:], memory.write(k[:, :4], v[:, :4], None))
        finally:
            torch.set_default_dtype(torch.float32)
        for n, step in enumerate(steps or (None,)):
            w = torch.zeros(3, 2, 5, 6, dtype=torch.float64)
            for t in range(9):
                x, target = k[:, t], v[:, t]
                if step is not None:
                    target = step * (target - torch.einsum("rhoi,rhi->rho", w, x))
                w = w + torch.einsum("rho,rhi->rhoi", target, x)
            torch.testing.assert_close(state[n], w)
            y = torch.einsum("rhoi,rthi->rtho", w, k)
            torch.testing.assert_close(memory.read(k, state)[n], y)


def test_a_bare_memory_of_one_layer_is_the_delta_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = module("memories", monkeypatch)
    k, v = (x.float() for x in drawn(memories, 12, 6, 6))
    shape, setting = memories.Shape(1, 6), memories.Setting(normed=False)
    zero = (torch.zeros(2, 6, 6),)
    steps = torch.tensor([0.25, 0.5])
    mlp = memories.Mlp(shape, setting, 1, steps, zero, (torch.ones(2, 6), torch.zeros(2, 6)))
    matrix = memories.Matrix((0.5, 1.0))  # the loss has no half in it
    ours, theirs = (memory.read(k, memory.write(k, v, None)) for memory in (mlp, matrix))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Holding:
    """Recalls the first pairs only: as many as each step size says."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        self.counts = counts

    def write(self, k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
        return v if state is None else torch.cat([state, v], 1)

    def read(self, k: Tensor, state: Tensor) -> Tensor:
        known = torch.stack([state.clone() for _ in self.counts])
        for y, count in zip(known, self.counts, strict=True):
            y[:, count:] = 1e3
        return known


def test_capacity_is_the_most_pairs_of_which_enough_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memories = module("memories", monkeypatch)
    monkeypatch.setattr(memories, "MOST", 64)
    more = memories.pairs(memories.Draw(0, 2, 3), 4, 4)
    points = memories.curve(Holding((12, 3, 1000)), more)
    assert [point["pairs"] for point in points] == [2, 4, 8, 16, 32, 64]
    # Of pairs that are not recalled, all are taken for one and the same.
    assert points[3]["right"] == pytest.approx([12 / 16, 3 / 16, 1], abs=1 / 16)
    assert 8 < memories.capacity(points, 0) < 16
    assert 2 < memories.capacity(points, 1) < 4
    assert memories.capacity(points, 2) == 64
    assert len(memories.curve(Holding((3,)), more)) == 3  # what is hopeless is not tried further


@pytest.mark.parametrize(
    ("shares", "held"),
    [
        ((1.0, 0.95, 0.85), 4 * 2**0.5),
        ((0.8, 0.9, 0.4), 4),
        ((0.8, 0.7, 0.4), 2 ** (0.1 / 0.2)),
        ((1.0, 1.0, 0.9), 8),
    ],
)
def test_capacity_is_interpolated_to_the_next_power_of_two(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float, ...], held: float
) -> None:
    memories = module("memories", monkeypatch)
    points = [{"pairs": 2 << n, "right": [0.0, share]} for n, share in enumerate(shares)]
    assert memories.capacity(points, 1) == pytest.approx(held)


def test_nothing_that_a_normed_memory_recalls_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = module("memories", monkeypatch)
    k, v = drawn(memories, 20, 5, 5)
    best = memories.on_sphere(k, v)
    for _ in range(200):
        given = torch.nn.functional.layer_norm(torch.randn_like(v), v.shape[-1:])
        assert bool(((k + given - v).norm(dim=-1) >= (best - v).norm(dim=-1) - 1e-4).all())
    torch.testing.assert_close((best - k).mean(-1), torch.zeros(3, 20, 2).double())
    torch.testing.assert_close((best - k).square().mean(-1), torch.ones(3, 20, 2).double())


def test_a_learned_start_holds_more(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, memories = module("learned_start", monkeypatch), module("memories", monkeypatch)
    shape, asking = memories.Shape(2, 16, 2), memories.Draw(2, 8, 4)
    monkeypatch.setattr(learned, "TRAINING", learned.Training(steps=40))
    steps = torch.tensor([2.0**-6, 2.0**-5, 2.0**-4])
    fresh = memories.Mlp.fresh(shape, memories.Setting(), 16, steps, 4, 2)
    points = memories.curve(fresh, memories.pairs(asking, 16, 16))
    before = max(memories.capacity(points, n) for n in range(3))
    found = learned.trained(shape, 16, {"capacity": before, "step": 2.0**-5}, asking)
    assert found["capacity"] > 1.5 * before
    assert len(set(found["step"])) == 2  # one per layer, each learned


def test_capacities_are_measured_once_and_again_where_the_question_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, memories = module("capacity", monkeypatch), module("memories", monkeypatch)
    monkeypatch.setattr(bench, "SHAPES", [memories.Shape(1, 4)])
    monkeypatch.setattr(bench, "STEPS", (0.1, 0.5))
    asked: list[str] = []

    def measure(kind: str) -> Any:
        original = getattr(bench, kind)
        return lambda *given: asked.append(kind) or original(*given)

    for kind in ("mlp", "matrix"):
        monkeypatch.setattr(bench, kind, measure(kind))
    monkeypatch.setattr(sys, "argv", ["capacity", "--out", str(tmp_path), "--picture",
                                      str(tmp_path / "p.png")])  # fmt: skip
    bench.main()
    assert sorted(asked) == ["matrix"] * 2 + ["mlp"] * 6
    first = capsys.readouterr().out
    assert first.splitlines()[-1].startswith("| 1 | 4 |  | 16 | 48 | ")
    assert (tmp_path / "p.png").stat().st_size > 0
    monkeypatch.setattr(sys, "argv", sys.argv[:-2])
    bench.main()
    assert len(asked) == 8
    assert capsys.readouterr().out == first
    monkeypatch.setattr(bench, "STEPS", (0.1,))
    bench.cells(tmp_path / "capacity.json", "plain")
    assert len(asked) == 10
    kept = json.loads((tmp_path / "capacity.json").read_text())["cells"]
    assert len(kept) == 8
    assert list(kept["depth 1 D 4 E/D 1 plain 16"]["tried"]) == ["0.1"]


def test_growth_by_memory_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = module("perturbation_growth", monkeypatch)
    monkeypatch.setattr(bench, "DEPTHS", (1, 3))
    monkeypatch.setattr(bench, "CHUNKS", (4,))
    monkeypatch.setattr(bench, "FORGETTING", (("initial", 1.0), ("zero", None)))
    monkeypatch.setattr(bench, "AT", (64, 128))
    path = tmp_path / "perturbation_growth.json"
    old = {"cells": {"tiny zero none": [1.0]}, "hybrids": {}, "commit": "before"}
    path.write_text(json.dumps(old))
    monkeypatch.setattr(sys, "argv", ["growth", "--part", "memories", "--out", str(tmp_path),
                                      "--picture", str(tmp_path / "p.png")])  # fmt: skip
    bench.main()
    now = json.loads(path.read_text())
    assert {name: now[name] for name in old} == old
    assert list(now["memories"]) == [
        f"{depth} 4 {rule} untrained" for depth in (1, 3) for rule in ("initial 1.0", "zero none")
    ]
    assert all(len(chunks) == 128 // bench.CHUNK for chunks in now["memories"].values())
    assert 0 < max(now["memories"]["3 4 initial 1.0 untrained"]) < 1e-8
    assert capsys.readouterr().out.count("| untrained |") == 4
    assert (tmp_path / "p.png").stat().st_size > 0
    run = [*bench.by_memory([])]
    assert run[0][2]().backbone.config.memory.depth == 1
    assert run[-1][2]().backbone.config.memory == MemoryConfig(
        num_heads=2, depth=3, chunk_size=4, forget="zero", max_surprise=None
    )


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal"])
def test_a_pair_is_written_into_every_memory_of_one_row(
    monkeypatch: pytest.MonkeyPatch, mixer: str
) -> None:
    stored, stability = module("stored_pair", monkeypatch), module("stability", monkeypatch)
    model = tiny_model(mixer=mixer)
    recalls = stored.recalls_of(model)
    pairs = [stored.pair_of(recall, n) for n, recall in enumerate(recalls)]
    fresh = model.backbone.fresh_state(2)
    parts = iter(zip(recalls, pairs, strict=True))

    def write(memory: Any) -> Any:
        recall, pair = next(parts)
        return stored.store(recall, memory, pair)

    began = stored.each_memory(fresh, write)
    for recall, pair, before, after in zip(
        recalls, pairs, stored.memories_of(fresh), stored.memories_of(began), strict=True
    ):
        # The memory is the module's own: with another's weights it would recall something else.
        y, value = stored.recalled(recall, after, pair), pair[1][0, 0]
        assert bool(((y[0] - value).norm(dim=-1) < 0.8 * (y[1] - value).norm(dim=-1)).all())
        for ours, theirs in zip(after.memory, before.memory, strict=True):
            assert torch.equal(ours[1], theirs[1])
        assert torch.equal(after.position, before.position)
    first = stored.drift(recalls, pairs, began, began)
    assert first["left"] == pytest.approx(1)
    assert stored.drift(recalls, pairs, began, fresh)["left"] == 0
    text = torch.arange(256) % 11
    found = stability.stream(model, text)
    assert [row["tokens"] for row in found["rows"]] == [0, 64, 128, 256]
    assert found["finite"]
    assert found["rows"][0]["error"] == pytest.approx(first["error"])
    left = [row["left"] for row in found["rows"]]
    assert left[0] == pytest.approx(1)
    # At about 1 % a token a twelfth is there after 256.
    assert abs(left[-1]) < 0.4
    assert all(row["momentary"] > 0 and row["memory"] > 0 for row in found["rows"][1:])


def test_momentary_surprise_of_a_stream_is_that_of_one_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stability = module("stability", monkeypatch)
    model, text = tiny_model(num_layers=1), torch.arange(256) % 13
    rows = stability.stream(model, text)["rows"]
    block = model.backbone.blocks[0]
    (recall,) = [m for m in model.modules() if isinstance(m, Recall)]
    whole = recall.surprise(block.mixer_norm(model.embedding(text[None])))[0]
    for row, first in zip(rows[1:], (0, 64, 128), strict=True):
        assert row["momentary"] == pytest.approx(whole[first : row["tokens"]].mean().item(), 1e-4)


def test_a_stability_cell_is_measured_again_for_another_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = module("stability", monkeypatch)
    small = ["dim=16", "num_layers=1", "memory.num_heads=2"]
    monkeypatch.setattr(
        bench, "UNTRAINED", {"lmm": small, "no forgetting": [*small, "memory.forget=none"]}
    )
    data, ran = tmp_path / "a.txt", []

    def here(jobs: Any, results: Any, path: Path, count: int, script: Path) -> None:
        for name in [name for name in jobs if name not in results["cells"]]:
            ran.append(name)
            results["cells"][name] = bench.cell(json.loads(json.dumps(jobs[name])))
        path.write_text(json.dumps(results))

    monkeypatch.setattr(bench, "run_cells", here)
    argv = ["stability", "--data", str(data), "--tokens", "64", "--out", str(tmp_path),
            "--picture", str(tmp_path / "p.png")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    data.write_bytes(bytes(range(97, 120)))
    bench.main()
    assert (tmp_path / "p.png").stat().st_size > 0
    monkeypatch.setattr(sys, "argv", argv[:-2])
    bench.main()
    assert ran == ["lmm", "no forgetting"]
    data.write_bytes(bytes(range(97, 121)))
    bench.main()
    assert ran == ["lmm", "no forgetting"] * 2
    table = capsys.readouterr().out
    assert table.count("| lmm | 64 |") == 3


def test_one_setting_is_varied_at_a_time_at_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = module("sensitivity", monkeypatch)
    configs = {
        row: bench.system(bench.settings_of(row), bench.PARAMETERS, bench.LAYERS)
        for row in bench.ROWS_OF_ALL
    }
    assert len(configs) == sum(len(axis.values) - 1 for axis in bench.AXES) + len(bench.MIXERS)
    for row, config in configs.items():
        size = count_parameters(Backbone(config)) + VOCAB * config.dim
        assert abs(size - bench.PARAMETERS) <= 0.02 * bench.PARAMETERS, row
        plain = configs[f"{config.mixer}, default"]
        changes = [
            name
            for part in ("memory", "hybrid", "attention")
            for name, value in vars(getattr(config, part)).items()
            if value != getattr(getattr(plain, part), name)
        ]
        assert len(changes) == (0 if row.endswith("default") else 1), row
    for axis in bench.AXES:
        part, name = axis.setting.split(".")
        value = getattr(getattr(configs[bench.row_of(axis, axis.default)], part), name)
        assert value == axis.default


def test_recall_is_trained_at_the_best_rate_of_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = module("sensitivity", monkeypatch)
    ran: list[str] = []

    def made(jobs: Any, results: Any, path: Path, count: int, script: Path) -> None:
        for name, job in jobs.items():
            if name not in results["cells"]:
                ran.append(name)
                good = 1 - abs(job["rate"] - (8e-3 if "mac" in name else 4e-3))
                results["cells"][name] = {
                    "made of": bench.made_of(job), "valid_accuracy": good, "tokens_per_s": 1.0,
                    "parameters": 7, "test_accuracy": {"128": good, "512": job["rate"]},
                    "test_bits_per_byte": {"carried": 2.0 + job["seed"], "frozen": 3.0},
                }  # fmt: skip
        path.write_text(json.dumps(results))

    monkeypatch.setattr(bench, "run_cells", made)
    (tmp_path / "a.txt").write_text("text")
    argv = ["sensitivity", "--data", str(tmp_path / "a.txt"), "--out", str(tmp_path), "--seeds", "2",
            "--picture", str(tmp_path / "p.png")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    cells = json.loads((tmp_path / "sensitivity.json").read_text())["cells"]
    assert cells["mqar, mac, hybrid.segment_len=32, seed 0"]["made of"]["rate"] == 8e-3
    assert cells["mqar, lmm, memory.depth=1, seed 1"]["made of"]["rate"] == 4e-3
    assert cells["text, lmm, memory.depth=1, seed 1"]["made of"]["rate"] == bench.TEXT_RATE
    assert "mqar, mac, default, seed 0" not in ran  # it is the one that was tried
    assert (tmp_path / "p.png").stat().st_size > 0
    monkeypatch.setattr(sys, "argv", argv[:-2])
    count = len(ran)
    bench.main()
    assert len(ran) == count
    table = capsys.readouterr().out.splitlines()
    assert (
        "| depth | lmm | 2 (default) | 7 | 2 | 2.500 | 1.000 | 3.000 | 1.00 | 0.00 | 1 |" in table
    )
    (tmp_path / "a.txt").write_text("another text")
    monkeypatch.setattr(sys, "argv", [*argv[:-2], "--tasks", "text", "--only", "depth"])
    bench.main()
    assert ran[count:] == [
        f"text, lmm, memory.depth={depth}, seed {seed}" for seed in (0, 1) for depth in (1, 3, 4)
    ]


def test_sensitivity_cells_are_trained_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = module("sensitivity", monkeypatch)
    tiny = BackboneConfig(dim=16, num_layers=1, memory=MemoryConfig(num_heads=2, expansion=1))
    monkeypatch.setattr(bench, "system", lambda settings, *_: override(tiny, settings))
    monkeypatch.setattr(bench, "ROWS", 4)
    monkeypatch.setitem(bench.STEPS, "text", 6)
    monkeypatch.setitem(bench.STEPS, "mqar", 1)
    options = argparse.Namespace(
        data=tmp_path / "a.txt", out=tmp_path, runs=tmp_path / "runs", jobs=1
    )
    options.data.write_bytes(bytes(range(97, 117)) * 500)
    runner = bench.Runner(options, tmp_path)
    text = bench.cell(runner.job("text", "lmm, memory.depth=1", 1e-2, 0))
    assert 0 < text["test_bits_per_byte"]["carried"] < 8
    run = tmp_path / "runs/sensitivity/lmm-memory.depth=1-0"
    assert bench.load_run(run, bench.CPU)[2].model.memory.depth == 1
    recall = bench.cell(runner.job("mqar", "lmm, default", 1e-2, 0))
    assert set(recall["test_accuracy"]) == {"128", "512"}
    assert recall["made of"]["rate"] == 1e-2
