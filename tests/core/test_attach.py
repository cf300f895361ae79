"""A memory attached to a host: the same model at first, and one stream in every way of reading."""

import copy
from typing import Any

import pytest
import torch
from small_hosts import KINDS, SMALL, VOCAB, attached, close, host, moved, tf, tokens
from torch import Tensor

from titans_core import (
    added_parameters,
    attach,
    carried,
    detach_memory,
    read,
)
from titans_core.state import named_tensors

MEMORIES = ("lmm", "mac", "mag", "mal", "mac+mal")
CASES = [*(("gpt2", mixer) for mixer in MEMORIES), *((kind, "mac+mal") for kind in KINDS[1:])]


@pytest.mark.parametrize(("kind", "mixer"), CASES)
def test_a_memory_begins_without_effect_and_is_taken_off_without_trace(
    kind: str, mixer: str
) -> None:
    model, ids = host(kind, torch.float32), tokens(2, 20)
    model.lm_head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    logits = model(ids).logits
    assert attach(model, mixer, [1, 2], **SMALL) is model
    assert torch.equal(model(ids).logits, logits)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in added_parameters(model)
    }
    moved(model)
    assert not torch.allclose(model(ids).logits, logits, atol=1e-2)
    assert detach_memory(model) is model
    assert torch.equal(model(ids).logits, logits)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("mixer", MEMORIES)
def test_only_what_was_added_learns_and_all_of_it(mixer: str) -> None:
    model, ids = attach(host("llama"), mixer, [0, 2], **SMALL), tokens(2, 30)
    ours = {id(p) for p in added_parameters(model)}
    before = {n: p.clone() for n, p in model.named_parameters() if id(p) not in ours}
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    for name, p in model.named_parameters():
        if id(p) in ours:
            assert bool(p.grad.any()) == name.endswith("scale"), name
        else:
            assert p.grad is None
    optimiser.step()
    optimiser.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in added_parameters(model))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_the_host_learns_too_where_it_is_asked_to() -> None:
    model, ids = attach(host(), "lmm", **SMALL, train="all"), tokens(1, 12)
    model(ids, labels=ids).loss.backward()
    assert model.transformer.wte.weight.grad.any()
    assert len([m for m in model.transformer.h if hasattr(m, "titans_memory")]) == 3


@pytest.mark.parametrize(("kind", "mixer"), CASES)
def test_a_text_cut_anywhere_gives_the_logits_of_one_call(kind: str, mixer: str) -> None:
    model, ids = attached(kind, mixer), tokens(2, 25)
    whole = model(ids).logits
    for cuts in ([1] * 25, [7, 1, 3, 14]):
        cache, found = None, []
        for piece in ids.split(cuts, 1):
            output = model(piece, cache=cache, use_cache=True)
            cache = output.cache
            found.append(output.logits)
        close(torch.cat(found, 1), whole)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generation_is_that_of_full_calls(kind: str) -> None:
    model, ids = attached(kind), tokens(2, 7)
    greedy = ids
    for _ in range(10):
        greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], 1)
    settings = {"do_sample": False, "max_new_tokens": 10, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **settings), greedy)
    # A cache whose layers are made when they are first used.
    assert torch.equal(model.generate(ids, cache=tf.DynamicCache(), **settings), greedy)


def test_beams_take_their_memories_along() -> None:
    model, ids = attached(), tokens(3, 7)
    beams = {"do_sample": False, "max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 4}
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=True,
        length_penalty=0.0, **beams,
    )  # fmt: skip
    logits = model(found.sequences).logits[:, 6:-1].log_softmax(-1)
    scores = logits.gather(2, found.sequences[:, 7:, None]).sum((1, 2))
    # They are kept in float32.
    close(scores.float(), found.sequences_scores.float(), 1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind: str, side: str) -> None:
    model, ids, lengths = attached(kind), tokens(3, 14), (14, 9, 5)
    mask = torch.arange(14) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if side == "left" else mask
    ids[~mask] = 0
    more = tokens(3, 6)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    first = model(ids, attention_mask=mask.long(), position_ids=places, use_cache=True)
    longer = torch.cat([mask, torch.ones_like(more).bool()], 1).long()
    after = model(
        more, attention_mask=longer, cache=first.cache,
        position_ids=torch.tensor(lengths)[:, None] + torch.arange(6),
    )  # fmt: skip
    for row, length in enumerate(lengths):
        alone = model(torch.cat([ids[row][mask[row]], more[row]])[None]).logits[0]
        close(first.logits[row][mask[row]], alone[:length])
        close(after.logits[row], alone[length:])


