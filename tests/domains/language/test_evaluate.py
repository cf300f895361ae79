"""Bits per byte: every mode against what it says it computes, token by token where that is slow."""

import math
from typing import Any

import pytest
import torch
from tiny_language import DOCUMENTS, tiny_model

from titans_domains.language import evaluate
from titans_domains.language.evaluate import bits_per_byte, costs, describe, modes_of, report
from titans_domains.language.floors import floors
from titans_domains.language.model import LanguageModel, token_nats
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer

BYTES = ByteTokenizer()
TEXT = " ".join(DOCUMENTS[:3]).encode()[:200]
WINDOW = 32


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return tiny_model().double()


@pytest.fixture(scope="module")
def attention() -> LanguageModel:
    torch.manual_seed(0)
    return tiny_model(mixer="attention").double()


def ids(text: bytes, tokenizer: Tokenizer = BYTES) -> torch.Tensor:
    return torch.tensor([[tokenizer.end, *tokenizer.encode(text).tolist()]])


@torch.no_grad()
def one_shot(model: LanguageModel, text: bytes, **context: Any) -> torch.Tensor:
    x = ids(text)
    return token_nats(model(x[:, :-1], **context)[0], x[:, 1:])[0]


def cost(model: LanguageModel, text: bytes, mode: str, window: int = WINDOW) -> torch.Tensor:
    return torch.cat(list(costs(model, BYTES, text, mode, window=window)))


def test_carried_and_frozen_equal_one_call_over_the_text(model: LanguageModel) -> None:
    for mode, write in (("carried", True), ("frozen", False)):
        nats = one_shot(model, TEXT, write=write)
        assert torch.allclose(cost(model, TEXT, mode), nats, rtol=0, atol=1e-10)
        bits = bits_per_byte(model, BYTES, [TEXT], mode, window=WINDOW)
        assert bits == pytest.approx(nats.sum().item() / math.log(2) / len(TEXT), abs=1e-10)


@torch.no_grad()
def test_reset_restores_the_memory_every_window(model: LanguageModel) -> None:
    x = ids(TEXT)
    state, wanted = model.backbone.fresh_state(1), []
    for t in range(len(TEXT)):
        if t % WINDOW == 0:
            state = model.backbone.restart_memory(state)
        logits, state = model(x[:, t : t + 1], state)
        wanted.append(token_nats(logits, x[:, t + 1 : t + 2])[0])
    got = cost(model, TEXT, "reset")
    assert torch.allclose(got, torch.cat(wanted), rtol=0, atol=1e-10)
    # Up to the first reset it is the same as carried, and from there on it is not.
    carried = cost(model, TEXT, "carried")
    assert torch.allclose(got[:WINDOW], carried[:WINDOW], rtol=0, atol=1e-10)
    assert (got[WINDOW:] - carried[WINDOW:]).abs().max() > 1e-3
    assert torch.allclose(cost(model, TEXT, "reset", 1000), carried, rtol=0, atol=1e-10)


def test_the_modes_differ(model: LanguageModel) -> None:
    bits = {bits_per_byte(model, BYTES, [TEXT], m, window=WINDOW) for m in modes_of(model)}
    assert len(bits) == 3


