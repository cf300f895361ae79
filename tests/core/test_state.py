"""States as values: rows joined and split, forks, and either half of a state made anew."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import assert_same_bits, assert_same_result
from small_mixers import SETTINGS as PLAIN
from small_mixers import Setting, copied, held, in_pieces, inputs, right_padding

from titans_core import detach, join, map_state, split, state_bytes
from titans_core.attend import EMPTY
from titans_core.attention import AttentionState
from titans_core.state import (
    cache_names,
    named_tensors,
    replace_tensors,
    settings_of,
    take_row,
    trim,
)

SETTINGS = {
    **PLAIN,
    "lmm, inner steps": Setting(mixer="lmm", memory={"inner_steps": 3, "forget_per": "channel"}),
    "mac, inner steps": Setting(mixer="mac", memory={"inner_steps": 2}),
}
EVERY = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)

CACHES = {"keys", "values", "at", "retrieved_keys", "retrieved_values", "asked"}
CACHES |= {"conv_tail", "query_tail"}

# Before the first token, inside a chunk, inside a segment, at the ends of both, and further on.
READ = (0, 1, 6, 8, 13, 24)


def states_of(mixer: Any, lengths: tuple[int, ...] = READ) -> list[Any]:
    """States of one row each, that have read so many tokens of texts of their own."""
    return [mixer(inputs(1, n, seed), mixer.fresh_state(1))[1] for seed, n in enumerate(lengths)]


@EVERY
@torch.no_grad()
def test_joined_rows_go_on_as_each_would_alone(setting: Setting) -> None:
    mixer: Any = setting.build()
    states = states_of(mixer)
    for seed, time in ((20, 1), (21, 11)):
        x = inputs(len(states), time, seed)
        y, joined = mixer(x, join(states))
        alone = [mixer(x[row : row + 1], state) for row, state in enumerate(states)]
        assert_same_result((y, ()), (torch.cat([y for y, _ in alone]), ()))
        for state, (_, wanted) in zip(split(joined), alone, strict=True):
            assert_same_result((y, held(state)), (y, held(wanted)))


@EVERY
@torch.no_grad()
def test_splitting_undoes_joining_bit_for_bit(setting: Setting) -> None:
    mixer: Any = setting.build()
    states = states_of(mixer)
    assert_same_bits(tuple(split(join(states))), tuple(states))
    # Rows of several states of several rows keep their order.
    pairs = [join(states[:2]), join(states[2:5]), states[5]]
    assert_same_bits(tuple(split(join(pairs))), tuple(states))
    assert_same_bits(join(split(pairs[1])), pairs[1])
    assert type(join(states)) is type(states[0])


@EVERY
@torch.no_grad()
def test_trimming_takes_away_what_is_empty_in_every_row(setting: Setting) -> None:
    mixer: Any = setting.build()
    states = states_of(mixer)
    # Beside the longest the others have empty places, of which the longest of them needs none.
    rest = take_row(join(states), 0)
    assert_same_bits(rest, states[0])
    others = join([take_row(join(states), row) for row in range(4)])
    padded = join([*states[:4], states[-1]])
    cut = map_state(lambda x: x[:4], padded)
    assert_same_bits(trim(cut), others)
    assert_same_bits(trim(padded), padded)


@EVERY
@torch.no_grad()
def test_rows_of_a_batch_go_on_alone(setting: Setting) -> None:
    mixer: Any = setting.build()
    x = inputs(3, 30)
    mask = torch.arange(19) < torch.tensor([19, 4, 9])[:, None]
    state = mixer(x[:, :19], mask=mask)[1]
    y, _ = mixer(x[:, 19:], state)
    for row, part in enumerate(split(state)):
        one = slice(row, row + 1)
        for name in cache_names(part) & {"at", "attention.at", "then.at"}:
            at = named_tensors(part)[name]
            assert not at.shape[1] or at[0, 0] != EMPTY
        assert_same_result((mixer(x[one, 19:], part)[0], ()), (y[one], ()))


@EVERY
@torch.no_grad()
def test_a_fork_leaves_the_state_and_its_other_branch_alone(setting: Setting) -> None:
    mixer: Any = setting.build()
    x = inputs(2, 20)
    state = mixer(inputs(2, 13, 1))[1]
    before = copied(state)
    first = mixer(x, state)
    mixer(x + 1, state)
    mixer(x, state, write=False)
    mixer.restart_memory(state), mixer.restart_caches(state), split(state), join([state, state])
    assert_same_bits(state, before)
    assert_same_bits(mixer(x, state), first)


@EVERY
@torch.no_grad()
def test_caches_begin_anew_and_the_memory_goes_on(setting: Setting) -> None:
    mixer: Any = setting.build()
    x = inputs(2, 20)
    state = mixer(inputs(2, 13, 1))[1]
    after = mixer.restart_caches(state)
    went_on = named_tensors(after)
    memory = {n for n, t in named_tensors(state).items() if went_on[n] is t}
    assert {n.rpartition(".")[2] for n in went_on.keys() - memory} <= CACHES
    assert not {n.rpartition(".")[2] for n in memory} & CACHES
    # Memories by their layers, and every position.
    assert {n.rpartition(".")[2] for n in memory} <= {*"0123", "position"}
    fresh = named_tensors(mixer.fresh_state(2))
    for name in went_on.keys() - memory:
        assert went_on[name].shape == fresh[name].shape, name
        if "retrieved" not in name:
            assert torch.equal(went_on[name], fresh[name]), name
    # Whatever the caches held, nothing is left of it.
    others = {
        name: t + 1
        for name, t in named_tensors(state).items()
        if name not in memory and t.is_floating_point()
    }
    assert_same_bits(mixer.restart_caches(replace_tensors(state, others)), after)
    # The state is a valid one: a stream goes on from it, however it is cut.
    whole = mixer(x, after)
    assert_same_result(in_pieces(mixer, x, [1, 2, 9], after), whole)
    if setting.remembers:
        assert (whole[0] - mixer(x, mixer.restart_memory(after))[0]).abs().max() > 1e-6


@EVERY
@torch.no_grad()
def test_both_halves_anew_are_a_fresh_state(setting: Setting) -> None:
    mixer: Any = setting.build()
    # A multiple of every segment: a place inside of one would stay.
    state = mixer(inputs(2, 48, 1))[1]
    x = inputs(2, 20)
    for anew in (
        mixer.restart_caches(mixer.restart_memory(state)),
        mixer.restart_memory(mixer.restart_caches(state)),
    ):
        assert_same_result((mixer(x, anew)[0], ()), (mixer(x)[0], ()))


@pytest.mark.parametrize("name", ["mac previous", "mac previous, whole", "mac+mal previous"])
@torch.no_grad()
def test_inside_a_segment_the_learned_queries_are_answered_again(name: str) -> None:
    mixer: Any = SETTINGS[name].build()
    mixer = getattr(mixer, "then", mixer)
    # Its first segment has asked them too, and a frozen memory still answers the same.
    state = mixer(inputs(2, 5), write=False)[1]
    after = mixer.restart_caches(state)
    assert (after.retrieved_values.abs().amax((-1, -2)) > 0).all()
    assert_same_result((after.retrieved_keys, ()), (state.retrieved_keys, ()))
    assert_same_result((after.retrieved_values, ()), (state.retrieved_values, ()))


@torch.no_grad()
def test_states_of_two_models_are_not_joined() -> None:
    def state(**attention: int) -> Any:
        mixer: Any = Setting(mixer="mag", attention=attention).build()
        return mixer(inputs(1, 3))[1]

    with pytest.raises(ValueError, match="join needs at least one state: got none"):
        join([])
    first = state()
    with pytest.raises(ValueError, match=r"attention.keys is \[B, S, 2, 8\].* \[B, S, 4, 4\]"):
        join([first, state(num_heads=4)])
    with pytest.raises(ValueError, match=r"attention.conv_tail is nothing in the first"):
        join([first, state(conv_size=3)])
    single = map_state(lambda x: x.float() if x.is_floating_point() else x, first)
    with pytest.raises(ValueError, match=r"keys is .* torch.float64 .* torch.float32"):
        join([first, single])
    with pytest.raises(ValueError, match=r"must have one number of rows .* got \[1, 2\]"):
        split((torch.zeros(1), torch.zeros(2)))


@pytest.mark.parametrize("change", [{"chunk_size": 8}, {"forget": "zero"}, {"max_surprise": 0.5}])
@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal"])
@torch.no_grad()
def test_states_of_other_settings_are_not_joined(mixer: str, change: dict[str, Any]) -> None:
    ours, theirs = (
        Setting(mixer=mixer, memory=memory).build()(inputs(1, 3))[1] for memory in ({}, change)
    )
    with pytest.raises(ValueError, match="the same settings to be joined: these differ in chunk"):
        join([ours, theirs])
    join([ours, ours])


def held_bytes(state: Any) -> int:
    """Bytes that a state keeps from being freed, each storage once."""
    storages = [x.untyped_storage() for x in named_tensors(state).values()]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


MIXERS = ("lmm", "mac", "mac previous", "mag both", "mal", "mac+mal", "attention grouped")
BOUNDED = {
    name: replace(
        PLAIN[name],
        memory={**PLAIN[name].memory, "chunk_size": 16},
        hybrid={**PLAIN[name].hybrid, "segment_len": 64},
    )
    for name in MIXERS
}
"""With grids that both of the lengths below are multiples of."""


@pytest.mark.parametrize("setting", BOUNDED.values(), ids=BOUNDED)
@torch.no_grad()
def test_a_state_holds_on_to_no_more_than_itself(setting: Setting) -> None:
    mixer: Any = setting.build(dtype=torch.float32)
    for padding in (0, 3):
        sizes = set()
        for time in (256, 2048):
            mask = right_padding([time, time - padding], time) if padding else None
            state = mixer(inputs(2, time).float(), mask=mask)[1]
            sizes.add(held_bytes(state))
            # A row of the two, and nothing of the other.
            assert all(held_bytes(row) <= state_bytes(row) for row in split(state))
        assert len(sizes) == 1
        assert sizes.pop() <= state_bytes(state)


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_states_under_autocast_meet_fresh_ones(name: str) -> None:
    mixer: Any = SETTINGS[name].build(dtype=torch.float32)
    x = inputs(2, 6, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = [mixer(inputs(1, 13).float())[1], mixer.fresh_state(1)]
        y, _ = mixer(x, join(states))
        alone = [mixer(x[row : row + 1], state)[0] for row, state in enumerate(states)]
    assert torch.allclose(y.float(), torch.cat(alone).float(), rtol=0, atol=0.05)
    parts = [named_tensors(state) for state in states]
    kinds = {place: [part[place].dtype for part in parts] for place in parts[0]}
    assert [torch.bfloat16, torch.float32] in kinds.values()
    for order in (states, states[::-1]):
        for place, tensor in named_tensors(join(order)).items():
            assert tensor.dtype == torch.promote_types(*kinds[place])


def test_the_tensors_of_a_state_by_name() -> None:
    keys, at = torch.ones(2, 3, 1, 4), torch.full((2, 3), EMPTY)
    position = torch.zeros(2, dtype=torch.long)
    state = (AttentionState(keys, keys, at, position, None, "ours"), ((), (position,)))
    assert list(named_tensors(state)) == ["0.keys", "0.values", "0.at", "0.position", "1.1.0"]
    assert cache_names(state) == {"0.keys", "0.values", "0.at"}
    assert settings_of(state) == {"0": "ours"}
    assert state_bytes(state) == 2 * 24 * 4 + 6 * 8 + 2 * 2 * 8
    changed = replace_tensors(state, {"1.1.0": position + 1, "nobody": position})
    assert changed[1][1][0].tolist() == [1, 1]
    assert changed[0].keys is keys
    assert changed[0].conv_tail is None
    assert changed[0].settings == "ours"
    assert type(changed[0]) is AttentionState


def test_a_detached_state_has_no_past() -> None:
    parts = (torch.ones(1, requires_grad=True) * 2 for _ in range(5))
    state = (AttentionState(*parts, "ours"), None)
    cut = detach(state)
    assert not any(x.requires_grad for x in named_tensors(cut).values())
    assert all(x.requires_grad for x in named_tensors(state).values())
    assert type(cut[0]) is AttentionState
    assert cut[1] is None
