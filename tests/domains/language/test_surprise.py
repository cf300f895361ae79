"""Surprise: one figure a token, what it measures, and the picture."""

from pathlib import Path

import pytest
import torch
from matplotlib import image
from tiny_language import SENTENCES, tiny_model

from titans_core import NeuralMemory
from titans_domains.language.surprise import COLUMNS, draw_surprise, surprise_of
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer

BYTES = ByteTokenizer()


@pytest.mark.parametrize("length", [1, 15, 16, 50])
def test_every_token_has_one_figure(length: int) -> None:
    surprise = surprise_of(tiny_model(), BYTES, (SENTENCES[0].encode() * 2)[:length])
    assert surprise.shape == (length,)
    assert surprise.isfinite().all()
    assert (surprise > 0).all()


def test_tokens_are_counted_and_not_bytes() -> None:
    text = SENTENCES[1].encode()
    tokenizer = BPETokenizer.train([text], 257)
    model = tiny_model()
    assert surprise_of(model, tokenizer, text).shape == (len(tokenizer.encode(text)),)


def test_no_token_is_surprised_by_a_later_one() -> None:
    model = tiny_model().double()
    text = SENTENCES[0].encode()
    whole = surprise_of(model, BYTES, text)
    assert torch.allclose(surprise_of(model, BYTES, text[:20]), whole[:20], rtol=0, atol=1e-12)


def test_it_is_the_mean_of_what_each_memory_says() -> None:
    model = tiny_model().double()
    text = SENTENCES[0].encode()
    seen = []
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    hooks = [m.register_forward_pre_hook(lambda m, x: seen.append((m, x[0]))) for m in memories]
    with torch.no_grad():
        model(torch.tensor([[BYTES.end, *text]]))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    # The mean over layers and heads of [B, T, ...], then over the memories; without the end token.
    said = [m.surprise(x)[0, 1:].reshape(len(text), -1).mean(1) for m, x in seen]
    by_hand = (said[0] + said[1]) / 2
    assert torch.allclose(surprise_of(model, BYTES, text), by_hand, rtol=0, atol=1e-12)


def test_what_comes_again_surprises_less() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    sentence = b"an unusual phrase, "
    surprise = surprise_of(model, BYTES, sentence * 30)
    assert surprise[-100:].mean() < 0.9 * surprise[:100].mean()


def test_the_model_is_left_without_hooks() -> None:
    model = tiny_model()
    surprise_of(model, BYTES, b"text")
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="The model has no memory that could be surprised"):
        surprise_of(tiny_model(mixer="attention"), BYTES, b"text")


def test_a_picture_is_written_and_grows_with_the_text(tmp_path: Path) -> None:
    heights = []
    text = 'a $x_1$ and a\ttab\r\n "quoted" \\n ' * 20
    for name, drawn in (("a.png", "one line"), ("b.png", text)):
        path = tmp_path / name
        draw_surprise(drawn, torch.rand(len(drawn)), path)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        heights.append(image.imread(path).shape[0])
    assert heights[1] > heights[0] + 110 * 0.2 * (len(text) // COLUMNS)


def test_a_picture_shows_the_surprise(tmp_path: Path) -> None:
    text = "x" * COLUMNS
    low, high = torch.zeros(COLUMNS), torch.zeros(COLUMNS)
    low[: COLUMNS // 2] = 1
    high[COLUMNS // 2 :] = 1
    pictures = []
    for name, surprise in (("low.png", low), ("high.png", high)):
        draw_surprise(text, surprise, tmp_path / name)
        pictures.append(image.imread(tmp_path / name)[..., 1])
    half = pictures[0].shape[1] // 3
    # Where it is high, there is less green.
    assert pictures[0][:, :half].mean() < pictures[1][:, :half].mean()
