"""What every way through a stream keeps: cuts, masks, resets, phases; no future, no mixing of rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_problems import (
    Problem,
    assert_close,
    assert_same_bits,
    assert_same_result,
    convert,
    in_pieces,
    make_problem,
    named,
    state_row,
    values_and_gradients,
)

from titans_kernels import fresh_state, memory_read

SETTINGS: list[dict[str, Any]] = [
    {"depth": 1, "chunk_size": 4, "norm": False},
    {"depth": 2, "chunk_size": 16},
    {"depth": 2, "chunk_size": 1, "gates": "shared"},
    {"depth": 3, "chunk_size": 5, "max_surprise": 0.5, "activation": "silu"},
    {"depth": 2, "chunk_size": 16, "forget_toward": "zero", "residual": False},
    {"depth": 2, "chunk_size": 5, "inner_steps": 2},
    {"depth": 3, "chunk_size": 4, "inner_steps": 3, "channel_forget": True, "max_surprise": 0.5},
]
RULES: list[dict[str, Any]] = [{}, {"inner_steps": 2, "channel_forget": True}]
BACKENDS = ("reference", "chunked")


def cuts_of(time: int) -> st.SearchStrategy[list[int]]:
    """Places to cut, with empty pieces among them."""
    return st.lists(st.integers(0, time), max_size=8).map(sorted)


@settings(max_examples=60)
@given(data=st.data(), setting=st.sampled_from(SETTINGS), carried=st.booleans())
def test_a_cut_stream_equals_one_call(
    data: st.DataObject, setting: dict[str, Any], carried: bool
) -> None:
    problem = make_problem(time=45, carried=carried, largest_step=0.05, **setting)
    cuts = data.draw(cuts_of(45))
    assert_same_result(in_pieces(problem, cuts), problem.run())


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_token_at_a_time(setting: dict[str, Any]) -> None:
    problem = make_problem(time=35, carried=True, largest_step=0.05, **setting)
    assert_same_result(in_pieces(problem, list(range(1, 35))), problem.run())


def test_two_thousand_tokens_in_pieces() -> None:
    problem = make_problem(batch=1, heads=1, time=2048, width=16, hidden=64)
    cuts = [7, 107, 108, 1000, 1027, 2000]
    assert_same_result(in_pieces(problem, cuts), problem.run())


@pytest.mark.parametrize("rule", RULES)
def test_gradients_flow_through_a_carried_state(rule: dict[str, Any]) -> None:
    problem = make_problem(time=37, carried=True, largest_step=0.05, **rule)
    problem = convert(problem, lambda x: x.requires_grad_(x.is_floating_point()))
    inputs = [x for x in named(problem).values() if x.requires_grad]
    grads = []
    for y, state in (problem.run(), in_pieces(problem, [5, 21, 22])):
        weights = [x for x in named(state).values() if x.is_floating_point()]
        loss = y.square().sum() + sum(w.square().sum() for w in weights)
        grads.append(dict(enumerate(torch.autograd.grad(loss, inputs, allow_unused=True))))
    assert_close(grads[1], grads[0], 1e-10)


def phases(batch: int, time: int) -> torch.Tensor:
    """Right-padded lengths, all different."""
    return torch.arange(time) < torch.tensor([time, 0, 3, 7, 11][:batch])[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_at_different_phases_equal_each_row_alone(
    setting: dict[str, Any], backend: str
) -> None:
    problem = make_problem(batch=5, time=40, largest_step=0.05, **setting)
    mask = phases(5, 13)
    first = replace(problem.tokens(0, 13), mask=mask)
    _, state = first.run(backend)
    assert state.position.tolist() == mask.sum(1).tolist()
    y, after = problem.tokens(13, 40, state).run(backend)
    for row in range(5):
        live = [*range(int(mask[row].sum())), *range(13, 40)]
        alone = problem.row(row)
        stream = {
            name: getattr(alone, name)[:, live]
            for name in ("q", "k", "v", "step_size", "momentum", "forget")
        }
        wanted_y, wanted = replace(alone, **stream).run(backend)
        got = (y[row : row + 1], state_row(after, row))
        assert_same_result(got, (wanted_y[:, -27:], wanted))


@pytest.mark.parametrize("lengths", [(1, 2), (3, 16), (16, 5), (33, 0), (0, 0)])
@pytest.mark.parametrize("rule", RULES)
def test_padding_on_the_right_changes_nothing(
    lengths: tuple[int, int], rule: dict[str, Any]
) -> None:
    problem = make_problem(time=33, carried=True, largest_step=0.05, **rule)
    mask = torch.arange(33) < torch.tensor(lengths)[:, None]
    y, state = replace(problem, mask=mask).run()
    for row, length in enumerate(lengths):
        short = problem.row(row).tokens(0, length, problem.row(row).state)
        wanted = short.run()
        assert_same_result((y[row : row + 1, :length], state_row(state, row)), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_masked_token_leaves_the_state_bit_for_bit(rule: dict[str, Any], backend: str) -> None:
    problem = make_problem(time=5, carried=True, **rule)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    assert problem.state is not None
    # Neither row at the end of a chunk, where the memory itself is the next chunk's.
    problem.state.position.copy_(torch.tensor([3, 21]))
    _, after = replace(problem, mask=mask).run(backend)
    assert_same_bits(after, problem.state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_what_stands_under_the_mask_may_be_nan(rule: dict[str, Any], backend: str) -> None:
    problem = make_problem(time=20, chunk_size=8, carried=True, **rule)
    mask = torch.arange(20) < torch.tensor([20, 9])[:, None]
    problem = replace(problem, mask=mask)
    wanted = values_and_gradients(problem, backend)
    for name in ("q", "k", "v", "step_size", "momentum", "forget"):
        getattr(problem, name)[~mask] = torch.nan
    found = values_and_gradients(problem, backend)
    for name, x in wanted.items():
        assert torch.equal(found[name], x), name


def packed(setting: dict[str, Any]) -> tuple[Problem, list[list[tuple[int, int]]]]:
    """Three rows of documents of several lengths, and where each begins and ends."""
    chunk = setting["chunk_size"]
    lengths = [[7, 16, 20], [2 * chunk, 1, chunk + 1], [30]]
    time = 4 * chunk + 40
    mask, reset = torch.zeros(2, 3, time, dtype=torch.bool).unbind()
    places = []
    for row, documents in enumerate(lengths):
        at, spans = 0, []
        for length in documents:
            spans.append((at, at + length))
            reset[row, at], mask[row, at : at + length] = True, True
            at += -(-length // chunk) * chunk
        places.append(spans)
    problem = make_problem(
        batch=3, time=time, carried=True, started=True, largest_step=0.05, **setting
    )
    return replace(problem, mask=mask, reset=reset), places


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_packed_documents_equal_the_documents_alone(setting: dict[str, Any], backend: str) -> None:
    problem, places = packed(setting)
    y, state = problem.run(backend)
    for row, spans in enumerate(places):
        alone = replace(problem.row(row), mask=None, reset=None)
        for first, last in spans:
            wanted_y, wanted = alone.tokens(first, last).run(backend)
            assert_same_result((y[row : row + 1, first:last],), (wanted_y,))
        assert_same_result((wanted_y, state_row(state, row)), (wanted_y, wanted))


@settings(max_examples=60)
@given(data=st.data(), setting=st.sampled_from(SETTINGS))
def test_packed_documents_may_be_cut_anywhere(data: st.DataObject, setting: dict[str, Any]) -> None:
    problem, _ = packed(setting)
    cuts = data.draw(cuts_of(problem.q.shape[1]))
    assert_same_result(in_pieces(problem, cuts), problem.run())


@pytest.mark.parametrize("rule", RULES)
def test_a_reset_erases_bit_for_bit(rule: dict[str, Any]) -> None:
    problem = make_problem(time=20, carried=True, **rule)
    fresh = replace(problem, state=None)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[:, 0] = True
    assert_same_bits(replace(problem, reset=reset).run(), fresh.run())


@settings(max_examples=60)
@given(data=st.data(), setting=st.sampled_from(SETTINGS))
def test_no_future_token_is_seen(data: st.DataObject, setting: dict[str, Any]) -> None:
    problem = make_problem(time=45, carried=True, largest_step=0.05, **setting)
    wanted, _ = problem.run()
    at = data.draw(st.integers(0, 44))
    name = data.draw(st.sampled_from(["q", "k", "v", "step_size", "momentum", "forget"]))
    changed = getattr(problem, name).clone()
    changed[:, at] *= 0.5
    y, _ = replace(problem, **{name: changed}).run()
    assert torch.equal(y[:, :at], wanted[:, :at])
    assert not torch.equal(y[:, at:], wanted[:, at:])
    if name == "q":
        assert torch.equal(y[:, at + 1 :], wanted[:, at + 1 :])


@pytest.mark.parametrize("setting", SETTINGS)
def test_other_rows_change_no_bit_of_a_row(setting: dict[str, Any]) -> None:
    problem = make_problem(batch=3, time=45, carried=True, largest_step=0.05, **setting)
    y, state = problem.run()
    other = make_problem(batch=3, time=45, carried=True, largest_step=0.05, seed=1, **setting)
    assert problem.state is not None
    assert other.state is not None
    mixed = convert((problem, other), lambda x: x.clone())[1]
    for name in ("q", "k", "v", "step_size", "momentum", "forget"):
        getattr(mixed, name)[1] = getattr(problem, name)[1]
    for got, kept in zip(named(mixed.state).values(), named(problem.state).values(), strict=True):
        got[1] = kept[1]
    mixed.state.position.copy_(problem.state.position)
    mixed = replace(mixed, initial=problem.initial, norm=problem.norm)
    got_y, got = mixed.run()
    assert torch.equal(got_y[1], y[1])
    assert_same_bits(state_row(got, 1), state_row(state, 1))
    assert not torch.equal(got_y[0], y[0])


@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
@pytest.mark.parametrize("norm", [True, False])
def test_a_frozen_read_equals_reading_without_writing(forget_toward: str, norm: bool) -> None:
    problem = make_problem(
        time=9, carried=True, norm=norm, forget_toward=forget_toward, residual=norm, depth=3,
        inner_steps=2,
    )  # fmt: skip
    assert problem.state is not None
    y = memory_read(problem.q, problem.state, problem.initial, rule=problem.rule, norm=problem.norm)
    for t in range(9):
        # A masked token writes nothing and is read all the same, but a frozen one keeps its query.
        at = replace(
            problem.tokens(t, t + 1, problem.state),
            step_size=torch.zeros_like(problem.step_size[:, t : t + 1]),
            momentum=torch.zeros_like(problem.momentum[:, t : t + 1]),
            forget=torch.zeros_like(problem.forget[:, t : t + 1]),
        )
        assert_same_result((at.run()[0],), (y[:, t : t + 1],))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens(backend: str) -> None:
    problem = make_problem(time=0, carried=True)
    y, state = problem.run(backend)
    assert y.shape == (2, 0, 2, 4)
    assert_same_bits(state, problem.state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_state_that_came_in_is_untouched(rule: dict[str, Any], backend: str) -> None:
    problem = make_problem(time=20, carried=True, started=True, **rule)
    before = convert(problem, lambda x: x.clone())
    problem.run(backend)
    values_and_gradients(problem, backend)
    assert_same_bits(problem, before)


def test_a_fresh_state_is_the_initial_memory() -> None:
    problem = make_problem(forget_toward="zero", inner_steps=2)
    state = fresh_state(problem.initial, 3, rule=problem.rule)
    for w, base in zip(state.memory, problem.initial, strict=True):
        assert torch.equal(w, base.expand(3, *base.shape))
    assert_same_bits(state.passes, ((state.memory, state.surprise),))
    state = fresh_state(problem.initial, 3, rule=replace(problem.rule, forget_toward="initial"))
    assert all(not w.any() for part in state[:3] for w in part)
    assert state.position.tolist() == [0, 0, 0]
