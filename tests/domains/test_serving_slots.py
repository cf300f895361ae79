"""A batch whose rows come and go: each goes on as it would alone."""

import random
from typing import Any

import pytest
import torch
from memory_problems import assert_same_result
from small_mixers import held
from tiny_language import VOCAB, tiny_model

from titans_core.state import named_tensors, state_bytes
from titans_domains.serving import slots as module
from titans_domains.serving.slots import Slots, size_for

MIXERS = ("lmm", "mac", "mag", "mal", "mac+mal", "attention", "gla/swa")


@pytest.mark.parametrize(
    ("mixer", "write"), [*((mixer, True) for mixer in MIXERS), ("lmm", False), ("mac", False)]
)
@torch.no_grad()
def test_rows_that_come_and_go_are_read_as_they_would_be_alone(mixer: str, write: bool) -> None:
    model = tiny_model(mixer=mixer, num_layers=2 if "/" in mixer else 1).double()
    lots = random.Random(1)
    slots, alone, number, most = Slots(model, write=write), {}, 0, 0
    for _ in range(28):
        while alone and lots.random() < 0.3:
            key = lots.choice(list(alone))
            wanted = alone.pop(key)
            if lots.random() < 0.3:
                slots.drop(key)
            else:
                assert_same_result((0, held(slots.leave(key))), (0, held(wanted)))
        while len(alone) < 11 and lots.random() < 0.5:
            number += 1
            text = torch.randint(0, VOCAB, (1, lots.choice([1, 2, 17, 33])))
            state = model(text, model.backbone.fresh_state(1))[1]
            slots.enter(number, state)
            alone[number] = state
        assert len(slots) == len(alone)
        most = max(most, len(alone))
        if not alone:
            continue
        tokens = {key: lots.randrange(VOCAB) for key in alone}
        found = slots.step(tokens)
        assert found.keys() == alone.keys()
        for key, state in alone.items():
            logits, alone[key] = model(torch.tensor([[tokens[key]]]), state, write=write)
            assert_same_result((found[key], ()), (logits[0, -1], ()))
    assert number > 14
    assert most > 8


@torch.no_grad()
def test_a_row_that_is_put_in_place_changes_no_bit_of_the_others() -> None:
    model = tiny_model().double()
    states = [model(torch.randint(0, VOCAB, (1, 20)))[1] for _ in range(4)]
    bits: list[Any] = []
    for third in (states[2], states[3]):
        slots = Slots(model)
        for key, state in zip("abc", (*states[:2], third), strict=True):
            slots.enter(key, state)
        found = [slots.step(dict.fromkeys("abc", token)) for token in range(20)]
        slots.drop("c")
        slots.enter("d", states[3])
        found += [slots.step(dict.fromkeys("abd", token)) for token in range(20)]
        bits.append([(step["a"], step["b"]) for step in found])
    for one, other in zip(*bits, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@torch.no_grad()
def test_a_row_is_put_where_all_the_others_begin_a_chunk() -> None:
    # There what a memory is and what it was when the chunk began are the same numbers in one place.
    model = tiny_model(num_layers=1).double()
    fresh = model.backbone.fresh_state(1)
    slots = Slots(model)
    for key in "abc":
        slots.enter(key, fresh)
    wanted = fresh
    for token in range(16):
        slots.step(dict.fromkeys("abc", token))
        _, wanted = model(torch.tensor([[token]]), wanted)
    state = model(torch.randint(0, VOCAB, (1, 21)))[1]
    slots.enter("d", state)
    for token in range(20):
        found = slots.step(dict.fromkeys("abcd", token))
        for key, before in (("a", wanted), ("d", state)):
            logits, after = model(torch.tensor([[token]]), before)
            assert_same_result((found[key], ()), (logits[0, -1], ()))
            wanted, state = (after, state) if key == "a" else (wanted, after)


@pytest.mark.parametrize("mixer", ["lmm", "mag"])
@torch.no_grad()
def test_nothing_of_a_row_that_is_gone_stays(mixer: str) -> None:
    model = tiny_model(mixer=mixer).double()
    slots = Slots(model)
    states = [model(torch.randint(0, VOCAB, (1, n)))[1] for n in (40, 3)]
    slots.enter("long", states[0])
    slots.enter("short", states[1])
    long = state_bytes(slots.state)
    slots.drop("long")
    fresh = named_tensors(model.backbone.fresh_state(1))
    for name, x in named_tensors(slots.state).items():
        for row, key in enumerate(slots.keys):
            if key is None and x.numel() and name not in slots.caches:
                assert torch.equal(x[row], fresh[name][0])
    assert mixer == "lmm" or state_bytes(slots.state) < long
    slots.drop("short")
    assert slots.state is None


@pytest.mark.parametrize("call", ["join", "trim"])
@torch.no_grad()
def test_a_row_that_cannot_enter_leaves_the_others_as_they_were(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(mixer="mag", num_layers=1).double()
    slots = Slots(model)
    states = [model(torch.randint(0, VOCAB, (1, n)))[1] for n in (40, 3, 9)]
    slots.enter("a", states[0])
    slots.enter("b", states[1])

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(module, call, fail)
        with pytest.raises(MemoryError):
            slots.enter("c", states[2])
    assert len(slots) == 2
    slots.enter("d", states[2])
    found = slots.step(dict.fromkeys("abd", 5))
    for key, state in zip("abd", states, strict=True):
        logits, _ = model(torch.tensor([[5]]), state)
        assert_same_result((found[key], ()), (logits[0, -1], ()))


def test_batches_have_few_sizes() -> None:
    assert [size_for(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 64)] == [1, 2, 4, 8, 8, 16, 16, 24, 64]
