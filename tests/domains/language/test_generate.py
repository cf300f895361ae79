"""Generation: what is picked, that it repeats, its constant state, and letters of several bytes."""

import math
from itertools import islice
from typing import Any

import pytest
import torch
from small_mixers import SAMPLE
from tiny_language import VOCAB, tiny_model

from titans_core import state_bytes
from titans_domains.language import generate as module
from titans_domains.language.generate import (
    as_text,
    check_sampling,
    generate,
    pick,
    printable,
    read,
)
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
PROMPT = "The memory, größer".encode()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return tiny_model().double()


def made(model: LanguageModel, **settings: Any) -> list[bytes]:
    return list(generate(model, BYTES, PROMPT, **{"max_tokens": 40, **settings}))


def test_a_seed_repeats_and_another_differs(model: LanguageModel) -> None:
    first = made(model, seed=1)
    torch.rand(3)
    assert made(model, seed=1) == first
    assert made(model, seed=2) != first


def test_temperature_zero_takes_the_likeliest_token_of_one_call(model: LanguageModel) -> None:
    pieces = made(model, temperature=0)
    assert len(pieces) == 40
    x = torch.tensor([[BYTES.end, *PROMPT, *b"".join(pieces)]])
    with torch.no_grad():
        logits, _ = model(x)
    likeliest = logits[0, len(PROMPT) : -1].argmax(-1)
    assert bytes(likeliest.tolist()) == b"".join(pieces)
    # Neither the seed nor the nucleus has a say.
    assert made(model, temperature=0, seed=5, top_p=0.01) == pieces
    assert made(model, temperature=1, top_p=1e-9) == pieces


@pytest.mark.parametrize("mixer", SAMPLE)
@torch.no_grad()
def test_every_mixer_generates_what_one_call_would(mixer: str) -> None:
    model = tiny_model(mixer=mixer).double()
    # Over the ends of a window, a chunk and two segments.
    pieces = made(model, temperature=0)
    logits, _ = model(torch.tensor([[BYTES.end, *PROMPT, *b"".join(pieces)]]))
    likeliest = logits[0, len(PROMPT) : -1].argmax(-1)
    assert bytes(likeliest.tolist()) == b"".join(pieces)
    # From a state, the prompt goes on.
    _, state = read(model, BYTES, PROMPT[:7])
    assert list(generate(model, BYTES, PROMPT[7:], state, max_tokens=40, temperature=0)) == pieces


