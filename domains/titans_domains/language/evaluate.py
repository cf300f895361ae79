"""Bits per byte of texts under a language model, with the memory carried, frozen or reset."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from titans_domains.language.floors import floors
from titans_domains.language.model import LanguageModel, token_nats
from titans_domains.language.tokenizers import Tokenizer

PIECE = 1024
"""Tokens fed at a time. It changes no number: a stream may be cut anywhere."""

MODES = ("carried", "frozen", "reset", "window")


def modes_of(model: LanguageModel) -> tuple[str, ...]:
    """The ways in which a model can read a text of any length at bounded cost."""
    config = model.backbone.config
    if not config.bounded:
        return ("window",)
    return ("carried", "frozen", "reset") if config.remembers else ("carried",)


def bits_per_byte(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[bytes],
    mode: str,
    *,
    window: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> float:
    """Bits per byte over all texts, each read from a fresh state on.

    carried: the memory learns from the first token to the last. frozen: it stays as it was before the
    first. reset: it is restored every `window` tokens (convolutions and caches go on). window: nothing
    is carried; every token is read with the `window / 2` to `window` tokens before it.
    """
    if not texts:
        raise ValueError("There is no text to evaluate.")
    was_training = model.training
    model.eval()
    try:
        nats = sum(
            cost.sum().item()
            for text in texts
            for cost in costs(model, tokenizer, text, mode, window=window, progress=progress)
        )
    finally:
        model.train(was_training)
    return nats / math.log(2) / sum(map(len, texts))


@torch.no_grad()
def costs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: bytes,
    mode: str,
    *,
    window: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[torch.Tensor]:
    """Nats of each token of the text, piece by piece."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}: got {mode!r}.")
    device = model.embedding.weight.device
    ids = torch.from_numpy(tokenizer.encode(text))
    ids = torch.cat([torch.tensor([tokenizer.end]), ids]).to(device)[None]
    inputs, targets = ids[:, :-1], ids[:, 1:]
    if mode == "window":
        yield from window_costs(model, inputs, targets, window, progress)
        return
    size = window if mode == "reset" else PIECE
    state = model.backbone.fresh_state(1)
    for x, y in zip(inputs.split(size, 1), targets.split(size, 1), strict=True):
        if mode == "reset":
            state = model.backbone.restart_memory(state)
        logits, state = model(x, state, write=mode != "frozen")
        yield token_nats(logits, y)[0]
        progress(x.shape[1])


def window_costs(
    model: LanguageModel,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    window: int,
    progress: Callable[[int], None],
) -> Iterator[torch.Tensor]:
    """The first window whole, then windows that overlap by half, of which the second half counts."""
    half = max(1, window // 2)
    for end in range(min(window, inputs.shape[1]), inputs.shape[1] + half, half):
        first, last = max(0, end - window), min(end, inputs.shape[1])
        counted = window if first == 0 else half - (end - last)
        logits, _ = model(inputs[:, first:last])
        cost = token_nats(logits, targets[:, first:last])[0][-counted:]
        yield cost
        progress(len(cost))
        if last == inputs.shape[1]:
            return


def report(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[bytes],
    training: list[bytes] | None,
    *,
    window: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Bits per byte in every mode the model has, and the floors of the same texts.

    Without the training texts (None) the static n-gram is left out, and the adaptive one begins at
    nothing.
    """
    scores = {
        f"{model.backbone.config.mixer}, {describe(mode, window)}": bits_per_byte(
            model, tokenizer, texts, mode, window=window, progress=progress
        )
        for mode in modes_of(model)
    }
    return {
        "bits_per_byte": scores,
        "floors": floors(b"".join(training or []), *texts),
        "bytes": sum(map(len, texts)),
    }


def describe(mode: str, window: int) -> str:
    return f"{mode}({window})" if mode in ("reset", "window") else mode