@pytest.mark.parametrize("length", [1, 15, 16, 31, 32, 33, 47, 48, 49, 200])
@pytest.mark.parametrize("window", [32, 7, 1])
def test_a_window_reads_each_token_with_half_to_all_of_it_before(
    attention: LanguageModel, length: int, window: int
) -> None:
    text, half = TEXT[:length], max(1, window // 2)
    x, wanted = ids(text), []
    for t in range(length):
        # The windows end at window, window + half, ...: t is read in the first that reaches it.
        end = window if t < window else window + half * -(-(t + 1 - window) // half)
        with torch.no_grad():
            logits, _ = attention(x[:, max(0, end - window) : t + 1])
        wanted.append(token_nats(logits[:, -1:], x[:, t + 1 : t + 2])[0])
    got = cost(attention, text, "window", window)
    assert torch.allclose(got, torch.cat(wanted), rtol=0, atol=1e-10)


@pytest.mark.parametrize("piece", [1, 16, 33, 64])
@pytest.mark.parametrize("mode", ["carried", "frozen"])
def test_the_size_of_the_pieces_does_not_matter(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, mode: str, piece: int
) -> None:
    whole = bits_per_byte(model, BYTES, [TEXT], mode, window=WINDOW)
    monkeypatch.setattr(evaluate, "PIECE", piece)
    pieces = list(costs(model, BYTES, TEXT, mode, window=WINDOW))
    assert len(pieces) == -(-len(TEXT) // piece)
    assert bits_per_byte(model, BYTES, [TEXT], mode, window=WINDOW) == pytest.approx(
        whole, abs=1e-10
    )


@pytest.mark.parametrize("mode", ["carried", "frozen", "reset"])
def test_every_document_starts_afresh(model: LanguageModel, mode: str) -> None:
    texts = [text.encode() for text in DOCUMENTS[1:4]]
    bits = bits_per_byte(model, BYTES, texts, mode, window=WINDOW)
    alone = [bits_per_byte(model, BYTES, [text], mode, window=WINDOW) for text in texts]
    total = sum(b * len(text) for b, text in zip(alone, texts, strict=True))
    assert bits == pytest.approx(total / sum(map(len, texts)), abs=1e-10)
    joined = bits_per_byte(model, BYTES, [b"".join(texts)], mode, window=WINDOW)
    assert abs(joined - bits) > 1e-4


def test_bits_are_per_byte_and_not_per_token() -> None:
    tokenizer = BPETokenizer.train([TEXT], 300)
    torch.manual_seed(0)
    model = tiny_model()
    assert tokenizer.vocab_size > 257
    model = LanguageModel(model.backbone.config, tokenizer.vocab_size).double().eval()
    x = ids(TEXT, tokenizer)
    with torch.no_grad():
        nats = token_nats(model(x[:, :-1])[0], x[:, 1:]).sum().item()
    bits = bits_per_byte(model, tokenizer, [TEXT], "carried", window=WINDOW)
    assert x.shape[1] - 1 < len(TEXT)
    assert bits == pytest.approx(nats / math.log(2) / len(TEXT), abs=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_model_as_it_was(model: LanguageModel, training: bool) -> None:
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.train(training)
    bits_per_byte(model, BYTES, [TEXT], "carried", window=WINDOW)
    assert model.training == training
    model.eval()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_report_holds_every_mode_and_the_floors_and_counts_what_it_reads(
    model: LanguageModel, attention: LanguageModel
) -> None:
    texts, read = [TEXT, b"and more"], []
    table = report(model, BYTES, texts, [b"trained on"], window=WINDOW, progress=read.append)
    assert list(table["bits_per_byte"]) == ["lmm, carried", "lmm, frozen", "lmm, reset(32)"]
    frozen = bits_per_byte(model, BYTES, texts, "frozen", window=WINDOW)
    assert table["bits_per_byte"]["lmm, frozen"] == frozen
    assert table["floors"] == floors(b"trained on", *texts)
    assert table["bytes"] == len(TEXT) + 8
    assert sum(read) == 3 * (len(TEXT) + 8)
    table = report(attention, BYTES, texts, None, window=WINDOW)
    assert list(table["bits_per_byte"]) == ["attention, window(32)"]
    assert table["floors"] == floors(b"", TEXT, b"and more")


def test_modes_and_their_names() -> None:
    assert modes_of(tiny_model()) == ("carried", "frozen", "reset")
    assert modes_of(tiny_model(mixer="attention")) == ("window",)
    assert modes_of(tiny_model(mixer="attention", window=8)) == ("carried",)
    assert modes_of(tiny_model(mixer="swa")) == ("carried",)
    assert modes_of(tiny_model(mixer="gated-deltanet")) == ("carried", "frozen", "reset")
    # A memory beside a cache that grows with the text.
    assert modes_of(tiny_model(mixer="mamba/attention")) == ("window",)
    assert modes_of(tiny_model(mixer="samba")) == ("carried", "frozen", "reset")
    names = [describe(mode, 9) for mode in evaluate.MODES]
    assert names == ["carried", "frozen", "reset(9)", "window(9)"]


def test_no_text_and_an_unknown_mode_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="There is no text to evaluate"):
        bits_per_byte(model, BYTES, [], "carried", window=WINDOW)
    with pytest.raises(ValueError, match="mode must be one of carried, .* got 'cached'"):
        bits_per_byte(model, BYTES, [TEXT], "cached", window=WINDOW)


def test_a_model_trains_on_where_its_evaluation_failed() -> None:
    model = tiny_model().train()
    for mode in ("carried", "no mode"):

        def stop(tokens: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises((KeyboardInterrupt, ValueError)):
            bits_per_byte(model, BYTES, [TEXT], mode, window=WINDOW, progress=stop)
        assert model.training
