"""What every mixer keeps along a stream: no future, cuts anywhere, documents, padding, frozen reads."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_problems import assert_same_bits, assert_same_result, named
from small_mixers import (
    FEW,
    LENGTHS,
    SETTINGS,
    Setting,
    copied,
    cuts_of,
    held,
    in_pieces,
    inputs,
    memories,
    memory_states,
    middle,
    packed,
    right_padding,
    row_of,
)

from titans_core import MIXERS, PRESETS, Attention, Backbone, state_bytes

every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
a_few_settings = pytest.mark.parametrize("setting", FEW.values(), ids=FEW)
a_setting = st.sampled_from(list(SETTINGS.values()))
MEMORIES = {name: setting for name, setting in SETTINGS.items() if setting.remembers}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_causal(run: Any, x: torch.Tensor, at: int) -> None:
    """Changing token `at` changes no bit before it, and the output there."""
    changed = x.clone()
    changed[:, at] += 0.3 * inputs(len(x), 1, seed=3)[:, 0]
    before, after = run(x), run(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])


def assert_packed_may_be_cut(setting: Setting, cuts: list[int]) -> None:
    mixer, rows = setting.build(), packed(setting.grid)
    flags = {"mask": rows.mask, "reset": rows.reset}
    y, state = in_pieces(mixer, rows.x, cuts, **flags)
    wanted_y, wanted = mixer(rows.x, **flags)
    # Nobody reads what stands under the mask.
    assert_same_result((y[rows.mask], state), (wanted_y[rows.mask], wanted))


@every_setting
@settings(max_examples=2)
@given(data=st.data())
def test_no_future_token_is_seen(setting: Setting, data: st.DataObject) -> None:
    mixer, time = setting.build(), data.draw(st.sampled_from(LENGTHS))
    lengths = data.draw(st.sampled_from([[0, 0], [5, 5], [3, 10]]))
    state = middle(mixer, lengths)
    at = data.draw(st.integers(0, time - 1))
    assert_causal(lambda x: mixer(x, state)[0], inputs(2, time), at)


@settings(max_examples=12)
@given(data=st.data(), setting=a_setting)
def test_no_future_token_of_a_packed_row_is_seen(data: st.DataObject, setting: Setting) -> None:
    mixer, rows = setting.build(), packed(setting.grid)
    row, document = data.draw(st.sampled_from([(0, 0), (0, 1), (1, 1), (2, 0)]))
    at = data.draw(st.integers(*rows.places[row][document]).filter(lambda t: rows.mask[row, t]))

    def run(x: torch.Tensor) -> torch.Tensor:
        return mixer(x, mask=rows.mask, reset=rows.reset)[0][row : row + 1]

    assert_causal(run, rows.x, at)


@every_setting
@settings(max_examples=2)
@given(data=st.data())
def test_a_cut_stream_equals_one_call(setting: Setting, data: st.DataObject) -> None:
    mixer, time = setting.build(), data.draw(st.sampled_from(LENGTHS))
    x, cuts = inputs(2, time), data.draw(cuts_of(time))
    write = data.draw(st.sampled_from([True, True, True, False]))
    state = middle(mixer, data.draw(st.sampled_from([[0, 0], [11, 11], [2, 9]])))
    cut = in_pieces(mixer, x, cuts, state, write=write)
    assert_same_result(cut, mixer(x, state, write=write))


@a_few_settings
def test_one_token_at_a_time(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(2, 25)
    assert_same_result(in_pieces(mixer, x, list(range(1, 25))), mixer(x))


@pytest.mark.slow
@every_setting
@settings(max_examples=60)
@given(data=st.data())
def test_a_stream_may_be_cut_often(setting: Setting, data: st.DataObject) -> None:
    mixer, x = setting.build(), inputs(2, 120)
    state = middle(mixer, data.draw(st.sampled_from([[0, 0], [11, 11], [2, 9]])))
    cuts = data.draw(cuts_of(120, most=60))
    assert_same_result(in_pieces(mixer, x, cuts, state), mixer(x, state))


@pytest.mark.slow
@every_setting
@settings(max_examples=60)
@given(data=st.data())
def test_packed_documents_may_be_cut_often(setting: Setting, data: st.DataObject) -> None:
    assert_packed_may_be_cut(setting, data.draw(cuts_of(6 * setting.grid + 1, most=30)))


@settings(max_examples=12)
@given(data=st.data(), setting=a_setting)
def test_packed_documents_may_be_cut_anywhere(data: st.DataObject, setting: Setting) -> None:
    assert_packed_may_be_cut(setting, data.draw(cuts_of(6 * setting.grid + 1)))


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag"])
def test_two_thousand_tokens_in_pieces(mixer: str) -> None:
    # In MAC what the memory recalls is written again: with larger steps this small one is chaotic.
    setting = Setting(
        mixer=mixer,
        memory={"chunk_size": 16, "max_step_size": 0.02},
        hybrid={"segment_len": 64, "window": 64, "num_persistent": 8},
    )
    layer, x = setting.build(), inputs(1, 2048)
    cuts = [7, 107, 108, 1000, 1027, 2000]
    assert_same_result(in_pieces(layer, x, cuts), layer(x))


@pytest.mark.parametrize("mixer", MIXERS)
def test_two_thousand_tokens_of_a_preset_in_pieces(mixer: str) -> None:
    torch.manual_seed(0)
    model = Backbone(dataclasses.replace(PRESETS["tiny"], mixer=mixer)).double()
    x = torch.randn(1, 2048, 64, dtype=torch.float64)
    assert_same_result(in_pieces(model, x, [7, 107, 108, 1000, 1027, 2000]), model(x))


@every_setting
def test_the_state_does_not_grow(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(1, 24)
    state, sizes = None, []
    for _ in range(4):
        _, state = mixer(x, state)
        sizes.append(state_bytes(state))
    if setting.bounded:
        assert set(sizes) == {sizes[0]}
    else:
        assert sizes == sorted(set(sizes))


@every_setting
def test_packed_documents_equal_the_documents_alone(setting: Setting) -> None:
    mixer, rows = setting.build(), packed(setting.grid)
    state = middle(mixer, [4, 7, 0])
    y, state = mixer(rows.x, state, mask=rows.mask, reset=rows.reset)
    for row, spans in enumerate(rows.places):
        for first, last in spans:
            wanted_y, wanted = mixer(rows.x[row : row + 1, first:last])
            assert_same_result((y[row : row + 1, first:last], None), (wanted_y, None))
        assert_same_result((y[:1, :0], held(row_of(state, row))), (y[:1, :0], held(wanted)))


@a_few_settings
def test_documents_after_a_row_went_on_equal_the_documents_alone(setting: Setting) -> None:
    """Rows at different places of the grid, each of which ends its document on its own grid."""
    mixer, grid = setting.build(), setting.grid
    lengths = [3, grid, 0]
    state, x = middle(mixer, lengths), inputs(3, 3 * grid)
    reset = torch.zeros(3, 3 * grid, dtype=torch.bool)
    mask = torch.ones_like(reset)
    for row, length in enumerate(lengths):
        begin = -length % grid + grid
        reset[row, begin] = True
        mask[row, begin - grid // 3 : begin] = False
        y, after = mixer(x, state, mask=mask, reset=reset)
        wanted_y, wanted = mixer(x[row : row + 1, begin:])
        got = (y[row : row + 1, begin:], held(row_of(after, row)))
        assert_same_result(got, (wanted_y, held(wanted)))


@every_setting
def test_a_reset_erases_bit_for_bit(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(2, 3 * setting.grid)
    reset = torch.zeros(2, x.shape[1], dtype=torch.bool)
    reset[0, 0] = reset[1, 2 * setting.grid] = True
    found = []
    for seed in (1, 2):
        state = middle(mixer, [setting.grid, 2 * setting.grid], seed)
        y, state = mixer(x, state, reset=reset)
        found.append((y[0], y[1, 2 * setting.grid :], state))
    assert_same_bits(*found)
    wanted = mixer(x[:1])
    assert_same_result((y[:1], held(row_of(state, 0))), (wanted[0], held(wanted[1])))


@a_few_settings
def test_a_reset_at_an_empty_document_erases_too(setting: Setting) -> None:
    mixer, grid = setting.build(), setting.grid
    state, x = middle(mixer, [grid + 7, grid + 5]), inputs(2, 2 * grid + 3)
    reset = torch.zeros(2, 3, dtype=torch.bool)
    reset[0, 0] = True
    mask = torch.tensor([[False] * 3, [True] * 3])
    _, state = mixer(x[:, :3], state, mask=mask, reset=reset)
    fresh = mixer.fresh_state(1)
    assert_same_result((x, held(row_of(state, 0))), (x, held(fresh)))
    y, _ = mixer(x, state)
    assert_same_result((y[:1], None), (mixer(x[:1])[0], None))


@a_few_settings
def test_padding_on_the_right_changes_nothing(setting: Setting) -> None:
    mixer, x, lengths = setting.build(), inputs(6, 23), [1, 3, 16, 22, 23, 0]
    state = middle(mixer, [9] * 6)
    y, after = mixer(x, state, mask=right_padding(lengths, 23))
    for row, length in enumerate(lengths):
        wanted_y, wanted = mixer(x[row : row + 1, :length], row_of(state, row))
        got = (y[row : row + 1, :length], held(row_of(after, row)))
        assert_same_result(got, (wanted_y, held(wanted)))


@a_few_settings
def test_a_call_of_padding_leaves_the_state_bit_for_bit(setting: Setting) -> None:
    mixer = setting.build()
    state = middle(mixer, [11, 3])
    _, after = mixer(inputs(2, 4), state, mask=torch.zeros(2, 4, dtype=torch.bool))
    for row in range(2):
        assert_same_bits(held(row_of(after, row)), held(row_of(state, row)))


@a_few_settings
def test_rows_at_different_phases_equal_each_row_alone(setting: Setting) -> None:
    mixer, lengths = setting.build(), [13, 0, 3, 8]
    first, then = inputs(4, 13), inputs(4, 18, seed=1)
    _, state = mixer(first, mask=right_padding(lengths, 13))
    cut = in_pieces(mixer, then, [1, 2, 12], state)
    y, state = mixer(then, state)
    assert_same_result(cut, (y, state))
    for row, length in enumerate(lengths):
        stream = torch.cat([first[row, :length], then[row]])[None]
        wanted_y, wanted = mixer(stream)
        got = (y[row : row + 1], held(row_of(state, row)))
        assert_same_result(got, (wanted_y[:, length:], held(wanted)))


@pytest.mark.parametrize("setting", MEMORIES.values(), ids=MEMORIES)
def test_a_frozen_memory_stays_as_it_was_bit_for_bit(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(2, 20)
    state = middle(mixer, [9, 6])
    y, after = mixer(x, state, write=False)
    assert memory_states(after)
    assert_same_bits(tuple(memory_states(after)), tuple(memory_states(state)))
    assert not torch.allclose(y, mixer(x, state)[0])
    # What the memory has read is seen, and a read from the start is another.
    assert not torch.allclose(y, mixer(x, mixer.restart_memory(state), write=False)[0])


@a_few_settings
def test_a_frozen_read_is_causal_and_goes_on_with_its_caches(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(2, 20)
    state = middle(mixer, [9, 6])
    assert_causal(lambda x: mixer(x, state, write=False)[0], x, 11)
    y, _ = mixer(x[:, 11:], mixer(x[:, :11], state, write=False)[1], write=False)
    assert_same_result((y, None), (mixer(x, state, write=False)[0][:, 11:], None))


@pytest.mark.parametrize("setting", MEMORIES.values(), ids=MEMORIES)
def test_a_restarted_memory_is_the_start_and_the_rest_goes_on(setting: Setting) -> None:
    mixer = setting.build()
    state = middle(mixer, [9, 6])
    restarted, fresh = mixer.restart_memory(state), mixer.fresh_state(2)
    wanted = {**named(state), **memories(fresh)}
    for name, x in named(restarted).items():
        assert torch.equal(x, wanted[name]), name
    assert any(not torch.equal(x, wanted[name]) for name, x in memories(state).items())
    again = mixer(inputs(2, 20), restarted)
    assert_same_result(in_pieces(mixer, inputs(2, 20), [1, 3, 9], restarted), again)


def test_attention_has_no_memory_to_restart() -> None:
    mixer = SETTINGS["attention"].build()
    assert isinstance(mixer, Attention)
    state = middle(mixer, [3])
    assert_same_bits(mixer.restart_memory(state), state)


@a_few_settings
def test_the_state_that_came_in_is_untouched(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(2, 20)
    state = middle(mixer, [9, 6])
    before, mask = copied(state), right_padding([20, 4], 20)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[0, 0] = True
    for context in ({}, {"mask": mask, "reset": reset}, {"write": False}):
        with torch.enable_grad():
            y, _ = mixer(x, state, **context)
            y.sum().backward()
        assert_same_bits(state, before)


@a_few_settings
def test_no_tokens_are_a_call_too(setting: Setting) -> None:
    mixer = setting.build()
    state = middle(mixer, [9, 6])
    none = torch.zeros(2, 0, dtype=torch.bool)
    for flags in ({}, {"mask": none, "reset": none}):
        y, after = mixer(inputs(2, 0), state, **flags)
        assert (y.shape, y.dtype) == ((2, 0, 16), torch.float64)
        assert_same_bits(after, state)
