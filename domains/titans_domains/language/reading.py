"""Reading documents into a memory that is kept, and going on from it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from titans_core import load_memory
from titans_core.memory_file import is_memory_file
from titans_core.state import named_tensors
from titans_domains import targets
from titans_domains.language.corpus import checked
from titans_domains.language.evaluate import PIECE
from titans_domains.language.model import LanguageModel, token_nats
from titans_domains.language.tokenizers import Tokenizer


class Reading(NamedTuple):
    state: Any
    bits_per_byte: float | None  # None for a text without a token that could be foreseen


def read_text(path: Path) -> bytes:
    """The whole file; ValueError where it is empty or no text."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of one document.")
    if not path.exists():
        raise FileNotFoundError(f"There is no document {str(path)!r}.")
    return checked(path.read_bytes(), str(path))


def stream_of(tokenizer: Tokenizer, text: bytes, state: Any = None) -> torch.Tensor:
    """The tokens [T] to feed: with a state the text goes on, without one it begins a document."""
    ids = torch.from_numpy(tokenizer.encode(text))
    return ids if state is not None else torch.cat([torch.tensor([tokenizer.end]), ids])


@torch.no_grad()
def read_stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    ids: torch.Tensor,
    state: Any = None,
    *,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Reading:
    """The state after all of the tokens [T], and what they cost; a fresh state begins a document.

    The first token costs nothing: what stands before it is an earlier reading, or the document's start.
    """
    if state is None:
        state = model.backbone.fresh_state(1)
    tokens = ids.to(model.embedding.weight.device)[None]
    nats = 0.0
    for first in range(0, len(ids), PIECE):
        logits, state = model(tokens[:, first : first + PIECE], state)
        targets = tokens[:, first + 1 : first + PIECE + 1]
        nats += token_nats(logits[:, : targets.shape[1]], targets).sum().item()
        progress(logits.shape[1])
    size = len(tokenizer.decode(ids[1:].tolist()))
    return Reading(state, nats / math.log(2) / size if size else None)


def check_memory(model: LanguageModel, run: Path) -> None:
    """ValueError for a model that keeps nothing of what it has read but its cache."""
    config = model.backbone.config
    if not config.remembers:
        raise ValueError(f"{run} has no memory that could be kept: its mixer is {config.mixer}.")


def check_target(path: Path, force: bool) -> None:
    """Raises where a memory file must not or cannot be written, before anything is read for it."""
    targets.check_target(path, force, "--memory")
    if path.exists() and not is_memory_file(path):
        raise FileExistsError(f"{path} is not a memory file, so --force does not replace it.")


def load_reading(path: Path, model: LanguageModel) -> Any:
    """The state of a memory file of one reader."""
    state = load_memory(path, model.backbone)
    rows = len(positions(state))
    if rows != 1:
        raise ValueError(f"{path} holds {rows} memories: split it, and give a file with one.")
    return state


def describe_memory(path: Path, state: Any) -> str:
    size, position = path.stat().st_size, int(positions(state)[0])
    return f"{path}: {size:,} bytes, position {position:,} (tokens read, with start tokens)"


def positions(state: Any) -> torch.Tensor:
    """Tokens that each row has read; every layer has read them all."""
    return next(x for name, x in named_tensors(state).items() if name.endswith("position"))
