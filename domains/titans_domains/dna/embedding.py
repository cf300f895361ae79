"""Vectors of sequences in a file of numpy's: `names` and `vectors`, in the order of the records."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from titans_domains.dna.calls import Item, batches
from titans_domains.dna.output import draft


class Embedder(Protocol):
    def embed(self, X: Sequence[str]) -> Float[np.ndarray, "n D"]: ...


def save_embeddings(
    model: Embedder,
    items: Iterable[Item],
    path: Path,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes the vectors [n, D] of all items and their names [n]."""
    names: list[str] = []
    vectors: list[Float[np.ndarray, "n D"]] = []
    for batch in batches(items, lambda item: len(item.sequence)):
        names += [item.name for item in batch]
        vectors.append(np.asarray(model.embed([item.sequence for item in batch]), np.float32))
        progress(len(batch))
    with draft(path) as file:
        np.savez(file, names=np.array(names), vectors=np.concatenate(vectors))
