"""Configurations: to JSON and back, changed by `key=value`, and every mistake named."""

import dataclasses
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from titans_core import PRESETS, BackboneConfig
from titans_domains.config import difference, from_dict, override, to_dict
from titans_domains.language import DOMAIN

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    kind: Literal["initial", "none"] = "initial"
    window: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"inner.width must be at least 1: got {self.width}.")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.5
    name: str = "a"
    on: bool = False


def refusal(*assignments: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        override(Outer(), list(assignments))
    return str(caught.value)


@pytest.mark.parametrize("preset", DOMAIN.presets)
def test_presets_survive_json(preset: str) -> None:
    config = DOMAIN.presets[preset]
    values = json.loads(json.dumps(to_dict(config)))
    again = from_dict(DOMAIN.config_type, values)
    assert again == config
    assert difference(again, config) is None


def test_missing_keys_take_their_defaults() -> None:
    assert from_dict(Outer, {}) == Outer()
    assert from_dict(Outer, {"inner": {"width": 5}}) == Outer(inner=Inner(width=5))


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("inner.width=8", Outer(inner=Inner(width=8))),
        (" inner.width = 8 ", Outer(inner=Inner(width=8))),
        ("inner.width=8.0", Outer(inner=Inner(width=8))),
        ("inner.window=16", Outer(inner=Inner(window=16))),
        ("rate=1e-3", Outer(rate=1e-3)),
        ("rate=2", Outer(rate=2.0)),
        ("on=true", Outer(on=True)),
        ("on=True", Outer(on=True)),
        ("name=a word", Outer(name="a word")),
        ("name=a=b", Outer(name="a=b")),
        ('name="7"', Outer(name="7")),
        ("name=", Outer(name="")),
        ("inner.kind=none", Outer(inner=Inner(kind="none"))),
    ],
)
def test_override(assignment: str, expected: Outer) -> None:
    changed = override(Outer(), [assignment])
    assert changed == expected
    for name, value in to_dict(expected).items():
        assert type(getattr(changed, name)) is type(value) or name == "inner"


def test_the_last_assignment_counts_and_the_original_stays() -> None:
    config = Outer(inner=Inner(window=3))
    assert override(config, ["rate=1", "rate=2", "inner.window=none"]) == Outer(rate=2.0)
    assert override(config, ["inner.window=null"]).inner.window is None
    assert config == Outer(inner=Inner(window=3))
    assert override(config, []) == config


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rate", "--set must be key=value: got 'rate'."),
        ("rat=1", "There is no setting 'rat' (did you mean 'rate'?)."),
        ("inner.widht=1", "There is no setting 'inner.widht' (did you mean 'width'?)."),
        ("qqq=1", "There is no setting 'qqq': there are inner, rate, name, on."),
        ("iner.width=1", "There is no group of settings 'iner' (did you mean 'inner'?)."),
        ("rate.x=1", "rate is a single setting: write rate=VALUE."),
        ("inner.width.x.y=1", "inner.width is a single setting: write inner.width=VALUE."),
        (f"rate={'9' * 400}", "rate must be finite: got a number too large."),
        ("=1", "There is no setting '': there are inner, rate, name, on."),
        ("inner.width=8.5", "inner.width must be int: got 8.5."),
        ("inner.width=true", "inner.width must be int: got True."),
        ("inner.width=wide", "inner.width must be int: got 'wide'."),
        ("inner.width=none", "inner.width must be int: got None."),
        ("inner.window=wide", "inner.window must be int: got 'wide'."),
        ("inner.width=0", "inner.width must be at least 1: got 0."),
        ("rate=true", "rate must be float: got True."),
        ("rate=fast", "rate must be float: got 'fast'."),
        ("on=1", "on must be bool: got 1."),
        ("name=7", "name must be str: got 7."),
        ("inner=7", "inner must be a table of settings: got 7."),
        ('inner={"widht": 1}', "inner has no setting 'widht' (did you mean 'width'?)."),
        ("inner.kind=zero", "inner.kind must be one of 'initial', 'none': got 'zero'."),
    ],
)
def test_what_does_not_fit_is_named(assignment: str, sentence: str) -> None:
    assert refusal(assignment) == sentence