def test_every_token_is_picked_from_all_that_stands_before_it(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = b"any text at all"
    tokens, seen = iter(given), []

    def choose(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(logits)
        return torch.tensor([[next(tokens)]])

    monkeypatch.setattr(module, "pick", choose)
    assert b"".join(made(model, max_tokens=len(given))) == given
    with torch.no_grad():
        logits, _ = model(torch.tensor([[BYTES.end, *PROMPT, *given]]))
    # Picking is in float32, whatever the model is in.
    wanted = logits[0, len(PROMPT) : -1].float()
    assert torch.allclose(torch.cat(seen), wanted, rtol=0, atol=1e-6)


def test_the_end_of_a_document_ends_the_text(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = iter([*b"abc", BYTES.end, *b"never"])
    monkeypatch.setattr(module, "pick", lambda *_: torch.tensor([[next(tokens)]]))
    assert made(model) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_more_tokens_are_made_than_asked_for(model: LanguageModel, count: int) -> None:
    assert len(made(model, max_tokens=count, temperature=0)) == count


def draws(logits: torch.Tensor, temperature: float, top_p: float, count: int = 4000) -> list[float]:
    """How often each token is picked."""
    random = torch.Generator().manual_seed(0)
    picked = [pick(logits, temperature, top_p, random).item() for _ in range(count)]
    return [picked.count(token) / count for token in range(logits.shape[1])]


def test_top_p_keeps_the_nucleus_alone_in_its_proportions() -> None:
    # The likeliest are not in the order of their ids.
    logits = torch.tensor([[0.1, 0.5, 0.05, 0.3, 0.05]]).log()
    assert draws(logits, 1.0, 0.5) == [0, 1, 0, 0, 0]
    # The token that crosses the edge is in.
    assert draws(logits, 1.0, 0.6) == pytest.approx([0, 0.625, 0, 0.375, 0], abs=0.03)
    assert draws(logits, 1.0, 0.85)[2::2] == [0, 0]
    assert draws(logits, 1.0, 1.0) == pytest.approx([0.1, 0.5, 0.05, 0.3, 0.05], abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    chances = torch.tensor([[0.2, 0.8]])
    assert draws(chances.log(), 0.5, 1.0) == pytest.approx([0.04 / 0.68, 0.64 / 0.68], abs=0.03)
    assert draws(chances.log(), 1e6, 1.0) == pytest.approx([0.5, 0.5], abs=0.03)


def test_the_state_stays_as_large_as_it_was(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = LanguageModel.forward

    def measured(self: LanguageModel, *args: Any, **context: Any) -> Any:
        logits, state = forward(self, *args, **context)
        sizes.append(state_bytes(state))
        return logits, state

    monkeypatch.setattr(LanguageModel, "forward", measured)
    made(model, max_tokens=50, temperature=0)
    list(generate(model, BYTES, PROMPT * 20, max_tokens=1))
    assert len(sizes) > 50
    assert set(sizes) == {state_bytes(model.backbone.fresh_state(1))}


@torch.no_grad()
def test_a_prompt_is_read_in_pieces_and_gone_on_from(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = model(torch.tensor([[BYTES.end, *PROMPT]]))
    monkeypatch.setattr(module, "PIECE", 5)
    logits, state = read(model, BYTES, PROMPT[:8])
    logits, _ = read(model, BYTES, PROMPT[8:], state)
    assert torch.allclose(logits, whole[:, -1], rtol=0, atol=1e-10)
    first, _ = read(model, BYTES, b"")
    assert torch.allclose(first, whole[:, 0], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="The prompt is empty"):
        read(model, BYTES, b"", state)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_even_if_nobody_reads_on(training: bool) -> None:
    model = tiny_model().train(training)
    pieces = generate(model, BYTES, PROMPT, max_tokens=10, temperature=0)
    next(pieces)
    assert not model.training
    pieces.close()  # type: ignore[attr-defined]
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())


def test_a_letter_comes_as_soon_as_its_last_byte_has() -> None:
    text = "aé日🙂\r\n"
    pieces = [bytes([byte]) for byte in text.encode()]
    parts = list(as_text(pieces))
    assert parts == ["a", "", "é", "", "", "日", "", "", "", "🙂", "\r", "\n", ""]
    # Nothing is waited for that is not needed.
    assert list(islice(as_text(iter([b"a", b"b"])), 1)) == ["a"]
    assert "".join(as_text([text.encode()[:5], text.encode()[5:]])) == text


def test_bytes_that_are_no_letter_are_replaced() -> None:
    assert "".join(as_text([b"a", b"\xff", b"b"])) == "a\ufffdb"
    assert "".join(as_text([b"\xe6\x97"])) == "\ufffd"
    assert "".join(as_text([b"\xe6", b"x"])) == "\ufffdx"
    assert list(as_text([])) == [""]


@pytest.mark.parametrize(
    ("temperature", "top_p", "sentence"),
    [
        (-0.1, 1.0, r"temperature must be 0 \(the likeliest token\) or more: got -0.1"),
        (math.nan, 1.0, "temperature must be 0 .* got nan"),
        (1.0, 0.0, "top_p must be above 0 and at most 1: got 0.0"),
        (1.0, 1.1, "top_p must be above 0 and at most 1: got 1.1"),
        (1.0, math.nan, "top_p must be above 0 and at most 1: got nan"),
    ],
)
def test_chances_out_of_range_are_named(
    model: LanguageModel, temperature: float, top_p: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_sampling(temperature, top_p)
    with pytest.raises(ValueError, match=sentence):
        made(model, temperature=temperature, top_p=top_p)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, math.inf])
def test_extreme_temperatures_still_pick(temperature: float) -> None:
    logits = torch.randn(1, VOCAB)
    token = pick(logits, temperature, 0.95, torch.Generator().manual_seed(0))
    assert token.shape == (1, 1)
    if temperature < 1:
        assert token.item() == logits.argmax()


def test_a_terminal_is_shown_control_characters_and_does_not_do_them() -> None:
    text = "It\x1b_R6\x08\x9b2J\x13\n\tgrößer 記憶"
    assert printable(text) == "It\\x1b_R6\\x08\\x9b2J\\x13\n\tgrößer 記憶"
