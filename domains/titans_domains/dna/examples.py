"""Labelled sequences as tokens and targets, their batches, and the loss on them.

B batch, T tokens, C classes or labels.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from titans_domains.dna.calls import batches
from titans_domains.dna.tokenizers import DnaTokenizer, pad_batch

Weights = str | Mapping[Any, float] | None


class Examples(NamedTuple):
    """Targets are the class's number, or 0 and 1 for each of several labels."""

    tokens: list[Int[np.ndarray, " T"]]
    targets: Int[np.ndarray, "n ..."]

    @property
    def multilabel(self) -> bool:
        return self.targets.ndim == 2

    def take(self, chosen: Bool[np.ndarray, " n"]) -> "Examples":
        rows = np.flatnonzero(chosen)
        return Examples([self.tokens[i] for i in rows], self.targets[rows])


class ExampleBatch(NamedTuple):
    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"] | None  # None where no row is padded
    targets: Tensor


def encode_all(
    tokenizer: DnaTokenizer, sequences: Sequence[str], names: Sequence[str] | None = None
) -> list[Int[np.ndarray, " T"]]:
    """Tokens of clean sequences; errors call them by name, or by number from 0."""
    if names is None:
        return [tokenizer.encode(s, f"sequence {i}") for i, s in enumerate(sequences)]
    return [tokenizer.encode(s, name) for s, name in zip(sequences, names, strict=True)]


def padded(
    tokens: list[Int[np.ndarray, " T"]], device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"] | None]:
    """Tokens and mask on the device, without a mask where all are of one length."""
    ids, mask = pad_batch(tokens)
    return ids.to(device), None if mask.all() else mask.to(device)


def fingerprint(sequences: Sequence[str], labels: Shaped[np.ndarray, "n ..."]) -> str:
    """SHA-256 of sequences and labels in their order."""
    digest = hashlib.sha256()
    for sequence, label in zip(sequences, labels.tolist(), strict=True):
        digest.update(f"{sequence}\t{label}\n".encode())
    return digest.hexdigest()


def shuffled(
    examples: Examples, size: int, seed: int, device: torch.device, cursor: dict[str, Any] | None
) -> Iterator[tuple[ExampleBatch, dict[str, Any]]]:
    """Endless batches, all examples once in every epoch, each with the cursor after it.

    The last batch of an epoch is as large as the others: it begins the next epoch.
    """
    count = len(examples.tokens)
    at = 0 if cursor is None else int(cursor["at"])
    orders: dict[int, np.ndarray] = {}

    def order(epoch: int) -> np.ndarray:
        for old in [e for e in orders if e < epoch - 1]:
            del orders[old]
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(count)
        return orders[epoch]

    while True:
        rows = [order(i // count)[i % count] for i in range(at, at + size)]
        at += size
        yield batch_of(examples, rows, device), {"at": at}


def batch_of(examples: Examples, rows: Sequence[int], device: torch.device) -> ExampleBatch:
    tokens, mask = padded([examples.tokens[i] for i in rows], device)
    targets = torch.from_numpy(examples.targets[list(rows)]).to(device)
    return ExampleBatch(tokens, mask, targets)


def in_order(
    tokens: list[Int[np.ndarray, " T"]], most: int | None = None
) -> Iterator[tuple[list[int], list[Int[np.ndarray, " T"]]]]:
    """All rows in `batches`, sequences of like length together, so that little is padded."""

    def length(row: int) -> int:
        return len(tokens[row])

    for rows in batches(sorted(range(len(tokens)), key=length), length, most):
        yield rows, [tokens[i] for i in rows]


def class_weights(
    examples: Examples, weights: Weights, classes: Sequence[Any]
) -> Float[Tensor, " C"] | None:
    """How heavy each class is in the loss; of several labels, their ones against their zeros."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        if examples.multilabel:
            raise ValueError(
                "class_weight must be 'balanced' or None for several labels a sequence."
            )
        if odd := [name for name in weights if name not in list(classes)]:
            raise ValueError(
                f"class_weight must be by class, {', '.join(map(str, classes))}: got {odd[0]!r}."
            )
        for name, weight in weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"class_weight must be above 0 and finite for every class: got {weight} for {name!r}."
                )
        return torch.tensor([float(weights.get(name, 1.0)) for name in classes])
    if weights != "balanced":
        raise ValueError(f"class_weight must be 'balanced', a dict or None: got {weights!r}.")
    total = len(examples.targets)
    if examples.multilabel:
        ones = examples.targets.sum(0)
        return torch.from_numpy((total - ones) / np.maximum(ones, 1)).float()
    counts = np.bincount(examples.targets, minlength=len(classes))
    return torch.from_numpy(total / (len(classes) * np.maximum(counts, 1))).float()


def classification_loss(
    logits: Float[Tensor, "B C"],
    targets: Tensor,
    weights: Float[Tensor, " C"] | None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats, of classes or (targets [B, C]) of each label by itself."""
    weights = None if weights is None else weights.to(logits)
    if targets.ndim == 2:
        wanted = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights)
    return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)


def chances(logits: Float[Tensor, "B C"], *, multilabel: bool) -> Float[Tensor, "B C"]:
    return logits.sigmoid() if multilabel else logits.softmax(-1)