@pytest.mark.parametrize("values", [None, 3, [1], "text"])
def test_a_configuration_is_a_table(values: Any) -> None:
    with pytest.raises(ValueError, match="config must be a table of settings: got"):
        from_dict(Outer, values)


def test_a_file_without_the_settings_of_systems_is_read() -> None:
    values = to_dict(PRESETS["tiny"])
    del values["system"]
    assert from_dict(BackboneConfig, values) == PRESETS["tiny"]
    values["mixer"], values["system"] = "samba", {"state_size": 8}
    assert from_dict(BackboneConfig, values).system.state_size == 8


def test_unknown_keys_of_a_file_are_named() -> None:
    with pytest.raises(ValueError, match=r"config has no setting 'raet' \(did you mean 'rate'\?\)"):
        from_dict(Outer, {"raet": 1})


def test_memory_may_be_told_never_to_forget() -> None:
    config = override(DOMAIN.presets["tiny"], ["model.memory.forget=none"])
    assert config.model.memory.forget == "none"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train.lr=Infinity", "train.lr must be finite and at most 1e.15: got inf."),
        ("train.lr=1e400", "train.lr must be finite and at most 1e.15: got inf."),
        ("train.weight_decay=NaN", "train.weight_decay must be finite and at most 1e.15: got nan."),
        ("model.memory.max_surprise=Infinity", "memory.max_surprise must be positive and finite"),
        ("model.memory.max_surprise=1e300", "memory.max_surprise must be positive and finite"),
        ("model.memory.max_surprise=NaN", "memory.max_surprise must be positive and finite"),
        ("model.memory.max_step_size=Infinity", "memory.max_step_size must be positive and finite"),
        ("model.memory.max_step_size=NaN", "memory.max_step_size must be positive and finite"),
        *(
            (
                f"model.attention.rope_base={value}",
                "attention.rope_base must be positive and finite",
            )
            for value in ("0", "-1", "NaN", "Infinity")
        ),
        ("data.held_out=NaN", "data.held_out must be at least 0 and below 1: got nan."),
    ],
)
def test_no_setting_is_infinite_or_no_number(setting: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        override(DOMAIN.presets["tiny"], [setting])


def test_the_small_preset_is_the_one_whose_figure_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its held-out tenth is what the benchmark cuts off by itself before it trains."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = runpy.run_path(str(BENCHMARKS / "tinyshakespeare.py"))
    chosen = json.loads((BENCHMARKS / "results/tinyshakespeare-lmm.json").read_text())["chosen"]
    small = DOMAIN.presets["small"]
    # How often it is validated and saved changes no weight.
    kept = [
        f"{name}={json.dumps(value)}"
        for name, value in (
            ("data.source", small.data.source),
            ("data.valid_bytes", small.data.valid_bytes),
            ("train.valid_every", small.train.valid_every),
            ("train.checkpoint_every", small.train.checkpoint_every),
        )
    ]
    published = benchmark["config"](PRESETS["small"], Path("input.txt"), 1000, 0.1, 0)
    assert override(published, [*chosen.split(), *kept]) == small


def test_difference_names_the_first_setting_and_both_values() -> None:
    ours = Outer(inner=Inner(width=8), rate=0.1)
    assert difference(ours, Outer()) == "inner.width: 8 against 4"
    assert difference(dataclasses.replace(ours, inner=Inner()), Outer()) == "rate: 0.1 against 0.5"
    assert difference(Outer(), Outer(inner=Inner(window=2))) == "inner.window: None against 2"


@dataclass(frozen=True, kw_only=True)
class Listed:
    sizes: tuple[int, ...] = ()
    names: tuple[str, ...] | None = None


def test_tuples_are_lists_in_json() -> None:
    ours = Listed(sizes=(1, 2), names=("a",))
    assert from_dict(Listed, json.loads(json.dumps(to_dict(ours)))) == ours
    assert override(Listed(), ["sizes=[3, 4]", "names=none"]) == Listed(sizes=(3, 4))
    with pytest.raises(ValueError, match=r"sizes\[1\] must be int: got 'b'"):
        override(Listed(), ['sizes=[3, "b"]'])
    with pytest.raises(ValueError, match="sizes must be a list: got 3"):
        override(Listed(), ["sizes=3"])
