"""What a caller may not pass: one sentence each that says what to do, and a state as it was."""

import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import torch
from memory_problems import assert_same_bits, convert, named
from small_mixers import SETTINGS, Setting, copied, inputs, middle
from torch import nn

from titans_core import (
    Attention,
    AttentionConfig,
    Backbone,
    BackboneConfig,
    HybridConfig,
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    MemoryConfig,
    NeuralMemory,
)

MEMORY, WINDOW = MemoryConfig(num_heads=2), AttentionConfig(num_heads=2, window=8)
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
    # From here on every shape is the same.
    "chunks": {"memory": {"chunk_size": 8}},
    "forgetting": {"memory": {"forget": "zero"}},
    "clamp": {"memory": {"max_surprise": 0.5}},
    "no clamp": {"memory": {"max_surprise": None}},
    "largest step": {"memory": {"max_step_size": 0.05}},
    "gates": {"memory": {"gates": "shared"}},
    "no momentum": {"memory": {"momentum": False}},
    "rotary base": {"attention": {"rope_base": 100.0}},
    "a window": {"attention": {"window": 5}},
    "a shorter window": {"hybrid": {"window": 4}},
    "tokens of the segment before": {"hybrid": {"num_previous": 3}},
    "persistent tokens": {"hybrid": {"num_persistent": 2}},
}


@every_mixer
def test_a_state_of_another_model_is_refused(setting: Setting) -> None:
    mixer = setting.build()
    for name, config in CONFIGS.items():
        if concerns(setting.mixer, config):
            other = Setting(mixer=setting.mixer, **config).build()
            message = refusal(mixer, middle(other, [15, 15]))
            assert "with this one's settings" in message, name
            assert "belongs to another configuration: pass what this mixer gave back" in message


@every_mixer
def test_a_state_is_taken_where_settings_are_the_same_numbers(setting: Setting) -> None:
    state = middle(setting.build(), [9, 6])
    memory = {**setting.memory, "max_surprise": 1, "max_step_size": 0.1}
    attention = {**setting.attention, "rope_base": 10_000}
    again = replace(setting, memory=memory, attention=attention)
    # Weights are no settings.
    again.build(seed=1)(inputs(2, 3), state)


def test_a_state_of_a_layer_without_its_residual_is_refused() -> None:
    layers = [
        MemoryAsLayer(16, NeuralMemory(16, MEMORY), Attention(16, WINDOW), residual=r)
        for r in (False, True)
    ]
    x = inputs(1, 3).float()
    with pytest.raises(ValueError, match="belongs to another configuration"):
        layers[0](x, layers[1](x)[1])


def concerns(mixer: str, config: dict[str, Any]) -> bool:
    hybrid = config.get("hybrid", {})
    return not (
        (mixer == "lmm" and "memory" not in config)
        or (mixer == "attention" and "attention" not in config)
        or ("window" in hybrid and mixer not in ("mag", "mal"))
        or (hybrid.keys() & {"retrieve", "segment_len", "num_previous"} and "mac" not in mixer)
        or ("window" in config.get("attention", {}) and mixer != "attention")
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


@every_mixer
def test_inputs_that_do_not_stand_beside_the_weights_are_refused(setting: Setting) -> None:
    for model in (setting.build().float(), Backbone(setting.config())):
        x = inputs(2, 4).float()
        for odd, words in (
            (
                x.double(),
                "must have the dtype of the model's weights, torch.float32: got torch.float64",
            ),
            (x.bfloat16(), "torch.float32: got torch.bfloat16"),
            (x.long(), "torch.float32: got torch.int64"),
            (x.to("meta"), "x must be on the model's device cpu: got meta"),
            (x[:0], r"x must have at least one row: got shape \[B, T, dim\] = \[0, 4, 16\]"),
        ):
            with pytest.raises((TypeError, ValueError), match=words):
                model(odd)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)
            with pytest.raises(TypeError, match="got torch.float64"):
                model(x.double())
            with pytest.raises(TypeError, match="got torch.int64"):
                model(x.long())


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal"])
def test_a_document_may_begin_with_a_call_wherever_the_grids_stand(mixer: str) -> None:
    """Behind a frozen read or a restarted memory the grids of memory and attention have parted."""
    layer = MIXERS[mixer].build()
    state, x = middle(layer, [9, 6]), inputs(2, 30)
    reset = flags_of(2, 30, true=[(0, 0), (1, 0)])
    wanted = layer(x)[0]
    parted = [
        layer(inputs(2, 5), state, write=False)[1],
        layer(inputs(2, 5), layer.restart_memory(state))[1],
    ]
    for after in parted:
        y, _ = layer(x, after, reset=reset)
        assert torch.allclose(y, wanted, rtol=0, atol=1e-10)
    if mixer == "mac+mal":
        # There may be no token at all that both grids allow, and the message must not send one there.
        for t in range(1, 30):
            message = refusal(layer, parted[0], time=30, reset=flags_of(2, 30, true=[(0, t)]))
            assert message.endswith(
                "Fill the gap before it with masked tokens, or begin a call with the document."
            )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: MemoryAsContext(16, MEMORY, WINDOW, HybridConfig(segment_len=40)),
            r"hybrid.segment_len must be a multiple of memory.chunk_size = 16: got 40\.",
        ),
        (
            lambda: MemoryAsGate(16, MEMORY, AttentionConfig(num_heads=2), HybridConfig(window=3)),
            r"hybrid.window must be at least the convolution's size = 4: got 3\.",
        ),
        (
            lambda: MemoryAsLayer(
                16, NeuralMemory(16, MEMORY), Attention(16, replace(WINDOW, window=3))
            ),
            r"hybrid.window must be at least the convolution's size = 4: got 3\.",
        ),
    ],
    ids=["mac", "mag", "mal"],
)
def test_a_mixer_is_not_built_against_the_law(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("odd", [8.0, "8", math.nan, True, [8]], ids=str)
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, f.name)
        for kind in (BackboneConfig, MemoryConfig, AttentionConfig, HybridConfig)
        for f in fields(kind)
        if int in (get_args(f.type) or (f.type,))
    ],
)
def test_what_counts_is_an_integer(kind: type, field: str, odd: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{field} must be an integer: got {re.escape(repr(odd))}\."
    ):
        kind(**{field: odd})


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            MemoryConfig,
            {"max_step_size": "0.1"},
            r"memory.max_step_size must be a number: got '0.1'\.",
        ),
        (MemoryConfig, {"max_surprise": True}, r"memory.max_surprise must be a number: got True\."),
        (MemoryConfig, {"momentum": 1}, r"memory.momentum must be True or False: got 1\."),
        (AttentionConfig, {"rope_base": "big"}, "attention.rope_base must be a number: got 'big'"),
    ],
)
def test_other_settings_are_of_their_kind(kind: type, settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**settings)


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
