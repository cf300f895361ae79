"""What a memory cannot be attached to, and calls that it cannot follow."""

from typing import Any

import pytest
import torch
from small_hosts import SMALL, VOCAB, attached, host, moved, tf, tokens

from titans_core import (
    AttentionConfig,
    MemoryConfig,
    added_parameters,
    attach,
    carried,
    detach_memory,
    read,
)
from titans_core.attached.attaching import attachment_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [3]}, "numbers from 0 to 2"),
        ({"layers": [-1]}, "numbers from 0 to 2"),
        ({"layers": [1, 1]}, "different numbers"),
        ({"layers": []}, "one or more"),
        ({"mixer": "rmt"}, "must be one that stands in a layer"),
        ({"mixer": "mamab"}, "mixer must be one of"),
        ({"train": "none"}, "train must be 'added' or 'all'"),
        (
            {"mixer": "lmm", "memory": MemoryConfig(num_heads=5)},
            "dim must be a multiple of memory.num_heads",
        ),
        ({"attention": AttentionConfig(num_heads=3)}, "dim must be a multiple of twice"),
    ],
)
def test_what_cannot_be_attached_is_refused(
    given: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    if "train" in given and request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")
    model = host()
    with pytest.raises(ValueError, match=message):
        attach(model, **{**SMALL, **given})
    assert not any("titans" in name for name, _ in model.named_modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: host("mistral"), "gpt2, llama, qwen2, qwen3: got MistralForCausalLM of type"),
        (lambda: torch.nn.Linear(2, 2), "got Linear"),
        (lambda: host().transformer, "which has no transformer.h and lm_head"),
    ],
)
def test_other_models_are_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        attach(make(), **SMALL)


def test_a_model_with_cross_attention_is_refused() -> None:
    config = tf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, add_cross_attention=True)
    with pytest.raises(ValueError, match="a decoder alone"):
        attach(tf.GPT2LMHeadModel(config), **SMALL)


def test_a_memory_is_attached_once() -> None:
    model = attached()
    with pytest.raises(ValueError, match="Call detach_memory first"):
        attach(model, **SMALL)
    detach_memory(model)
    for call in (detach_memory, added_parameters):
        with pytest.raises(ValueError, match="Call attach or load_attached first"):
            call(model)
    assert attach(model, **SMALL) is model


SPECULATING = {"prompt_lookup_num_tokens": 2, "max_new_tokens": 4}


def test_caches_that_cannot_carry_a_memory_are_refused() -> None:
    model, ids = host("llama"), tokens(1, 8)
    without = model(ids, use_cache=True).cache
    moved(attach(model, "lmm", [0], **SMALL))
    with pytest.raises(ValueError, match="8 tokens that were read without it"):
        model(ids, cache=without)
    with pytest.raises(ValueError, match="gave back: got DynamicCache without memories"):
        carried(without)
    static = tf.StaticCache(config=model.config, max_cache_len=20)
    with pytest.raises(TypeError, match="one that grows"):
        model(ids, cache=static)
    cache = model(ids, use_cache=True).cache
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="can be cropped"):
        model.generate(ids, attention_mask=torch.ones_like(ids), **SPECULATING)
    attach(detach_memory(model), "lmm", [1], **SMALL)
    with pytest.raises(ValueError, match="a memory at other layers"):
        model(ids, cache=cache)


def test_masks_that_windows_cannot_follow_are_refused() -> None:
    model, ids = attached("gpt2"), tokens(2, 20)
    cache = read(model, ids).cache
    seen = torch.ones_like(ids)
    wrong = (torch.ones(2, 40), torch.ones(1, 20), torch.ones(2, 19), torch.ones(2, 1, 20, 20))
    for mask in (*wrong, seen.tolist()):
        with pytest.raises(ValueError, match=r"each of ids, shape \[2, 20\]: got"):
            read(model, ids, cache=cache, attention_mask=mask)
    for places in (slice(0, 6), slice(3, 4)):
        mask = seen.clone()
        mask[1, places] = 0
        with pytest.raises(ValueError, match="Pad on the right"):
            read(model, ids, attention_mask=mask)
    mask = seen.clone()
    mask[1] = 0
    with pytest.raises(ValueError, match="a row of padding"):
        read(model, ids, attention_mask=mask, last=True)


def test_calls_that_a_memory_cannot_follow_are_refused() -> None:
    model, ids = attached("llama"), tokens(1, 8)
    with pytest.raises(ValueError, match=r"got shape \[1, 1, 8, 8\]"):
        model(ids, attention_mask=torch.ones(1, 1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="packed documents"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]))
    for window in (33, 0, 8.0, True):
        with pytest.raises(ValueError, match="window must be a whole number from 1 to 32 tokens"):
            read(model, ids, window=window)
    with pytest.raises(ValueError, match="at least one token"):
        read(model, ids[:, :0])
    with pytest.raises(TypeError, match="ids must be a tensor of tokens"):
        read(model, ids.tolist())
    # A call that failed leaves nothing behind.
    expected = model(ids).logits
    with pytest.raises(IndexError):
        model(ids + VOCAB)
    assert attachment_of(model).call is None
    assert torch.equal(model(ids).logits, expected)
