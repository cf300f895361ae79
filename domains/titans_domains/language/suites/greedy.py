"""What a model goes on with after a prompt, its memory carried over the prompt or restarted in it."""

import torch
from jaxtyping import Int
from torch import Tensor

from titans_domains.language.evaluate import PIECE
from titans_domains.language.generate import as_text, generate
from titans_domains.language.model import LanguageModel
from titans_domains.language.reading import stream_of
from titans_domains.language.suites.problem import Examples
from titans_domains.language.tokenizers import ByteTokenizer, Tokenizer

MODES = ("carried", "reset")


def unit_of(tokenizer: Tokenizer) -> str:
    """What lengths are counted in."""
    return "bytes" if isinstance(tokenizer, ByteTokenizer) else "tokens"


def segments(tokens: Int[Tensor, "B T"], segment: int) -> list[Int[Tensor, "B S"]]:
    """The tokens cut from the end on, so that the last segment, which holds the question, is whole."""
    if segment < 1:
        raise ValueError(f"segment must be at least 1 token: got {segment}.")
    first = tokens.shape[1] % segment
    rest = tokens[:, first:].split(segment, 1)
    return [tokens[:, :first], *rest] if first else list(rest)


@torch.no_grad()
def greedy(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    *,
    mode: str = "carried",
    segment: int = 512,
) -> str:
    """The likeliest continuation of a document that begins with the prompt, which is read once.

    reset: every memory is as before the first token at each segment of the prompt; convolutions and
    caches go on. The answer is made with the memory of the last segment.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}: got {mode!r}.")
    if mode == "carried":
        made = generate(model, tokenizer, prompt.encode(), max_tokens=max_tokens, temperature=0)
        return "".join(as_text(made))
    was_training = model.training
    model.eval()
    try:
        ids = _continued(model, tokenizer, prompt, max_tokens, segment)
    finally:
        model.train(was_training)
    return tokenizer.decode(ids).decode(errors="replace")


def _continued(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, max_tokens: int, segment: int
) -> list[int]:
    tokens = stream_of(tokenizer, prompt.encode()).to(model.embedding.weight.device)[None]
    state, ids = model.backbone.fresh_state(1), list[int]()
    for part in segments(tokens, segment):
        state = model.backbone.restart_memory(state)
        for piece in part.split(PIECE, 1):
            logits, state = model(piece, state)
    for _ in range(max_tokens):
        token = logits[:, -1].argmax(-1, keepdim=True)
        if token.item() == tokenizer.end:
            break
        ids.append(int(token.item()))
        logits, state = model(token, state)
    return ids


@torch.no_grad()
def answer_by_segments(
    model: LanguageModel, examples: Examples, segment: int = 512
) -> Int[Tensor, "B T"]:
    """As `problem.answer`, with every memory as before the first token at each segment."""
    if examples.mask is not None:
        raise ValueError("examples must have no padding to be read by segments: mask is not None.")
    state, given = model.backbone.fresh_state(len(examples.inputs)), []
    for part in segments(examples.inputs, segment):
        state = model.backbone.restart_memory(state)
        logits, state = model(part, state)
        given.append(logits.argmax(-1))
    return torch.cat(given, 1)
