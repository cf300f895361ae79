"""Hearing memories read: every token, however the stream is cut, and nothing else."""

import pytest
import torch
from tiny_language import tiny_model

from titans_core.listening import listening, memories_of, memory_states, overhearing

MIXERS = {
    "lmm": ["block 0", "block 1"],
    "mac": ["block 0", "block 1"],
    "mag": ["block 0", "block 1"],
    "mal": ["block 0 memory", "block 1 memory"],
    "mac+mal": ["block 0 memory", "block 0 then", "block 1 memory", "block 1 then"],
    "lmm/gla": ["block 0"],
    "attention": [],
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_memories_have_names_and_their_states_the_same_order(mixer: str) -> None:
    model = tiny_model(mixer=mixer)
    names = list(memories_of(model))
    assert names == MIXERS[mixer]
    with torch.no_grad(), listening(model) as listener:
        _, state = model(torch.randint(0, 256, (1, 40)))
    states = memory_states(state)
    assert len(states) == len(names)
    for name, one in zip(names, states, strict=True):
        assert torch.equal(listener.after[name].memory[0], one.memory.memory[0])


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag", "mal", "mac+mal"])
@pytest.mark.parametrize("cuts", [(1,), (17, 18, 40), (49,)])
def test_a_stream_may_be_cut_anywhere(mixer: str, cuts: tuple[int, ...]) -> None:
    model = tiny_model(mixer=mixer).double()
    ids = torch.randint(0, 256, (1, 50))
    whole, parts = [], []
    with torch.no_grad():
        with listening(model) as listener:
            model(ids)
            whole.append(listener.take())
        with listening(model) as listener:
            state = None
            for piece in ids.tensor_split(cuts, 1):
                _, state = model(piece, state)
                parts.append(listener.take())
    for name, wanted in whole[0].items():
        for field, x in wanted._asdict().items():
            found = torch.cat([getattr(part[name], field) for part in parts], 1)
            assert found.shape[:2] == (1, 50)
            assert torch.allclose(found, x, rtol=0, atol=1e-9), field


def test_the_first_chunk_surprises_as_if_nothing_had_been_read() -> None:
    model = tiny_model(mixer="lmm", num_layers=1).double()
    with torch.no_grad(), listening(model) as listener:
        model(torch.randint(0, 256, (2, 40)))
        [heard] = listener.take().values()
    size = model.backbone.config.memory.chunk_size
    assert torch.allclose(heard.surprise[:, :size], heard.before[:, :size], rtol=0, atol=1e-12)
    assert not torch.allclose(heard.surprise[:, size:], heard.before[:, size:], rtol=1e-3)


def test_persistent_tokens_are_not_heard_and_nobody_listens_afterwards() -> None:
    model = tiny_model(mixer="mal")
    heard: list[int] = []
    with overhearing(model, lambda name, x, state: heard.append(x.shape[1])), torch.no_grad():
        model(torch.randint(0, 256, (1, 5)))
    assert heard == [5, 5]
    with torch.no_grad():
        model(torch.randint(0, 256, (1, 5)))
    assert heard == [5, 5]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
