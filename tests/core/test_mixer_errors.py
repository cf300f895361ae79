"""What a caller may not pass: one sentence each that says what to do, and a state as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_problems import assert_same_bits, convert, named
from mixers import SETTINGS, Setting, copied, inputs, middle
from torch import nn

MIXERS = {name: SETTINGS[name] for name in ("lmm", "mac", "mag", "mal", "mac+mal", "attention")}
every_mixer = pytest.mark.parametrize("setting", MIXERS.values(), ids=MIXERS)


@pytest.fixture(autouse=True)
def _shapes_unchecked(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")


def refusal(mixer: nn.Module, state: Any, time: int = 20, batch: int = 2, **flags: Any) -> str:
    """The one line that a call ends with; what came in is left as it was."""
    before = copied(state)
    with pytest.raises((ValueError, TypeError)) as caught:
        mixer(inputs(batch, time), state, **flags)
    if not any(x.is_meta for x in named(state).values()):
        assert_same_bits(state, before)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def cast(state: Any, dtype: torch.dtype) -> Any:
    return convert(state, lambda x: x.to(dtype) if x.is_floating_point() else x)


STATES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "batch size": (lambda state: convert(state, lambda x: x[:1]), "batch size"),
    "dtype": (
        lambda state: cast(state, torch.float32),
        "precision torch.float64: got torch.float32",
    ),
    "device": (lambda state: convert(state, lambda x: x.to("meta")), "device cpu: got meta"),
    "kind": (lambda state: tuple(state), "must be a "),
    "nothing like it": (lambda state: {"state": state}, "got dict"),
}


@every_mixer
@pytest.mark.parametrize("change", STATES)
def test_a_state_that_does_not_fit_is_refused(setting: Setting, change: str) -> None:
    mixer = setting.build()
    changed, words = STATES[change]
    assert words in refusal(mixer, changed(middle(mixer, [9, 6])))


@every_mixer
def test_a_state_of_another_mixer_is_refused(setting: Setting) -> None:
    mixer = setting.build()
    for other in MIXERS.values():
        if other.mixer == setting.mixer:
            continue
        state = middle(other.build(), [9, 6])
        message = refusal(mixer, state)
        if {setting.mixer, other.mixer} != {"mal", "mac+mal"}:
            assert f"got {type(state).__name__}" in message
        assert "belongs to another" in message


CONFIGS: dict[str, dict[str, Any]] = {
    "heads of the memory": {"memory": {"num_heads": 4}},
    "depth of the memory": {"memory": {"depth": 3}},
    "width of the memory": {"memory": {"expansion": 3}},
    "no convolution": {"memory": {"conv_size": 0}},
    "another convolution": {"memory": {"conv_size": 3}},
    "heads of attention": {"attention": {"num_heads": 4}},
    "heads of keys": {"attention": {"num_kv_heads": 1}},
    "convolution of attention": {"attention": {"conv_size": 3}},
    "retrieval": {"hybrid": {"retrieve": "previous"}},
    "a longer window": {"hybrid": {"window": 9}},
    "a longer segment": {"hybrid": {"segment_len": 16}},
}


@every_mixer
def test_a_state_of_another_model_is_refused(setting: Setting) -> None:
    mixer = setting.build()
    for name, config in CONFIGS.items():
        if concerns(setting.mixer, config):
            other = Setting(mixer=setting.mixer, **config).build()
            assert "belongs to a" in refusal(mixer, middle(other, [15, 15])), name


def concerns(mixer: str, config: dict[str, Any]) -> bool:
    hybrid = config.get("hybrid", {})
    return not (
        (mixer == "lmm" and "memory" not in config)
        or (mixer == "attention" and "attention" not in config)
        or ("window" in hybrid and mixer not in ("mag", "mal"))
        or (("retrieve" in hybrid or "segment_len" in hybrid) and "mac" not in mixer)
    )


def flags_of(*shape: int, **at: Any) -> torch.Tensor:
    flags = torch.zeros(*shape, dtype=torch.bool)
    for row, t in at.get("true", ()):
        flags[row, t] = True
    return flags


@every_mixer
@pytest.mark.parametrize("name", ["mask", "reset"])
def test_flags_of_another_shape_are_refused(setting: Setting, name: str) -> None:
    mixer = setting.build()
    state = middle(mixer, [9, 6])
    for flags, came in [
        (flags_of(2, 21), "[2, 21]"),
        (flags_of(1, 20), "[1, 20]"),
        (flags_of(20), "[20]"),
        (torch.ones(2, 20), "torch.float32"),
        (flags_of(2, 20).to("meta"), "got meta"),
    ]:
        message = refusal(mixer, state, **{name: flags})
        assert message.startswith(f"{name} must be ")
        assert came in message


@every_mixer
def test_a_document_that_goes_on_after_padding_is_refused(setting: Setting) -> None:
    mixer = setting.build()
    for hole in ([(1, 4)], [(1, t) for t in range(3, 17)]):
        mask = ~flags_of(2, 20, true=hole)
        message = refusal(mixer, middle(mixer, [9, 6]), mask=mask)
        assert "mask must be False only at the end of a document: row 1 goes on" in message
        assert "Pad on the right" in message


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal"])
def test_a_document_off_the_grid_is_refused(mixer: str) -> None:
    setting = MIXERS[mixer]
    layer, grid = setting.build(), setting.grid
    reset = flags_of(2, 20, true=[(1, 5)])
    for state in (None, middle(layer, [grid, grid])):
        message = refusal(layer, state, reset=reset)
        assert f"multiple of {'segment_len' if mixer == 'mac' else 'chunk_size'}" in message
        assert "row 1, token 5" in message
    # Where a row of the state stands counts, not where the call begins.
    layer(inputs(2, 20), middle(layer, [0, -5 % grid]), reset=reset)
    if mixer == "mac+mal":
        assert "multiple of segment_len" in refusal(layer, None, reset=reset.roll(-1, 1))


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal"])
def test_a_frozen_memory_is_not_reset(mixer: str) -> None:
    layer = MIXERS[mixer].build()
    reset = flags_of(2, 20, true=[(0, 0)])
    message = refusal(layer, middle(layer, [9, 6]), reset=reset, write=False)
    assert message == "A frozen memory cannot be reset: pass reset=None with write=False."


@every_mixer
def test_inputs_of_another_width_are_refused(setting: Setting) -> None:
    mixer = setting.build()
    for x in (inputs(2, 4)[..., :15], inputs(2, 4)[0]):
        with pytest.raises(ValueError, match=r"x must have shape \[B, T, dim\] = \[B, T, 16\]"):
            mixer(x)


@pytest.mark.parametrize(
    ("section", "config", "words"),
    [
        ("hybrid", {"window": 0}, "hybrid.window must be at least 1"),
        ("hybrid", {"num_persistent": -1}, "num_persistent must be 0 or more"),
        ("hybrid", {"retrieve": "later"}, "'aligned' or 'previous'"),
        ("hybrid", {"num_previous": 9}, "at most hybrid.segment_len = 8"),
        ("hybrid", {"retrieve": "previous", "num_retrieved": 9}, "at most hybrid.segment_len = 8"),
        ("hybrid", {"segment_len": 6}, "multiple of memory.chunk_size = 4"),
        ("memory", {"num_heads": 0}, "memory.num_heads must be at least 1"),
        ("memory", {"conv_size": 1}, "must be 0 or at least 2"),
        ("memory", {"max_step_size": 0}, "must be positive"),
        ("memory", {"max_surprise": -1}, "must be positive and finite in float32, or none"),
        ("memory", {"forget": "all"}, "'initial', 'zero' or 'none'"),
        ("memory", {"gates": "one"}, "'layer' or 'shared'"),
        ("memory", {"num_heads": 3}, "multiple of memory.num_heads = 3"),
    ],
)
def test_what_cannot_be_is_refused(section: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Setting(mixer="mac", **{section: config}).build()
