"""Text from a language model, token by token, at constant memory for mixers with a bounded state."""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from titans_domains.language.evaluate import PIECE
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer


def check_sampling(temperature: float, top_p: float) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (the likeliest token) or more: got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1: got {top_p}.")


@torch.no_grad()
def read(
    model: LanguageModel, tokenizer: Tokenizer, prompt: bytes, state: Any = None
) -> tuple[torch.Tensor, Any]:
    """Logits [1, V] of the token after the prompt, and the state; a fresh state begins a document."""
    ids = torch.from_numpy(tokenizer.encode(prompt))
    if state is None:
        ids = torch.cat([torch.tensor([tokenizer.end]), ids])
        state = model.backbone.fresh_state(1)
    if not len(ids):
        raise ValueError("The prompt is empty: give at least one character to go on from.")
    for piece in ids.to(model.embedding.weight.device)[None].split(PIECE, 1):
        logits, state = model(piece, state)
    return logits[:, -1], state


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: bytes,
    state: Any = None,
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[bytes]:
    """The bytes of each new token, until the model ends the document or `max_tokens` are made.

    With a state, the prompt goes on from what was read before.
    """
    check_sampling(temperature, top_p)
    was_training = model.training
    model.eval()
    device = model.embedding.weight.device
    random = torch.Generator(device).manual_seed(seed)
    try:
        logits, state = read(model, tokenizer, prompt, state)
        for _ in range(max_tokens):
            token = pick(logits.float(), temperature, top_p, random)
            if token.item() == tokenizer.end:
                return
            yield tokenizer.decode([int(token.item())])
            logits, state = model(token, state)
            logits = logits[:, -1]
    finally:
        model.train(was_training)


def pick(
    logits: torch.Tensor, temperature: float, top_p: float, random: torch.Generator
) -> torch.Tensor:
    """One token [1, 1] from logits [1, V]: among the likeliest that together have `top_p`."""
    return pick_rows(logits, [temperature], [top_p], [random])


def pick_rows(
    logits: torch.Tensor,
    temperatures: Sequence[float],
    top_ps: Sequence[float],
    randoms: Sequence[torch.Generator],
) -> torch.Tensor:
    """As `pick`, a token [B, 1] for every row of logits [B, V], each in its own way."""
    tokens = logits.argmax(-1, keepdim=True)
    drawn = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if not drawn:
        return tokens
    # Below this float32 would divide by zero; the likeliest token has all chances long before.
    heat = logits.new_tensor([max(temperatures[row], 1e-30) for row in drawn])[:, None]
    share = logits.new_tensor([top_ps[row] for row in drawn])[:, None]
    chances, order = (logits[drawn] / heat).softmax(-1).sort(descending=True)
    # The token that crosses top_p stays, so that there is always one.
    chances = chances.masked_fill(chances.cumsum(-1) - chances >= share, 0)
    for place, row in enumerate(drawn):
        chosen = torch.multinomial(chances[place], 1, generator=randoms[row])
        tokens[row] = order[place, chosen]
    return tokens


def as_text(pieces: Iterable[bytes]) -> Iterator[str]:
    """The pieces as text, each letter as soon as its last byte has come."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def printable(text: str) -> str:
    """The text with control characters shown, which would make a terminal do things."""
    return "".join(
        x.encode("unicode_escape").decode()
        if unicodedata.category(x) == "Cc" and x not in "\n\t"
        else x
        for x in text
    )
