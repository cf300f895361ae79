"""Weights are read into the model that they are of, and nothing is allocated for any other."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_mixers import SETTINGS
from torch import nn

from titans_core import BackboneConfig, MemoryConfig, build_backbone, count_parameters
from titans_core.files import load_tensors, write_tensors
from titans_domains import weights as module
from titans_domains.checkpoints import CONFIGURATION, LARGEST_JSON, read_json
from titans_domains.weights import (
    configuration_of,
    header_of,
    load_weights,
    make_model,
    memory_of,
    planned,
    read_model,
)

CPU = torch.device("cpu")
HUGE = {
    "wide": {"dim": 2**20, "ffn_dim": 2**22},
    "memory": {"memory": {"num_heads": 1, "expansion": 2**40}},
    "not counted": {"dim": 2**40},
}


class Holder(nn.Module):
    """A model of its settings, and of weights of one shape whatever they are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = MemoryConfig(**settings)
        self.weight = nn.Parameter(torch.zeros(2, 2))


def config(**settings: Any) -> BackboneConfig:
    memory = MemoryConfig(**{"num_heads": 2, **settings.pop("memory", {})})
    return BackboneConfig(**{"dim": 8, "num_layers": 1, "memory": memory, **settings})


def held() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) // 1024


def test_a_setting_that_came_later_is_not_asked_of_an_older_file(tmp_path: Path) -> None:
    path, model = tmp_path / "weights.safetensors", Holder(chunk_size=8)
    before = configuration_of(model)
    del before["max_surprise"]
    write_tensors({"weight": torch.ones(2, 2)}, path, {CONFIGURATION: json.dumps(before)})
    load_weights(model, path)
    assert (model.weight == 1).all()
    with pytest.raises(ValueError, match="was trained with chunk_size = 8, and the configuration"):
        load_weights(Holder(chunk_size=16), path)
    # One that is there no more does change what was trained.
    gone = json.dumps(before | {"rotary": True})
    write_tensors({"weight": torch.ones(2, 2)}, path, {CONFIGURATION: gone})
    with pytest.raises(
        ValueError, match="trained with rotary = True, and the configuration has 'absent'"
    ):
        load_weights(model, path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000])
def test_a_header_that_is_no_table_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors({"weight": torch.ones(2, 2)}, path, {CONFIGURATION: text})
    with pytest.raises(ValueError, match="its header has no table of settings"):
        load_weights(Holder(), path)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    model = build_backbone(config())
    write_tensors(model.state_dict(), path, header_of(model))
    read = read_model(lambda: build_backbone(config()), path)
    assert all(map(torch.equal, model.parameters(), read.parameters()))
    with pytest.raises(ValueError, match="was trained with num_layers = 1, and the configuration"):
        read_model(lambda: build_backbone(config(num_layers=2)), path)


@pytest.mark.parametrize("settings", HUGE.values(), ids=HUGE)
def test_a_file_that_does_not_hold_a_huge_model_takes_no_memory(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(build_backbone(config()).state_dict(), path)
    before = held()
    with pytest.raises(ValueError, match="is of another model|more parameters than can be counted"):
        read_model(lambda: build_backbone(config(**settings)), path)
    assert held() - before < 50


@pytest.mark.parametrize("settings", HUGE.values(), ids=HUGE)
def test_a_model_that_the_machine_cannot_hold_is_refused(settings: dict[str, Any]) -> None:
    before = held()
    with pytest.raises((MemoryError, ValueError), match="take a smaller") as caught:
        make_model(lambda: build_backbone(config(**settings)), CPU)
    assert str(caught.value).count(".") == 1
    assert held() - before < 50


def test_what_a_model_takes_is_held_against_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    count = count_parameters(build_backbone(config()))
    monkeypatch.setattr(module, "memory_of", lambda device: 16 * count - 1)
    with pytest.raises(
        MemoryError, match=f"To train {count:,} parameters takes 0 GiB, and cpu has 0"
    ):
        make_model(lambda: build_backbone(config()), CPU)
    monkeypatch.setattr(module, "memory_of", lambda device: 16 * count)
    assert count_parameters(make_model(lambda: build_backbone(config()), CPU)) == count
    monkeypatch.setattr(module, "memory_of", lambda device: None)
    make_model(lambda: build_backbone(config()), CPU)
    assert memory_of(CPU) is None or memory_of(CPU) > 2**28


@pytest.mark.parametrize("layers", [1025, 10**12])
def test_more_layers_than_anybody_trains_are_refused_at_once(layers: int) -> None:
    with pytest.raises(ValueError, match=f"num_layers must be at most 1024: got {layers}"):
        config(num_layers=layers)
    with pytest.raises(ValueError, match="memory.depth must be at most 64: got 65"):
        MemoryConfig(depth=65)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_plan_has_the_shapes_of_the_model_and_changes_no_random_number(setting: Any) -> None:
    wanted = replace(setting.config(), num_layers=max(2, len(setting.config().mixers)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plan = planned(lambda: build_backbone(wanted))
    assert torch.equal(torch.get_rng_state(), before)
    model = build_backbone(wanted)
    assert {k: x.shape for k, x in plan.state_dict().items()} == {
        k: x.shape for k, x in model.state_dict().items()
    }
    assert all(x.is_meta for x in plan.parameters())
    assert configuration_of(plan) == configuration_of(model)


def test_other_faults_are_not_taken_for_a_size() -> None:
    def broken() -> nn.Module:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        planned(broken)


def header(path: Path, table: dict[str, Any]) -> None:
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_a_file_that_claims_to_hold_more_than_it_does_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.safetensors"
    header(path, {"a": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}})
    before = held()
    with pytest.raises(ValueError, match="is cut short or is no safetensors file"):
        load_tensors(path)
    path.write_bytes(struct.pack("<Q", size))
    with pytest.raises(ValueError, match="is cut short or is no safetensors file"):
        load_tensors(path)
    assert held() - before < 50


def test_a_json_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)
    before = held()
    with pytest.raises(ValueError, match=f"is larger than {LARGEST_JSON:,} bytes"):
        read_json(path)
    assert held() - before < 50


def test_the_header_says_every_setting(tmp_path: Path) -> None:
    path, model = tmp_path / "weights.safetensors", build_backbone(config())
    write_tensors(model.state_dict(), path, header_of(model))
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[CONFIGURATION]) == configuration_of(model)
