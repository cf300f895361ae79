"""What a plan foretells against what is there: parameters, memory of a run, what fits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import CPU, tiny_config, write_documents

from titans_core import PRESETS, BackboneConfig, build_backbone, count_parameters, planning
from titans_core.allocations import Allocations
from titans_core.narrowing import narrower
from titans_core.planning import Recipe, Taken, layer_step, stack_step
from titans_domains.language import DOMAIN
from titans_domains.language.model import LanguageModel
from titans_domains.plan import Planner, Step
from titans_domains.plan_table import GPUS, Machine, machine_of, operations, plan
from titans_domains.runs import train_run


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


CPU_OF_ONE_GIB = Machine(processes=1, memory_gib=1.0, gpu=None)
SMALL = [
    "model.dim=64", "data.seq_len=128", "train.batch_size=4", "train.steps=3",
    "train.checkpoint_every=3", "model.num_layers=3",
]  # fmt: skip
RUNS = {
    "memory": ["model.mixer=lmm"],
    "checkpointed": ["model.mixer=lmm", "train.checkpoint_activations=true"],
    "in bf16, two parts": ["model.mixer=mag", "train.precision=bf16", "train.accumulate=2"],
    "segments": ["model.mixer=mac", "model.hybrid.segment_len=32"],
    "attention": ["model.mixer=attention", "data.tokenizer=bpe", "data.vocab_size=300"],
    "in turns": ["model.mixer=mamba/swa"],
}


@pytest.mark.parametrize("name", [slow(n) if n in ("segments", "in turns") else n for n in RUNS])
def test_a_run_takes_as_much_as_was_foretold(tmp_path: Path, name: str) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), *SMALL, *RUNS[name])
    with Allocations() as memory:
        train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    train = config.train
    step = Planner(config).step(
        train.batch_size, train.accumulate, checkpoint=train.checkpoint_activations
    )
    assert memory.most == pytest.approx(step.most(1, "ddp"), rel=0.15)


@pytest.mark.parametrize("name", DOMAIN.presets)
def test_parameters_are_counted_without_making_them(name: str) -> None:
    planner = Planner(DOMAIN.presets[name])
    with torch.device("meta"):
        model = LanguageModel(DOMAIN.presets[name].model, planner.vocab)
    assert sum(planner.parameters) == count_parameters(model)
    assert planner.parameters.embedding == model.embedding.weight.numel()
    assert all(planner.parameters)


def near(found: Taken, wanted: Taken, within: float) -> None:
    for name in Taken._fields:
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=within), name


HEADS = BackboneConfig(
    dim=128,
    num_layers=5,
    memory=replace(PRESETS["small"].memory, num_heads=8),
    attention=replace(PRESETS["small"].attention, num_heads=8),
    hybrid=PRESETS["small"].hybrid,
)


@pytest.mark.parametrize("mixer", ["lmm", "swa", slow("mac"), slow("gated-deltanet")])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_depth_and_rows_are_carried_over(mixer: str, checkpoint: bool) -> None:
    config, recipe = replace(HEADS, mixer=mixer), Recipe(checkpoint=checkpoint)
    found, wanted = stack_step(config, 3, 64, recipe), layer_step(config, 3, 64, recipe)
    # In the backward of a stack the gradients of all layers come together, of which one is in it here.
    weights = 4 * count_parameters(build_backbone(replace(config, num_layers=4)))
    assert 0.99 * found.backward <= wanted.backward <= 1.02 * (found.backward + weights)
    near(found, wanted._replace(backward=found.backward), 0.1)


@pytest.mark.parametrize("mixer", ["lmm", slow("mac"), "swa", "gated-deltanet"])
def test_width_is_carried_over(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, recipe = replace(HEADS, mixer=mixer, num_layers=1), Recipe()
    wanted = stack_step(config, 3, 128, recipe)
    monkeypatch.setattr(planning, "MOST_WORK", 0)
    assert narrower(config, 3).dim < config.dim
    found = stack_step(config, 3, 128, recipe)
    # As if all gradients of the layer's weights were there at the worst moment of its backward.
    weights = 4 * count_parameters(build_backbone(config))
    assert 0.95 * wanted.backward <= found.backward <= 1.05 * wanted.backward + weights
    near(found, wanted._replace(backward=found.backward), 0.05)


@pytest.mark.parametrize("mixer", ["lmm", slow("mal"), "attention"])
def test_length_is_carried_over(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(HEADS, mixer=mixer, dim=32, hybrid=replace(HEADS.hybrid, window=32))
    recipe = Recipe(carry=config.bounded)
    wanted = stack_step(config, 1, 1024, recipe)
    monkeypatch.setattr(planning, "LONGEST", 256)
    near(stack_step(config, 1, 1024, recipe), wanted, 0.05)


@pytest.mark.parametrize("name", ["170m", "1.3b"])
def test_a_narrower_stack_has_heads_of_the_same_width(name: str) -> None:
    for mixer in ("lmm", "mag", "attention", "gated-deltanet"):
        config = replace(PRESETS[name], mixer=mixer)
        other = narrower(config, 2)
        assert other.dim < config.dim
        if mixer != "attention":
            assert other.dim * config.memory.num_heads == config.dim * other.memory.num_heads
        if mixer in ("mag", "attention"):
            assert other.dim * config.attention.num_heads == config.dim * other.attention.num_heads
        build_backbone(replace(other, num_layers=1))


STEP = Step(
    rows=2, parts=1, parameters=800, optimiser=1600, feed_forward=400, layers=4, embedding=100,
    states=50, stack=Taken(4000, 4300, 4100, 4500), loss=Taken(300, 400, 300, 600),
)  # fmt: skip


def test_the_most_is_the_worst_moment() -> None:
    fixed = 800 + 1600 + 50
    # The loss's forward, with the gradients of the step before: 800 + 4000 + 400.
    assert STEP.most(1, "ddp") == fixed + 5200
    # Parts of a step keep gradients in the backward too.
    assert replace(STEP, parts=2).most(1, "ddp") == fixed + 800 + 4600
    # Every gradient twice.
    assert STEP.most(4, "ddp") == fixed + 1600 + 4400
    weights, gradients, optimiser = STEP.shared(4, "sharded")
    assert (weights, gradients, optimiser) == (200 + 400 + 200, 200 + 400 + 100, 400)
    # Where little is kept, all gradients at the end: the embedding's twice.
    small = replace(STEP, stack=Taken(40, 43, 41, 45), loss=Taken(3, 4, 3, 6))
    assert small.most(1, "ddp") == fixed + 800 + 100 + 5 + 10


def test_a_plan_of_gpus_says_what_fits_and_how_fast() -> None:
    config = tiny_config(
        "embedded", "data.seq_len=64", "train.batch_size=4", "train.accumulate=4", "train.steps=100"
    )
    table = plan(config, Machine(processes=2, memory_gib=0.003, gpu="h100"))
    assert table["tokens"] == 100 * 16 * 64
    ways = {(way["strategy"], way["checkpoint_activations"]): way for way in table["ways"]}
    assert [*ways] == [("ddp", False), ("sharded", False), ("ddp", True), ("sharded", True)]
    for way in ways.values():
        assert way["configured_rows"] == 2
        assert way["largest_rows"] in (0, 1, 2, 4, 8)
        assert way["largest_rows"] == 0 or way["largest_gib"] <= 0.003
    plain, saving = ways["ddp", False], ways["ddp", True]
    assert saving["one_row_gib"] < plain["one_row_gib"] < plain["configured_gib"]
    assert saving["largest_rows"] > plain["largest_rows"]
    assert ways["sharded", True]["one_row_gib"] < saving["one_row_gib"]
    assert "assumed, not measured: 30% of 67 TFLOP/s of h100" in table["speed"]
    rate = 2 * 0.3 * GPUS["h100"].float32 * 1e12 / operations(config, Planner(config))
    assert table["tokens_per_s"] == pytest.approx(rate)
    assert table["days"] == pytest.approx(table["tokens"] / rate / 86_400)


def test_a_plan_of_this_cpu_is_measured() -> None:
    config = tiny_config("embedded", "data.seq_len=64")
    table = plan(config, machine_of(None, "h100", 1.0, 0.3))
    (kept, saving) = table["ways"]
    assert (kept["strategy"], saving["strategy"]) == ("one process", "one process")
    assert kept["largest_rows"] == 2
    assert table["tokens_per_s"] > 0
    assert table["speed"].startswith("measured on this machine")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"processes": 0}, "--gpus must be at least 1: got 0."),
        ({"gpu": "abacus"}, "--gpu must be one of a100, h100"),
        ({"memory_gib": 0.0}, "--memory-gib must be positive: got 0."),
        ({"memory_gib": float("nan")}, "--memory-gib must be positive: got nan."),
        ({"utilisation": 1.5}, "--utilisation must be above 0 and at most 1: got 1.5."),
    ],
)
def test_machines_that_cannot_be(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CPU_OF_ONE_GIB, **change)


def test_what_cannot_be_shared_or_does_not_fit_is_refused() -> None:
    config = tiny_config("embedded", "data.seq_len=64")
    with pytest.raises(ValueError, match="train.batch_size must be a multiple of the 3 processes"):
        plan(config, replace(CPU_OF_ONE_GIB, processes=3, gpu="h100"))
    words = "One row of 64 tokens takes at least 0.00 GiB of a device, and there are 1e-05"
    with pytest.raises(ValueError, match=words):
        plan(config, replace(CPU_OF_ONE_GIB, memory_gib=1e-5))
    with pytest.raises(ValueError, match="data.seq_len must be a multiple of 16"):
        plan(tiny_config("embedded", "data.seq_len=60"), CPU_OF_ONE_GIB)
