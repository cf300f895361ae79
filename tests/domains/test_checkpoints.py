"""Checkpoints: what goes in comes out, what is broken is named, and none is half-written."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from tiny_language import tiny_model
from torch import nn

from titans_core import MemoryConfig, NeuralMemory, detach
from titans_core.files import load_tensors, remove_drafts
from titans_domains.checkpoints import (
    REST,
    SCHEMA,
    TENSORS,
    WEIGHTS,
    best,
    chosen,
    complete,
    latest,
    load_checkpoint,
    pack,
    read_json,
    rebuild,
    remove_checkpoint,
    save_checkpoint,
    unpack,
)
from titans_domains.training import CheckpointFolder
from titans_domains.weights import configuration_of, load_weights


class Pair(NamedTuple):
    left: Any
    right: Any


class Deep(NamedTuple):
    pair: Pair
    several: tuple[Any, ...]
    nothing: None


def same(a: Any, b: Any) -> bool:
    """Equality with types and the bits of tensors."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def through_json(value: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    table = json.loads(json.dumps(pack(value, tensors)))
    return unpack(table, tensors)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.1,
        "text",
        [],
        (),
        {},
        {0: {"step": torch.tensor(3.0)}, 12: "int keys stay"},
        {"tensor": 1, "items": 2, "tuple": 3},
        {"tuple": [1, (2,)], "one": {"tensor": "0"}},
        (1, (2, [3, (None,)]), "a"),
        [torch.arange(6).view(2, 3), torch.zeros(0), torch.tensor(True)],
        {"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "b": torch.tensor(7)},
        {"strided": torch.arange(6).view(2, 3).T},
        torch.Generator().manual_seed(0).get_state(),
    ],
    ids=str,
)
def test_packing_round_trip(value: Any) -> None:
    assert same(through_json(value), value)


def test_infinities_survive() -> None:
    assert through_json([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert math.isnan(through_json(math.nan))


def test_packed_tensors_share_no_memory() -> None:
    x = torch.zeros(3)
    tensors: dict[str, torch.Tensor] = {}
    pack([x, x[:2]], tensors)
    x.fill_(1)
    assert all((t == 0).all() for t in tensors.values())


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", [Path("a")]], ids=type)
def test_only_plain_values_are_packed(value: Any) -> None:
    with pytest.raises(TypeError, match="A checkpoint holds tensors and plain values: got"):
        pack(value, {})


def test_rebuild_puts_the_named_tuples_back() -> None:
    state = (Deep(Pair(torch.ones(2), None), (Pair(1, 2), torch.zeros(1)), None), ())
    plain = through_json(state)
    assert type(plain[0]) is tuple
    like = (Deep(Pair(torch.zeros(2), None), (Pair(0, 0), torch.zeros(1)), None), ())
    assert same(rebuild(plain, like), state)


def test_rebuild_refuses_another_shape_of_state() -> None:
    for state, like in (((1, 2), (1, 2, 3)), (None, (1,)), ((), (1,)), (torch.ones(1), (1,))):
        with pytest.raises(ValueError, match="carried state is not one of this configuration"):
            rebuild(state, like)


def test_rebuild_refuses_a_state_of_other_settings() -> None:
    def state(**memory: Any) -> Any:
        return NeuralMemory(16, MemoryConfig(num_heads=2, **memory)).fresh_state(1)

    plain = through_json(detach((state(),)))
    assert rebuild(plain, (state(),))[0].settings == state().settings
    with pytest.raises(ValueError, match="carried state is not one of this configuration"):
        rebuild(plain, (state(chunk_size=8),))


def content(fill: float) -> dict[str, Any]:
    return {
        "state_dict": {"model.weight": torch.full((2, 2), fill), "model.model.bias": torch.ones(2)},
        "carried": (torch.tensor([fill]), None),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.tensor([1.0, fill])}}}],
        "global_step": int(fill),
        "skipped": 0,
        **dict.fromkeys(("loops", "lr_schedulers", "cursor", "random")),
    }


def test_a_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "step-0000001"
    save_checkpoint(content(1), folder)
    assert same(
        dict(sorted(load_checkpoint(folder).items())),
        dict(sorted(content(1).items())),
    )
    assert sorted(p.name for p in folder.iterdir()) == [WEIGHTS, REST, TENSORS]
    # The weights stand alone under the model's own names, for whoever wants nothing else.
    assert set(load_tensors(folder / WEIGHTS)) == {"weight", "model.bias"}
    assert not list(tmp_path.glob("*.tmp"))


