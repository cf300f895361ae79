"""Surprise: one figure a token, what it measures, and the picture."""

from pathlib import Path

import pytest
import torch
from matplotlib import image
from tiny_language import SENTENCES, tiny_model

from titans_core import NeuralMemory, NeuralMemoryState
from titans_core.memory import Recall
from titans_domains.language.surprise import COLUMNS, draw_surprise, surprise_of
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer
from titans_kernels import momentary_surprise

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


MEMORIES = ("lmm", "mac", "mag", "mal", "mac+mal")


@pytest.mark.parametrize("mixer", MEMORIES)
def test_every_mixer_with_a_memory_is_surprised(mixer: str) -> None:
    model = tiny_model(mixer=mixer).double()
    # Over three segments and the beginning of a fourth.
    text = (SENTENCES[0].encode() * 2)[:50]
    surprise = surprise_of(model, BYTES, text)
    assert surprise.shape == (50,)
    assert (surprise > 0).all()
    for length in (1, 15, 16, 37):
        part = surprise_of(model, BYTES, text[:length])
        assert torch.allclose(part, surprise[:length], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", MEMORIES)
def test_it_is_the_gradient_at_the_memory_that_the_text_has_left(mixer: str) -> None:
    model = tiny_model(mixer=mixer, num_layers=1).double()
    text = SENTENCES[0].encode()[:40]
    recalls = [m for m in model.modules() if isinstance(m, Recall)]
    said = torch.zeros(len(recalls), len(text), dtype=torch.float64)
    # By hand: token by token, with the state that each memory is called with (where no gradient is
    # wanted, a single token has a way of its own that calls none).
    state = model.backbone.fresh_state(1)

    def ask(recall: Recall, inputs: tuple[torch.Tensor, NeuralMemoryState]) -> None:
        x, before = inputs
        _, k, v, _ = recall._project(x, before.conv_tail)
        memory = before.memory._replace(memory=before.memory.chunk_memory)
        norm = (recall.norm_gain, recall.norm_bias)
        surprise = momentary_surprise(
            k, v, memory, tuple(recall.initial), rule=recall.rule, norm=norm
        )
        if token:
            said[recalls.index(recall), token - 1] = surprise.mean().item()

    hooks = [recall.register_forward_pre_hook(ask) for recall in recalls]
    tokens = torch.tensor([[BYTES.end, *text]])
    for token in range(tokens.shape[1]):
        _, state = model(tokens[:, token : token + 1], state)
    for hook in hooks:
        hook.remove()
    assert len(recalls) == (2 if mixer == "mac+mal" else 1)
    got = surprise_of(model, BYTES, text)
    assert torch.allclose(got, said.mean(0), rtol=0, atol=1e-10)


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
