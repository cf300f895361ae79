"""Tokens by which a memory is far more surprised than by the rest of a text: what may poison it.

T tokens, U units: a layer of one head of one memory of the model each.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from titans_core.listening import memories_of, overhearing
from titans_core.memory import NeuralMemoryState, Recall
from titans_domains.language.evaluate import PIECE
from titans_domains.language.model import LanguageModel
from titans_domains.language.reading import stream_of
from titans_domains.language.tokenizers import Tokenizer

FAR = 10.0
"""Median absolute deviations above the median that are far out."""


class Usual(NamedTuple):
    """What is usual for each unit; of numbers that a few outliers do not move."""

    median: Float[Tensor, " U"]
    deviation: Float[Tensor, " U"]  # median of the absolute deviations from the median


class Anomaly(NamedTuple):
    """Tokens in a row that are far out."""

    start: int  # bytes of the text
    end: int
    tokens: int
    score: float  # deviations above the median, in the unit where that is most
    unit: int


def surprises_of(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: bytes,
    *,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Float[Tensor, "T U"]:
    """Momentary surprise of every unit by each token, as the memories read from a fresh state on.

    Surprise is measured before `memory.max_surprise` clamps it. ValueError for a model without a memory.
    """
    memories = memories_of(model)
    if not memories:
        raise ValueError(
            f"The model has no memory that could be surprised: its mixer is {model.backbone.config.mixer}."
        )
    if not text:
        raise ValueError("text is empty: give at least one byte.")
    found: dict[str, list[Tensor]] = {name: [] for name in memories}

    def hear(name: str, x: Tensor, state: NeuralMemoryState) -> None:
        found[name].append(memories[name].surprise_from(x, state)[0].flatten(1))

    tokens = stream_of(tokenizer, text).to(model.embedding.weight.device)[None]
    state = model.backbone.fresh_state(1)
    with overhearing(model, hear), torch.no_grad():
        for piece in tokens.split(PIECE, 1):
            _, state = model(piece, state)
            progress(piece.shape[1])
    return torch.cat([torch.cat(parts) for parts in found.values()], 1)[1:]


def usual_of(surprise: Float[Tensor, "T U"]) -> Usual:
    """Of a text that is trusted, or of the one that is judged, where most of it is; of what is finite."""
    finite = surprise.where(surprise.isfinite(), torch.nan)
    median = finite.nanmedian(0).values
    return Usual(median, (finite - median).abs().nanmedian(0).values)


def check_far(far: float) -> None:
    if not far > 0:
        raise ValueError(f"far must be above 0 deviations: got {far}.")


def anomalies(
    tokenizer: Tokenizer,
    text: bytes,
    surprise: Float[Tensor, "T U"],
    *,
    usual: Usual | None = None,
    far: float = FAR,
) -> list[Anomaly]:
    """The tokens whose surprise is above median + far * deviation in any unit, those in a row as one.

    One that is not finite is infinitely far out: it has broken the memory.
    """
    check_far(far)
    if usual is not None and not all(x.isfinite().all() for x in usual):
        raise ValueError("usual must be finite: take it from a text that breaks no memory.")
    median, deviation = usual_of(surprise) if usual is None else usual
    # Where most tokens surprise alike, rounding is no anomaly.
    scale = deviation.maximum(1e-6 * median.abs()).clamp_min(torch.finfo(surprise.dtype).tiny)
    scores = ((surprise - median) / scale).where(surprise.isfinite(), torch.inf)
    most, units = scores.max(1)
    sizes = [
        len(tokenizer.decode([token])) for token in stream_of(tokenizer, text, state=()).tolist()
    ]
    found: list[Anomaly] = []
    at, last = 0, -2
    for token, (score, unit, size) in enumerate(
        zip(most.tolist(), units.tolist(), sizes, strict=True)
    ):
        if score > far:
            one = Anomaly(at, at + size, 1, score, unit)
            if token == last + 1:
                found[-1] = _joined(found[-1], one)
            else:
                found.append(one)
            last = token
        at += size
    return found


def _joined(one: Anomaly, other: Anomaly) -> Anomaly:
    most = max(one, other, key=lambda anomaly: anomaly.score)
    return Anomaly(one.start, other.end, one.tokens + 1, most.score, most.unit)


def unit_names(model: LanguageModel) -> list[str]:
    """What each unit is, in the order of `surprises_of`."""
    return [
        f"{name.removesuffix('.recall')}, head {head}, layer {layer}"
        for name, memory in model.named_modules()
        if isinstance(memory, Recall)
        for head in range(memory.shape[0])
        for layer in range(memory.config.depth)
    ]