def test_saving_again_replaces(tmp_path: Path) -> None:
    for fill in (1, 2):
        save_checkpoint(content(fill), tmp_path / "step-0000001")
    loaded = load_checkpoint(tmp_path / "step-0000001")
    assert same(loaded["carried"], content(2)["carried"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10, 100):
        save_checkpoint(content(step), tmp_path / f"step-{step:07d}")
        assert latest(tmp_path).name == f"step-{step:07d}"
    assert [p.name for p in complete(tmp_path)] == ["step-0000010", "step-0000100"]


def test_a_draft_is_no_checkpoint_and_does_not_disturb(tmp_path: Path) -> None:
    draft = tmp_path / "step-0000003.tmp"
    draft.mkdir()
    (draft / "left over").write_text("half")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        latest(tmp_path)
    for step in (1, 2):
        save_checkpoint(content(step), tmp_path / f"step-{step:07d}")
    assert [p.name for p in complete(tmp_path)] == ["step-0000001", "step-0000002"]
    save_checkpoint(content(3), tmp_path / "step-0000003")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000002", "step-0000003"]
    assert sorted(p.name for p in latest(tmp_path).iterdir()) == [WEIGHTS, REST, TENSORS]


def test_a_failure_while_writing_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(content(1), tmp_path / "step-0000001")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("titans_domains.checkpoints.write_synced", full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(content(2), tmp_path / f"step-{step:07d}")
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    loaded = load_checkpoint(latest(tmp_path))
    assert same(loaded["carried"], content(1)["carried"])


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Train on with --resume"):
        latest(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", [WEIGHTS, TENSORS, REST])
@pytest.mark.parametrize("keep", [0, 1, 9, 100])
def test_a_cut_file_is_named(tmp_path: Path, name: str, keep: int) -> None:
    folder = tmp_path / "step-0000001"
    save_checkpoint(content(1), folder)
    file = folder / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is cut short or is no") as caught:
        load_checkpoint(folder)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, TENSORS])
def test_a_bit_that_was_turned_is_noticed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "step-0000001"
    save_checkpoint(content(1), folder)
    file = folder / name
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: it is not what was written") as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(str(file))
    table = json.loads((folder / REST).read_text())
    del table["sha256"][name]
    (folder / REST).write_text(json.dumps(table))
    with pytest.raises(ValueError, match=f"is damaged: it has no checksum of {name}"):
        load_checkpoint(folder)


def test_the_weights_of_a_checkpoint_are_checked_when_they_are_read_alone(tmp_path: Path) -> None:
    folder, model = tmp_path / "step-0000001", nn.Linear(2, 2, bias=False)
    checkpoint = content(1)
    checkpoint["state_dict"] = {"model.weight": torch.ones(2, 2)}
    save_checkpoint(checkpoint, folder)
    load_weights(model, folder / WEIGHTS)
    save_file({"weight": torch.zeros(2, 2)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="is damaged: it is not what was written"):
        load_weights(model, folder / WEIGHTS)
    assert (model.weight == 1).all()


def test_the_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no best checkpoint in"):
        best(tmp_path)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5), (6, math.nan)):
        valid = {} if loss is None else {"loss": loss, "other": -step}
        save_checkpoint(content(step) | {"valid": valid}, tmp_path / f"step-{step:07d}")
    assert best(tmp_path).name == "step-0000002"
    assert [int(p.name[-1]) for p in complete(tmp_path)] == [2, 5, 6]
    # By another figure it is another contest.
    save_checkpoint(content(7) | {"valid": {"other": 9.0}}, tmp_path / "step-0000007", keep_last=1)
    assert [int(p.name[-1]) for p in complete(tmp_path)] == [7]
    assert best(tmp_path).name == "step-0000007"


@pytest.mark.parametrize("name", [WEIGHTS, TENSORS, REST])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "step-0000001"
    save_checkpoint(content(1), folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="is this a run of titans") as caught:
        load_checkpoint(folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is cut short or is no JSON"),
        ('{"schema": 1', "is cut short or is no JSON"),
        ("[1]", "was not written by titans"),
        ('{"architectures": ["GPT2LMHeadModel"]}', "was not written by titans"),
        (
            f'{{"schema": {SCHEMA + 1}}}',
            f"has schema version {SCHEMA + 1}: this titans reads {SCHEMA}",
        ),
        ('{"schema": "one"}', "has schema version 'one'"),
    ],
)
def test_foreign_json_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_json(path)


def test_binary_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match="is no JSON"):
        read_json(tmp_path / "config.json")


DAMAGED = {
    "no checkpoint": '{"schema": 1}',
    "no table": '{"schema": 1, "checkpoint": [1]}',
    "nothing": '{"schema": 1, "checkpoint": null}',
    "two kinds": '{"schema": 1, "checkpoint": {"items": [], "tuple": []}}',
    "empty": '{"schema": 1, "checkpoint": {"items": []}}',
    "no such tensor": '{"schema": 1, "checkpoint": {"items": [["carried", {"tensor": "99"}]]}}',
    "no pairs": '{"schema": 1, "checkpoint": {"items": 3}}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_table_that_is_none_or_lacks_something_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "step-0000001"
    save_checkpoint(content(1), folder)
    sums = json.loads((folder / REST).read_text())["sha256"]
    (folder / REST).write_text(json.dumps(json.loads(text) | {"sha256": sums}))
    with pytest.raises(ValueError, match="is absent or does not fit training.safetensors") as error:
        load_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / REST} is damaged: its ")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, path)
    model = nn.Linear(3, 2)
    load_weights(model, path)
    assert (model.weight == 0).all()
    for other, sentence in (
        (nn.Linear(4, 2), r"weight is \(2, 3\) there, \(2, 4\) in the configuration"),
        (nn.Linear(3, 2, bias=False), r"bias is \(2,\) there, absent in the configuration"),
        (nn.LayerNorm(7), r"bias is \(2,\) there, \(7,\) in"),
    ):
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(ValueError, match="is of another model: " + sentence):
            load_weights(other, path)
        assert all(map(torch.equal, before, other.parameters()))