def test_rows_padded_on_the_left_generate_as_they_do_alone() -> None:
    model, ids = attached("qwen2"), tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    settings = {"do_sample": False, "max_new_tokens": 8}
    found = model.generate(ids.masked_fill(mask == 0, 0), attention_mask=mask, **settings)
    for row, begin in ((0, 0), (1, 4)):
        prompt = ids[row : row + 1, begin:]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert torch.equal(found[row, begin:], alone[0])


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_long_text_is_read_by_windows_whose_memory_goes_on(kind: str) -> None:
    model, ids = attached(kind), tokens(2, 75)
    logits, cache = read(model, ids)
    assert cache.get_seq_length() == 75 - 64
    assert logits.shape == (2, 75, VOCAB)
    given, pieces = None, []
    for window in ids.split(32, 1):
        output = model(window, cache=given, use_cache=True)
        given, pieces = carried(output.cache), [*pieces, output.logits]
        assert given.get_seq_length() == 0
        assert output.cache.get_seq_length() == window.shape[1]
    close(torch.cat(pieces, 1), logits)
    close(read(model, ids, last=True).logits, logits[:, -1:])
    first = read(model, ids[:, :64])
    close(read(model, ids[:, 64:], cache=first.cache).logits, logits[:, 64:])
    # The first window reaches the last one by the memory alone.
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % VOCAB
    change = (read(model, other).logits - logits).abs().amax(2)
    assert (change[0, 64:] > 1e-9).all()
    assert not change[1].any()
    assert not change[0, :3].any()


def test_a_stream_in_windows_is_a_stream_to_the_memory() -> None:
    """A host whose own layers do nothing leaves the memory alone, whose windows cannot be told."""
    model = attached("llama", layers=[0])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    ids = tokens(2, 30)
    whole = model(ids).logits
    close(read(model, ids, window=7).logits, whole)


def test_padded_rows_are_read_by_windows() -> None:
    model, ids = attached("llama"), tokens(2, 50)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    logits = read(model, ids, window=16, attention_mask=mask).logits
    close(logits[1, :20], read(model, ids[1:, :20], window=16).logits[0])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("window", [None, 7, 16])
def test_the_last_token_is_that_of_each_row(kind: str, window: int | None) -> None:
    model, ids = attached(kind), tokens(5, 40)
    lengths = [40, 1, 16, 23, 16]
    mask = (torch.arange(40) < torch.tensor(lengths)[:, None]).long()
    found = read(model, ids, window=window, attention_mask=mask, last=True).logits
    assert found.shape == (5, 1, VOCAB)
    for row, length in enumerate(lengths):
        alone = read(model, ids[row : row + 1, :length], window=window).logits
        close(found[row, 0], alone[0, -1])


def test_logits_are_computed_of_last_tokens_alone() -> None:
    model, ids = attached("llama"), tokens(3, 40)
    columns: list[int] = []
    model.lm_head.register_forward_hook(lambda _, given, __: columns.append(given[0].shape[1]))
    read(model, ids, window=16, last=True)
    assert columns == [0, 0, 1]


def test_gradients_go_through_the_windows() -> None:
    model, ids = attached("llama", train="all"), tokens(1, 40)
    model.get_input_embeddings().weight.requires_grad_(True)
    embedded: list[Tensor] = []

    def keep(_: Any, __: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    read(model, ids, window=10).logits[:, -1].square().sum().backward()
    assert len(embedded) == 4
    assert all(x.grad is not None and x.grad.any() for x in embedded)
    embedded.clear()
    first = model(ids[:, :10], use_cache=True)
    cut = model(ids[:, 10:20], cache=carried(first.cache, detach=True)).logits
    cut.square().sum().backward()
    assert embedded[0].grad is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_checkpointing_of_the_host_changes_no_gradient(kind: str) -> None:
    model, ids = attached(kind, train="all").train(), tokens(2, 24)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        read(model, ids, window=8).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain = gradients()
    model.activation_checkpointing_enable()
    for name, grad in gradients().items():
        close(grad, plain[name])


def test_the_memory_of_a_half_precision_host_is_in_float32() -> None:
    model, ids = host("qwen3", torch.bfloat16), tokens(2, 20)
    logits = model(ids).logits
    attach(model, layers=[1], **SMALL)
    assert torch.equal(model(ids).logits, logits)
    assert {p.dtype for p in added_parameters(model)} == {torch.float32}
    moved(model)
    output = model(ids, use_cache=True)
    assert output.logits.dtype == torch.bfloat16
    state = output.cache.layers[-1].states[1]
    assert {x.dtype for x in named_tensors(state).values()} == {torch.float32, torch.long}


def test_a_copied_model_has_a_memory_of_its_own() -> None:
    model, ids = attached(), tokens(1, 12)
    other = copy.deepcopy(model)
    logits = model(ids).logits
    assert torch.equal(other(ids).logits, logits)
    with torch.no_grad():
        for p in added_parameters(other):
            p.zero_()
    assert torch.equal(model(ids).logits, logits)
    detach_memory(other)
    assert torch.equal(model(ids).logits, logits)
    assert not torch.equal(other(ids).logits, logits)


def test_memories_are_copied_with_a_cache_and_chosen_from() -> None:
    model, ids = attached(), tokens(3, 12)
    with torch.no_grad():
        cache = model(ids[:, :8], use_cache=True).cache
    expected = model(ids).logits[:, 8:]
    for rows, change in (
        ([2, 0], lambda kept: kept.batch_select_indices(torch.tensor([2, 0]))),
        ([0, 0, 1, 1, 2, 2], lambda kept: kept.batch_repeat_interleave(2)),
    ):
        kept = copy.deepcopy(cache)
        change(kept)
        close(model(ids[rows, 8:], cache=kept).logits, expected[rows])
    cache.reset()
    close(model(ids, cache=cache).logits[:, 8:], expected)
