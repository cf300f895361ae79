"""A memory attached to a host: the same model at first, and one stream in every way of reading."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from titans_core import (
    AttentionConfig,
    HybridConfig,
    MemoryConfig,
    added_parameters,
    attach,
    carried,
    detach_memory,
    load_attached,
    read,
    save_attached,
)
from titans_core.attached.attaching import attachment_of
from titans_core.attached.saving import FILE, HEADER
from titans_core.state import named_tensors

tf = pytest.importorskip("transformers", reason="needs transformers")

VOCAB = 50
KINDS = ("gpt2", "llama", "qwen2", "qwen3")
MEMORIES = ("lmm", "mac", "mag", "mal", "mac+mal")
CASES = [*(("gpt2", mixer) for mixer in MEMORIES), *((kind, "mac+mal") for kind in KINDS[1:])]
SMALL: dict[str, Any] = {
    "memory": MemoryConfig(num_heads=2, chunk_size=4, expansion=2),
    "attention": AttentionConfig(num_heads=2),
    "hybrid": HybridConfig(num_persistent=3, window=5, segment_len=8, num_retrieved=4),
}


def host(
    kind: str = "gpt2", dtype: torch.dtype = torch.float64, width: int = 32, layers: int = 3
) -> Any:
    torch.manual_seed(1)
    if kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=VOCAB, n_embd=width, n_layer=layers, n_head=4, n_positions=32,
            bos_token_id=0, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        return tf.GPT2LMHeadModel(config).to(dtype).eval()
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
    config = getattr(tf, f"{names[kind]}Config")(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return getattr(tf, f"{names[kind]}ForCausalLM")(config).to(dtype).eval()


def moved(model: Any) -> Any:
    """The model with every added parameter off its start, so that the memory has its effect."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in added_parameters(model):
            p.add_(0.2 * torch.randn_like(p))
    return model


def attached(kind: str = "gpt2", mixer: str = "mac+mal", **given: Any) -> Any:
    return moved(attach(host(kind), mixer, given.pop("layers", [0, 2]), **{**SMALL, **given}))


def tokens(rows: int, length: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randint(1, VOCAB, (rows, length))


def close(a: Tensor, b: Tensor, atol: float = 1e-11) -> None:
    assert torch.allclose(a, b, rtol=0, atol=atol), (a - b).abs().max()


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


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_was_added_is_kept_beside_the_host(kind: str, tmp_path: Path) -> None:
    model, ids = attached(kind), tokens(2, 20)
    logits = model(ids).logits
    save_attached(model, tmp_path / "kept")
    save_attached(model, tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [FILE]
    other = host(kind)
    assert load_attached(other, tmp_path / "kept") is other
    assert torch.equal(other(ids).logits, logits)
    assert {id(p) for p in other.parameters() if p.requires_grad} == {
        id(p) for p in added_parameters(other)
    }
    detach_memory(other)
    close(other(ids).logits, host(kind)(ids).logits)


def test_a_host_saved_with_its_memory_loads_with_and_without(tmp_path: Path) -> None:
    model, ids = attached("llama", train="all"), tokens(2, 20)
    logits, plain = model(ids).logits, host("llama")(ids).logits
    model.save_pretrained(tmp_path)
    save_attached(model, tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(again(ids).logits, plain)
    assert torch.equal(load_attached(again, tmp_path)(ids).logits, logits)


def changed(path: Path, **changes: Any) -> None:
    """The file with other entries in its table."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    table = json.loads(header["__metadata__"][HEADER])
    save_file(load_file(path), path, {HEADER: json.dumps({**table, **changes})})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def narrower(path: Path) -> None:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = load_file(path)
    tensors["0.scale"] = tensors["0.scale"][:16].clone()
    save_file(tensors, path, header["__metadata__"])


def other_setting(path: Path) -> None:
    changed(path, config={"mixer": "mac", "memory": {"surplus": 1}})


DAMAGED: dict[str, tuple[Any, str]] = {
    "cut": (cut, "is cut short"),
    "text": (lambda path: path.write_text("{}"), "is cut short or is no file of save_attached"),
    "bit": (flipped, "its numbers are not those that were saved"),
    "schema": (lambda path: changed(path, schema=9), "has schema version 9"),
    "layers": (lambda path: changed(path, layers=[0, 7]), "layers must be"),
    "fewer layers": (lambda path: changed(path, layers=[0]), "in 2 layers"),
    "no host": (lambda path: changed(path, host=None), "header is not complete"),
    "setting": (other_setting, "settings that this titans does not know"),
    "shape": (narrower, r"0.scale is \[16\] there"),
    "gone": (lambda path: path.unlink(), "There is no"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_file_that_does_not_fit_leaves_the_host_as_it_was(what: str, tmp_path: Path) -> None:
    damage, message = DAMAGED[what]
    save_attached(attached(), tmp_path)
    damage(tmp_path / FILE)
    model = host()
    names = list(model.state_dict())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_attached(model, tmp_path)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    attach(model, "lmm", **SMALL)


@pytest.mark.parametrize(
    "other", [{"kind": "llama"}, {"width": 16}, {"layers": 4}], ids=["kind", "width", "layers"]
)
def test_a_file_of_another_host_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    save_attached(attached(), tmp_path)
    with pytest.raises(ValueError, match="another host, gpt2 of width 32 with 3 layers: this"):
        load_attached(host(**other), tmp_path)


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    model = attached()
    added_parameters(model)[0].data[0] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        save_attached(model, tmp_path)
    assert not list(tmp_path.iterdir())


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
