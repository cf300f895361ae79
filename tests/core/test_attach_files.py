"""Attached memories in files: kept beside the host, and refused where they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_hosts import SMALL, attached, close, host, tf, tokens

from titans_core import (
    added_parameters,
    attach,
    detach_memory,
    load_attached,
    save_attached,
)
from titans_core.attached.saving import FILE, HEADER


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_was_added_is_kept_beside_the_host(kind: str, tmp_path: Path) -> None:
    model, ids = attached(kind), tokens(2, 20)
    logits = model(ids).logits
    save_attached(model, tmp_path / "kept")
    save_attached(model, tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [FILE]
    other = host(kind)
    assert load_attached(other, tmp_path / "kept") is other
    assert torch.equal(other(ids).logits, logits)
    assert {id(p) for p in other.parameters() if p.requires_grad} == {
        id(p) for p in added_parameters(other)
    }
    detach_memory(other)
    close(other(ids).logits, host(kind)(ids).logits)


def test_a_host_saved_with_its_memory_loads_with_and_without(tmp_path: Path) -> None:
    model, ids = attached("llama", train="all"), tokens(2, 20)
    logits, plain = model(ids).logits, host("llama")(ids).logits
    model.save_pretrained(tmp_path)
    save_attached(model, tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(again(ids).logits, plain)
    assert torch.equal(load_attached(again, tmp_path)(ids).logits, logits)


def changed(path: Path, **changes: Any) -> None:
    """The file with other entries in its table."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    table = json.loads(header["__metadata__"][HEADER])
    save_file(load_file(path), path, {HEADER: json.dumps({**table, **changes})})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def narrower(path: Path) -> None:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = load_file(path)
    tensors["0.scale"] = tensors["0.scale"][:16].clone()
    save_file(tensors, path, header["__metadata__"])


def other_setting(path: Path) -> None:
    changed(path, config={"mixer": "mac", "memory": {"surplus": 1}})


DAMAGED: dict[str, tuple[Any, str]] = {
    "cut": (cut, "is cut short"),
    "text": (lambda path: path.write_text("{}"), "is cut short or is no file of save_attached"),
    "bit": (flipped, "its numbers are not those that were saved"),
    "schema": (lambda path: changed(path, schema=9), "has schema version 9"),
    "layers": (lambda path: changed(path, layers=[0, 7]), "layers must be"),
    "fewer layers": (lambda path: changed(path, layers=[0]), "in 2 layers"),
    "no host": (lambda path: changed(path, host=None), "header is not complete"),
    "setting": (other_setting, "settings that this titans does not know"),
    "shape": (narrower, r"0.scale is \[16\] there"),
    "gone": (lambda path: path.unlink(), "There is no"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_file_that_does_not_fit_leaves_the_host_as_it_was(what: str, tmp_path: Path) -> None:
    damage, message = DAMAGED[what]
    save_attached(attached(), tmp_path)
    damage(tmp_path / FILE)
    model = host()
    names = list(model.state_dict())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_attached(model, tmp_path)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    attach(model, "lmm", **SMALL)


@pytest.mark.parametrize(
    "other", [{"kind": "llama"}, {"width": 16}, {"layers": 4}], ids=["kind", "width", "layers"]
)
def test_a_file_of_another_host_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    save_attached(attached(), tmp_path)
    with pytest.raises(ValueError, match="another host, gpt2 of width 32 with 3 layers: this"):
        load_attached(host(**other), tmp_path)


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    model = attached()
    added_parameters(model)[0].data[0] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        save_attached(model, tmp_path)
    assert not list(tmp_path.iterdir())
