"""Memory files: what comes back, whose they are, and that no damage goes unnoticed."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_problems import assert_same_bits
from safetensors import safe_open
from safetensors.torch import save, save_file
from small_mixers import SETTINGS as PLAIN
from small_mixers import Setting, inputs
from torch import nn

from titans_core import (
    Backbone,
    BackboneConfig,
    NeuralMemory,
    join,
    load_memory,
    save_memory,
    split,
    state_bytes,
)
from titans_core import memory_file as module
from titans_core.memory_file import HEADER, SCHEMA, identity_of, is_memory_file
from titans_core.state import named_tensors, replace_tensors

SETTINGS = {
    **PLAIN,
    "lmm, inner steps": Setting(mixer="lmm", memory={"inner_steps": 3, "forget_per": "channel"}),
    "mac, inner steps": Setting(mixer="mac", memory={"inner_steps": 2}),
}
WITH_MEMORY = {name: s for name, s in SETTINGS.items() if s.remembers}
SOME = ("lmm", "mac previous", "mag grouped", "mal", "mac+mal")


def backbone(setting: Setting = SETTINGS["lmm"], layers: int = 2, mixer: Any = None) -> Backbone:
    torch.manual_seed(0)
    return Backbone(replace(setting.config(), num_layers=layers), mixer).double()


@torch.no_grad()
def read_on(model: Backbone, lengths: tuple[int, ...] = (13, 21)) -> Any:
    """A state whose rows have read so many tokens each."""
    states = [model(inputs(1, n, seed))[1] for seed, n in enumerate(lengths)]
    return join(states)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[HEADER])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@torch.no_grad()
def test_with_its_caches_a_state_goes_on_bit_for_bit(setting: Setting, tmp_path: Path) -> None:
    model, path = backbone(setting), tmp_path / "a.memory"
    state = read_on(model)
    save_memory(path, state, model, caches=True)
    loaded = load_memory(path, model)
    assert_same_bits(loaded, state)
    assert type(loaded[0]) is type(state[0])
    x = inputs(2, 10, 7)
    assert_same_bits(model(x, loaded), model(x, state))


@pytest.mark.parametrize("setting", WITH_MEMORY.values(), ids=WITH_MEMORY)
@torch.no_grad()
def test_without_caches_the_memory_alone_is_kept(setting: Setting, tmp_path: Path) -> None:
    model, path = backbone(setting), tmp_path / "a.memory"
    state = read_on(model)
    save_memory(path, state, model)
    loaded = load_memory(path, model)
    assert_same_bits(loaded, model.restart_caches(state))
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert not [n for n in names if "tail" in n or "keys" in n or "asked" in n or n.endswith("at")]
    assert {n for n in named_tensors(state) if ".memory." in n or "surprise" in n} - names == {
        n for n in named_tensors(state) if n.endswith("conv_tail") and ".memory." in n
    }
    # The memory is what the model has learned; another text's is another.
    x = inputs(2, 10, 7)
    assert_same_bits(model(x, loaded), model(x, model.restart_caches(state)))
    assert (model(x, loaded)[0] - model(x)[0]).abs().max() > 1e-6


@torch.no_grad()
def test_the_header_says_what_is_in_a_file(tmp_path: Path) -> None:
    model, path = backbone(SETTINGS["mag"]), tmp_path / "a.memory"
    save_memory(path, read_on(model, (5, 6, 7)), model)
    table = header(path)
    assert (table["schema"], table["rows"], table["caches"]) == (SCHEMA, 3, False)
    small = path.stat().st_size
    save_memory(path, read_on(model, (5, 6, 7)), model, caches=True)
    assert header(path)["caches"] is True
    assert path.stat().st_size > small
    assert {k: v for k, v in header(path).items() if k in ("config", "weights")} == {
        k: v for k, v in table.items() if k in ("config", "weights")
    }
    assert is_memory_file(path)
    # Cut short, it is still seen what it was.
    path.write_bytes(path.read_bytes()[:100])
    assert is_memory_file(path)


@torch.no_grad()
def test_a_file_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    model = backbone(SETTINGS["mac"])
    sizes = set()
    for n in (1, 7, 8, 30):
        save_memory(tmp_path / "a", read_on(model, (n,)), model)
        sizes.add((tmp_path / "a").stat().st_size)
    assert len(sizes) == 1


@torch.no_grad()
def test_rows_of_files_meet_and_part(tmp_path: Path) -> None:
    model = backbone(SETTINGS["mac+mal"])
    states = [read_on(model, (n,)) for n in (3, 12)]
    for name, state in zip("ab", states, strict=True):
        save_memory(tmp_path / name, state, model)
    together = join([load_memory(tmp_path / name, model) for name in "ab"])
    save_memory(tmp_path / "both", together, model)
    parts = split(load_memory(tmp_path / "both", model))
    assert_same_bits(tuple(parts), tuple(map(model.restart_caches, states)))


@torch.no_grad()
def test_a_loaded_state_shares_nothing_with_the_file(tmp_path: Path) -> None:
    model, path = backbone(), tmp_path / "a"
    state = read_on(model)
    save_memory(path, state, model, caches=True)
    loaded = load_memory(path, model)
    # In place: what is mapped into memory would change with the file.
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 2000)
    assert_same_bits(loaded, state)


@pytest.mark.parametrize("name", ["lmm", "attention grouped"])
@torch.no_grad()
def test_caches_under_autocast_keep_their_precision(name: str, tmp_path: Path) -> None:
    model, path = backbone(SETTINGS[name]).float(), tmp_path / "a"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = model(inputs(1, 9).float())
    assert torch.bfloat16 in {x.dtype for x in named_tensors(state).values()}
    save_memory(path, state, model, caches=True)
    loaded = load_memory(path, model)
    assert_same_bits(loaded, state)
    assert state_bytes(loaded) == state_bytes(state)


OTHERS: dict[str, tuple[Any, str]] = {
    "chunk": (lambda: backbone(Setting(mixer="lmm", memory={"chunk_size": 8})), "another config"),
    "more layers": (lambda: backbone(layers=3), "another configuration"),
    "other mixer": (lambda: backbone(SETTINGS["mac"]), "another configuration"),
    "precision": (
        lambda: backbone().float(),
        "a model in float64: this one is in float32. Convert",
    ),
    "one weight": (lambda: nudged(backbone()), "another model, or of this one at another point"),
    "other mixers in it": (lambda: backbone(mixer=of_other_chunks), "another configuration"),
}


def nudged(model: Backbone) -> Backbone:
    # One of 2,048 numbers.
    model.blocks[0].ffn.up.weight.data[77, 5] += 1e-7
    return model


def of_other_chunks(config: BackboneConfig) -> NeuralMemory:
    return NeuralMemory(config.dim, replace(config.memory, chunk_size=8))


@pytest.mark.parametrize(("other", "sentence"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("caches", [False, True])
def test_the_memory_of_another_model_is_refused(
    tmp_path: Path, other: Any, sentence: str, caches: bool
) -> None:
    model, path = backbone(), tmp_path / "a.memory"
    save_memory(path, read_on(model), model, caches=caches)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_memory(path, other())
    assert str(caught.value).startswith(f"{path} is the memory of ")
    assert str(caught.value).endswith("or read the text again.")
    # The same model, built and filled again, is no other.
    again = backbone()
    again.load_state_dict(model.state_dict())
    assert_same_bits(load_memory(path, again), load_memory(path, model))


@torch.no_grad()
def test_training_makes_another_model(tmp_path: Path) -> None:
    model, path = backbone(SETTINGS["mac"]), tmp_path / "a.memory"
    save_memory(path, read_on(model), model)
    for p in model.parameters():
        before = p.clone()
        p.add_(1e-3 * torch.randn_like(p))
        with pytest.raises(ValueError, match="at another point of its training"):
            load_memory(path, model)
        p.copy_(before)
    load_memory(path, model)


@torch.no_grad()
def test_an_identity_that_is_known_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other, path = backbone(), nudged(backbone()), tmp_path / "a.memory"
    state, ours, theirs = read_on(model), identity_of(model), identity_of(other)
    assert (ours.config, ours.dtype) == (theirs.config, theirs.dtype)
    assert ours.weights != theirs.weights
    save_memory(path, state, model, caches=True)
    written = path.read_bytes()
    monkeypatch.setattr(module, "_weights_hash", lambda model: pytest.fail("read all weights"))
    save_memory(path, state, model, caches=True, identity=ours)
    assert path.read_bytes() == written
    assert_same_bits(load_memory(path, model, identity=ours), state)
    with pytest.raises(ValueError, match="is the memory of another model"):
        load_memory(path, other, identity=theirs)


def test_only_states_of_the_model_are_saved(tmp_path: Path) -> None:
    model, path = backbone(), tmp_path / "a"
    state = read_on(model)
    wider = replace_tensors(state, {"1.conv_tail": torch.zeros(2, 3, 50)})
    for caches in (False, True):
        with pytest.raises(
            ValueError, match=r"this model: 1.conv_tail must have shape \[2, 3, 48\]"
        ):
            save_memory(path, wider, model, caches=caches)
    for odd, sentence in (
        (state[:1], "state must be one of this model: 1.conv_tail is missing"),
        ((*state, state[0]), "state must be one of this model: 2.conv_tail is not known"),
        ((), "is missing"),
        (replace_tensors(state, {"0.memory.position": torch.zeros(2)}), "must be torch.int64"),
        (replace_tensors(state, {"0.memory.position": torch.zeros(3).long()}), r"shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            save_memory(path, odd, model)
    other = backbone(Setting(mixer="lmm", memory={"chunk_size": 8}))
    with pytest.raises(
        ValueError, match="one of this model: it comes from one with other settings"
    ):
        save_memory(path, read_on(other), model)
    attention = backbone(SETTINGS["attention in a window"])
    with pytest.raises(ValueError, match="holds no memory to save, since the mixer is 'attention'"):
        save_memory(path, read_on(attention), attention)
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    model, path = backbone(), tmp_path / "a"
    x = inputs(2, 20, 0)
    x[1, 5] = torch.nan
    for caches in (False, True):
        with pytest.raises(ValueError, match=r"state.0.* must be finite to be kept: got NaN"):
            save_memory(path, model(x)[1], model, caches=caches)
    assert not list(tmp_path.iterdir())


def test_what_is_no_backbone_is_named(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone()

    path, wrapper = tmp_path / "a", Wrapper()
    state = read_on(wrapper.backbone)
    mag = SETTINGS["mag"].build()
    for odd, words in (
        (wrapper, "model must be a Backbone: got Wrapper. Pass its `backbone`."),
        (mag, "model must be a Backbone: got MemoryAsGate. Pass the Backbone whose state this is."),
        (state, "model must be a Backbone: got tuple. Pass the Backbone whose state this is."),
    ):
        with pytest.raises(TypeError, match=re.escape(words)):
            save_memory(path, state, odd)
        with pytest.raises(TypeError, match=re.escape(words)):
            load_memory(path, odd)
    assert not path.exists()


@torch.no_grad()
def test_settings_are_the_same_numbers_as_whole_ones_and_as_fractions(tmp_path: Path) -> None:
    one, other = (
        backbone(Setting(mixer="mac", memory={"max_surprise": number})) for number in (1, 1.0)
    )
    state = read_on(one)
    save_memory(tmp_path / "a", state, one, caches=True)
    assert_same_bits(load_memory(tmp_path / "a", other), state)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = backbone()
    state = read_on(model)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere: make it first"):
        save_memory(tmp_path / "nowhere/a", state, model)
    with pytest.raises(IsADirectoryError, match="is a folder: give the path of a file"):
        save_memory(tmp_path, state, model)
    with pytest.raises(FileNotFoundError, match="There is no memory file "):
        load_memory(tmp_path / "a", model)
    with pytest.raises(IsADirectoryError, match="is a folder: give the path of a memory file"):
        load_memory(tmp_path, model)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_fails_while_it_is_written_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    model, path = backbone(), tmp_path / "a"
    save_memory(path, read_on(model), model)
    before = path.read_bytes()
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            save_memory(path, read_on(model, (40,)), model)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    save_memory(path, read_on(model, (40,)), model)
    assert header(path)["rows"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_no_memory_file_is_named(tmp_path: Path) -> None:
    model, path = backbone(), tmp_path / "a"
    for content in (b"", b"a book of many pages", bytes(100), b"\xff" * 50):
        path.write_bytes(content)
        assert not is_memory_file(path)
        with pytest.raises(ValueError, match="is no memory file of titans, or is cut short"):
            load_memory(path, model)
    for metadata in (
        None,
        {"format": "pt"},
        {HEADER: ""},
        {HEADER: "[1]"},
        {HEADER: "{}"},
        {HEADER: "3"},
        {HEADER: json.dumps({"schema": SCHEMA})},
        {HEADER: json.dumps({"schema": SCHEMA, **dict.fromkeys(("config", "weights"), "0")})},
    ):
        save_file({"0.memory": torch.zeros(2)}, path, metadata)
        with pytest.raises(ValueError, match="is no memory file of titans"):
            load_memory(path, model)
    save_file({}, path, {HEADER: json.dumps({"schema": SCHEMA + 1, "made": "of new things"})})
    with pytest.raises(ValueError, match=f"has schema version {SCHEMA + 1}: this titans reads "):
        load_memory(path, model)


def forge(path: Path, model: Backbone, state: Any, **changes: Any) -> None:
    """A file whose header fits the model and the tensors, whatever they are."""
    tensors = {name: x.clone() for name, x in named_tensors(state).items()} | changes
    tensors = {name: x for name, x in tensors.items() if x is not None}
    table = {
        "schema": SCHEMA,
        "config": module._config_hash(model),
        "dtype": module._dtype(model),
        "weights": module._weights_hash(model),
        "rows": 2,
        "caches": True,
        "content": module.content_hash(tensors),
    }
    path.write_bytes(save(tensors, {HEADER: json.dumps(table)}))


@torch.no_grad()
def test_tensors_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    model, path = backbone(SETTINGS["mac"]), tmp_path / "a"
    state = read_on(model)
    forge(path, model, state)
    assert_same_bits(load_memory(path, model), state)
    surprise = "0.memory.memory.surprise.1"
    good = named_tensors(state)[surprise]
    for changes, sentence in (
        ({surprise: None}, f"{surprise} is missing"),
        ({"0.more": good}, "0.more is not known"),
        ({surprise: good[:, :, :-1].clone()}, rf"{surprise} must have shape \[2, 2, 8, 16\]: got "),
        ({surprise: good[:1].clone()}, rf"{surprise} must have shape \[2, 2, 8, 16\]: got "),
        ({surprise: good.float()}, f"{surprise} must be torch.float64: got torch.float32"),
        ({surprise: torch.tensor(1.0).double()}, rf"{surprise} must have shape .*: got \[\]"),
        ({"1.at": torch.zeros(2, 3).double()}, r"1.at must be torch.int64"),
        ({"1.keys": torch.zeros(2, 3, 2, 8).double()}, r"1.keys must have shape \[2, 5, 2, 8\]"),
        ({"1.at": torch.tensor(1)}, r"1.at must have shape .*: got \[\]"),
    ):
        forge(path, model, state, **changes)
        with pytest.raises(ValueError, match="does not hold a state of this model: " + sentence):
            load_memory(path, model)


@pytest.fixture(scope="module", params=SOME)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = backbone(SETTINGS[request.param], layers=1)
    path = tmp_path_factory.mktemp("written") / "a.memory"
    save_memory(path, read_on(model), model, caches=request.param != "mal")
    return model, path.read_bytes(), load_memory(path, model)


DAMAGE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_harmless(written: Any, content: bytes, tmp_path: Path) -> None:
    """Refused in a sentence, or as if nothing had happened."""
    model, _, state = written
    path = tmp_path / "damaged"
    path.write_bytes(content)
    said = None
    try:
        loaded = load_memory(path, model)
    except ValueError as error:
        said = str(error)
    if said is None:
        assert_same_bits(loaded, state)
    else:
        assert str(path) in said


@DAMAGE
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(written: Any, tmp_path: Path, data: st.DataObject) -> None:
    content = written[1]
    keep = data.draw(st.one_of(st.integers(0, 3000), st.integers(0, len(content) - 1)))
    path = tmp_path / "cut"
    path.write_bytes(content[: min(keep, len(content) - 1)])
    with pytest.raises(ValueError, match="is no memory file of titans, or is cut short"):
        load_memory(path, written[0])
    path.write_bytes(content + bytes(1 + keep))
    with pytest.raises(ValueError, match="is no memory file of titans, or is cut short"):
        load_memory(path, written[0])


@DAMAGE
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(
    written: Any, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(written[1])
    places = st.one_of(st.integers(0, 3000), st.integers(0, len(content) - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=3)):
        content[at % len(content)] ^= data.draw(st.integers(1, 255))
    assert_harmless(written, bytes(content), tmp_path)


def test_a_changed_number_is_noticed(written: Any, tmp_path: Path) -> None:
    content = bytearray(written[1])
    path = tmp_path / "a"
    for at in (-1, -1000):
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: its numbers are not those"):
            load_memory(path, written[0])