def test_the_configuration_of_a_model_is_every_setting_by_its_place() -> None:
    settings = configuration_of(tiny_model(mixer="mac"))
    assert settings["backbone.mixer"] == "mac"
    assert settings["backbone.memory.chunk_size"] == 16
    assert settings["backbone.attention.window"] is None
    # Only once: of what is inside of the outermost one, nothing.
    assert all(name.startswith("backbone.") and "blocks" not in name for name in settings)
    assert configuration_of(nn.Linear(2, 3)) == {}


class Holder(nn.Module):
    """A model of the settings it is given, and of one weight whatever they are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = MemoryConfig(**settings)
        self.weight = nn.Parameter(torch.zeros(2, 2))


def test_weights_are_refused_under_settings_they_were_not_trained_with(tmp_path: Path) -> None:
    trained = Holder(max_surprise=2.0)
    checkpoint = content(1) | {"configuration": configuration_of(trained)}
    checkpoint["state_dict"] = {"model.weight": torch.ones(2, 2)}
    save_checkpoint(checkpoint, tmp_path / "step-0000001")
    assert "configuration" not in load_checkpoint(tmp_path / "step-0000001")
    path = tmp_path / "step-0000001" / WEIGHTS
    # 2 and 2.0 are one setting.
    for same in (trained, Holder(max_surprise=2)):
        load_weights(same, path)
        assert (same.weight == 1).all()
    for other, words in (
        (
            Holder(max_surprise=2.0, chunk_size=8),
            "chunk_size = 16, and the configuration has 8: bring",
        ),
        (Holder(max_surprise=None), "max_surprise = 2.0, and the configuration has None: bring"),
        (Holder(), "max_surprise = 2.0, and the configuration has 1.0: bring"),
        (nn.Linear(2, 2, bias=False), "num_heads = 4, and the configuration has 'absent': bring"),
    ):
        with pytest.raises(
            ValueError, match=f"{WEIGHTS} was trained with {words} that setting back"
        ):
            load_weights(other, path)
        assert not (other.weight == 1).any()


def test_what_a_killed_process_did_not_come_to_is_made_up_for(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 2.0)):
        save_checkpoint(content(step) | {"valid": {"loss": loss}}, tmp_path / f"step-{step:07d}")
    (tmp_path / "best.json").write_text(
        json.dumps({"schema": 1, "checkpoint": "step-0000001", "figure": "loss", "value": 3.0})
    )
    folder = CheckpointFolder(keep_last=1)
    loaded = folder.load_checkpoint(tmp_path / "step-0000002")
    assert loaded["valid"] == {"loss": 2.0}
    assert [p.name for p in complete(tmp_path)] == ["step-0000002"]
    assert best(tmp_path).name == "step-0000002"


def test_a_checkpoint_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-0000001"
    save_checkpoint(content(1), path)

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            (path / REST).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(path)
    assert not path.exists()
    assert complete(tmp_path) == []
    monkeypatch.undo()
    remove_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "step-0000001"
    save_checkpoint(content(1), path)
    table = json.loads((path / REST).read_text())
    items = dict(table["checkpoint"]["items"])
    items["global_step"] += 1
    table["checkpoint"]["items"] = list(map(list, items.items()))
    (path / REST).write_text(json.dumps(table))
    with pytest.raises(ValueError, match="training.json is damaged: it is not what was written"):
        load_checkpoint(path)
    # Of checkpoints of before there is no such checksum.
    del table["sha256"]["checkpoint"]
    (path / REST).write_text(json.dumps(table))
    assert load_checkpoint(path)["global_step"] == 2


@pytest.mark.parametrize("value", ["null", '"low"', "[]"])
def test_a_best_figure_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    text = f'{{"schema": 1, "checkpoint": "step-0000001", "figure": "loss", "value": {value}}}'
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(ValueError, match="best.json is damaged: it has no value"):
        save_checkpoint(content(1) | {"valid": {"loss": 1.0}}, tmp_path / "step-0000001")


@pytest.mark.parametrize(
    "name", ["../elsewhere", "/etc", "step-0000009", "", None, ["step-0000001"]]
)
def test_the_best_is_one_of_the_checkpoints_beside_it(tmp_path: Path, name: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "checkpoints"
    save_checkpoint(content(1), folder / "step-0000001")
    (folder / "best.json").write_text(json.dumps({"schema": 1, "checkpoint": name}))
    with pytest.raises(FileNotFoundError, match="which is not there: take the last"):
        chosen(folder, "best")
    assert chosen(folder, "last").name == "step-0000001"
    with pytest.raises(ValueError, match="A checkpoint is 'last' or 'best': got 'first'"):
        chosen(folder, "first")
