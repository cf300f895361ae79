"""Bits per byte by position: what a text costs early and late in long documents, read in one go."""

import io
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from titans_core.files import write_whole
from titans_domains.language.corpus import first_bytes
from titans_domains.language.evaluate import costs, describe, modes_of
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer
from titans_domains.targets import check_plots, check_target

FIRST = 32
"""Bytes of the first bin, the shortest: fewer say little. Each of the others is as long as all before."""

PICTURES = (".png", ".pdf", ".svg")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """For each bin, the mean over the documents and its standard error, which one document has not."""

    mean: list[float | None]
    standard_error: list[float | None]


def usual_length(texts: list[bytes]) -> int:
    """The largest power of two that half of the documents reach, in bytes."""
    sizes = sorted(map(len, texts), reverse=True)
    if not sizes:
        raise ValueError("There is no text to evaluate.")
    return 1 << (max(1, sizes[(len(sizes) - 1) // 2]).bit_length() - 1)


def long_documents(texts: list[bytes], length: int) -> list[bytes]:
    """The first `length` bytes of every document that has as many; the last letter whole or not there."""
    if length < 2 * FIRST:
        raise ValueError(
            f"length must be at least {2 * FIRST} bytes, two bins: got {length}. Give longer documents."
        )
    long = [text for text in texts if len(text) >= length]
    if not long:
        longest = max(map(len, texts), default=0)
        raise ValueError(
            f"No document has {length} bytes, the longest has {longest}: give a shorter length."
        )
    return [part for text in long for part in first_bytes([text], length)]


def edges_of(length: int) -> list[int]:
    """Where the bins of `length` bytes begin, and where the last one ends."""
    edges = [0, FIRST]
    while 2 * edges[-1] < length:
        edges.append(2 * edges[-1])
    return [*edges, length]


def by_position(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[bytes],
    length: int,
    *,
    window: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """A `Curve` for every mode the model has, over documents of `length` bytes (`long_documents`).

    Each document is read once from a fresh state on, and each token counts once, in the bin in which its
    first byte stands.
    """
    edges = edges_of(length)
    curves = {}
    was_training = model.training
    model.eval()
    try:
        for mode in modes_of(model):
            parts = [
                document_bits(model, tokenizer, text, mode, edges, window=window, progress=progress)
                for text in texts
            ]
            name = f"{model.backbone.config.mixer}, {describe(mode, window)}"
            curves[name] = curve_of(np.stack(parts))._asdict()
    finally:
        model.train(was_training)
    return {
        "length": length, "documents": len(texts), "edges": edges,
        "trained_bytes": round(window * bytes_per_token(tokenizer, texts)), "bits_per_byte": curves,
    }  # fmt: skip


def document_bits(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: bytes,
    mode: str,
    edges: list[int],
    *,
    window: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Floats:
    """Bits and bytes [2, bins] of the tokens that begin in each bin."""
    parts = list(costs(model, tokenizer, text, mode, window=window, progress=progress))
    nats = torch.cat(parts).cpu().numpy()
    sizes = token_sizes(tokenizer, tokenizer.encode(text))
    bins = np.searchsorted(edges, sizes.cumsum() - sizes, side="right") - 1
    count = len(edges) - 1
    return np.stack(
        [
            np.bincount(bins, nats / math.log(2), minlength=count),
            np.bincount(bins, sizes, minlength=count),
        ]
    )


def token_sizes(tokenizer: Tokenizer, ids: Ints) -> Ints:
    """Bytes of each token."""
    kinds, which = np.unique(ids, return_inverse=True)
    return np.array([len(tokenizer.decode([int(kind)])) for kind in kinds])[which]


def bytes_per_token(tokenizer: Tokenizer, texts: list[bytes]) -> float:
    return sum(map(len, texts)) / sum(len(tokenizer.encode(text)) for text in texts)


def curve_of(documents: Floats) -> Curve:
    """Of bits and bytes [documents, 2, bins]; a bin in which no token of a document begins leaves it out."""
    mean: list[float | None] = []
    error: list[float | None] = []
    for bits, size in zip(documents[:, 0].T, documents[:, 1].T, strict=True):
        shares = bits[size > 0] / size[size > 0]
        count = len(shares)
        mean.append(float(shares.mean()) if count else None)
        error.append(float(shares.std(ddof=1) / math.sqrt(count)) if count > 1 else None)
    return Curve(mean, error)


def table_of(found: dict[str, Any]) -> list[list[str]]:
    """Rows of text, a head and one for each bin, with a column for each mode."""
    edges, curves = found["edges"], found["bits_per_byte"]
    rows = [["bytes", *curves]]
    for n, (first, end) in enumerate(pairwise(edges)):
        cells = [f"{first}-{end - 1}"]
        for curve in curves.values():
            mean, error = curve["mean"][n], curve["standard_error"][n]
            text = "-" if mean is None else f"{mean:.3f}"
            cells.append(text if error is None else f"{text} ± {error:.3f}")
        rows.append(cells)
    return rows


def check_picture(path: Path, force: bool) -> None:
    """Raises where no picture can be drawn or put, before anything is read for it."""
    check_plots("--plot")
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"A picture must be named *.png, *.pdf or *.svg: got {str(path)!r}.")
    check_target(path, force, "--plot")


def draw(found: dict[str, Any], path: Path) -> None:
    """Every mode as a line over the position, with its standard error."""
    from matplotlib.figure import Figure

    edges = found["edges"]
    # In the middle of a bin as the eye sees it; the first has no such middle.
    places = [FIRST / 2, *(math.sqrt(a * b) for a, b in pairwise(edges[1:]))]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in found["bits_per_byte"].items():
        mean, error = (
            np.array([np.nan if x is None else x for x in part]) for part in curve.values()
        )
        axes.errorbar(places, mean, np.nan_to_num(error), marker="o", capsize=3, label=name)
    axes.axvline(found["trained_bytes"], color="0.6", linestyle=":", label="trained length")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the document, bytes")
    axes.set_ylabel("bits per byte")
    documents = found["documents"]
    axes.set_title(f"{documents} document{'s' * (documents != 1)} of {found['length']:,} bytes")
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=120)
    write_whole(path, content.getvalue())
