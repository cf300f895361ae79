"""What a classifier of sequences must beat: logistic regression on k-mers and positions, a small CNN.

n sequences, T tokens, C classes. Every choice is made on validation examples.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.tokenizers import codes

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of the penalty that are tried."""
KINDS = ("k-mers", "positions", "both")
HEADS = ("places", "maximum")
"""What the CNN's full layers see: every place, or the maximum over all of them."""


class KmerRegression:
    """Logistic regression on frequencies of 1- to 6-mers (sublinear tf-idf), on bases by position, or both.

    `fit` keeps the kind and the strength of the penalty that do best on the validation examples. With
    `both_strands` features are the means of both strands', so that either strand is predicted alike.
    """

    def __init__(self, *, both_strands: bool = False) -> None:
        self.both_strands = both_strands

    def fit(
        self,
        X: Sequence[str],
        y: Int[np.ndarray, " n"],
        validation: tuple[Sequence[str], Int[np.ndarray, " m"]],
    ) -> "KmerRegression":
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.kmers = TfidfVectorizer(
            analyzer="char", lowercase=False, ngram_range=(1, 6), sublinear_tf=True, min_df=2
        ).fit([*X, *map(reverse_complement, X)] if self.both_strands else X)
        self.length = max(map(len, X))
        lowest = math.inf
        for kind in KINDS:
            features, others = self._features(X, kind), self._features(validation[0], kind)
            for strength in STRENGTHS:
                # Its solver stops early on unscaled columns, which is a choice as good as another.
                model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
                model.fit(features, y)
                chance = model.predict_proba(others)[
                    np.arange(len(others.indptr) - 1), validation[1]
                ]
                loss = float(-np.log(np.maximum(chance, 1e-12)).mean())
                if loss < lowest:
                    lowest, self.kind, self.strength, self.model = loss, kind, strength, model
        return self

    def predict_proba(self, X: Sequence[str]) -> Float[np.ndarray, "n C"]:
        found: np.ndarray = self.model.predict_proba(self._features(X, self.kind))
        return found

    def _features(self, X: Sequence[str], kind: str) -> Any:
        here = self._strand(X, kind)
        if not self.both_strands:
            return here
        return (here + self._strand([reverse_complement(s) for s in X], kind)) / 2

    def _strand(self, X: Sequence[str], kind: str) -> Any:
        from scipy.sparse import csr_matrix, hstack

        if kind == "k-mers":
            return csr_matrix(self.kmers.transform(X))
        columns = [self._columns(sequence) for sequence in X]
        rows = np.cumsum([0, *map(len, columns)])
        shape = (len(X), 4 * self.length)
        one_hot = csr_matrix((np.ones(rows[-1]), np.concatenate(columns), rows), shape)
        if kind == "positions":
            return one_hot
        # Scaled like the k-mers, whose rows have length 1.
        return csr_matrix(hstack([self.kmers.transform(X), one_hot * 0.3]))

    def _columns(self, sequence: str) -> Int[np.ndarray, " known"]:
        """Where bases by position are 1, four columns for each; unknown ones have none."""
        letters = codes(sequence[: self.length])
        known = np.flatnonzero(letters < 4)
        return 4 * known + letters[known]


class SmallCnn(nn.Module):
    """Two convolutions of single bases, each pooled, and two full layers: for sequences of one length.

    With `both_strands` it is trained on either strand by chance, and predicts by the mean of both.
    """

    def __init__(
        self, length: int, classes: int, *, head: str = "places", both_strands: bool = False
    ) -> None:
        super().__init__()
        self.length, self.head, self.both_strands = length, head, both_strands
        self.first = nn.Conv1d(4, 64, 11, padding=5)
        self.second = nn.Conv1d(64, 64, 7, padding=3)
        self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(2))
        self.hidden = nn.Linear(length // 4 * 64 if head == "places" else 64, 64)
        self.out = nn.Linear(64, classes)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Float[Tensor, "B 4 T"]) -> Float[Tensor, "B C"]:
        for conv, norm in zip((self.first, self.second), self.norms, strict=True):
            x = F.max_pool1d(F.relu(norm(conv(x))), 2)
        x = x.flatten(1) if self.head == "places" else x.amax(-1)
        x = F.relu(self.hidden(self.dropout(x)))
        return self.out(self.dropout(x))


def one_hot(sequences: Sequence[str], length: int) -> Float[Tensor, "n 4 length"]:
    """Bases as four channels, cut or padded with zeros to one length; zeros for N."""
    found = np.zeros((len(sequences), 4, length), np.float32)
    for row, sequence in enumerate(sequences):
        letters = codes(sequence[:length])
        known = np.flatnonzero(letters < 4)
        found[row, letters[known], known] = 1
    return torch.from_numpy(found)


def train_cnn(
    X: Sequence[str],
    y: Int[np.ndarray, " n"],
    validation: tuple[Sequence[str], Int[np.ndarray, " m"]],
    *,
    seed: int,
    epochs: int = 12,
    head: str = "places",
    both_strands: bool = False,
) -> SmallCnn:
    """The CNN at its epoch of lowest loss on the validation examples."""
    torch.manual_seed(seed)
    length = max(map(len, X))
    model = SmallCnn(length, int(y.max()) + 1, head=head, both_strands=both_strands)
    strands, targets = _strands(model, X), torch.from_numpy(y)
    others, wanted = _strands(model, validation[0]), torch.from_numpy(validation[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    lowest, best = math.inf, model.state_dict()
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(targets)).split(64):
            if len(rows) > 1:
                inputs = strands[0][rows]
                if both_strands:
                    turned = torch.rand(len(rows), 1, 1) < 0.5
                    inputs = torch.where(turned, strands[1][rows], inputs)
                loss = F.cross_entropy(model(inputs), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        valid = F.cross_entropy(_logits(model, others), wanted).item()
        if valid < lowest:
            lowest, best = valid, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best)
    return model


def _strands(model: SmallCnn, sequences: Sequence[str]) -> list[Float[Tensor, "n 4 T"]]:
    """The strands that the model reads, each as one-hot."""
    found = [one_hot(sequences, model.length)]
    if model.both_strands:
        found.append(one_hot([reverse_complement(s) for s in sequences], model.length))
    return found


@torch.no_grad()
def _logits(model: SmallCnn, strands: list[Float[Tensor, "n 4 T"]]) -> Float[Tensor, "n C"]:
    model.eval()
    read = [torch.cat([model(part) for part in inputs.split(512)]) for inputs in strands]
    return torch.stack(read).mean(0)


def cnn_proba(model: SmallCnn, sequences: Sequence[str]) -> Float[np.ndarray, "n C"]:
    found: np.ndarray = _logits(model, _strands(model, sequences)).softmax(-1).numpy()
    return found
