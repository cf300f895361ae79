"""What variants and mutations are judged by: chances of classes, or the likelihood of the sequence."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union

import numpy as np
import torch
from jaxtyping import Float

from titans_domains.dna.calls import Classifier, batches, class_names, is_multilabel
from titans_domains.dna.tokenizers import DnaTokenizer
from titans_domains.runs import CONFIG, load_run_table

if TYPE_CHECKING:
    from titans_domains.dna.classifier import SequenceClassifier
    from titans_domains.dna.pretrained import Pretrained

Score = Callable[[Sequence[str]], Float[np.ndarray, "n S"]]


Model = Union["SequenceClassifier", "Pretrained"]


def load_any(run: Path, device: torch.device) -> Model:
    """The classifier or the pretrained model of a run, or a saved classifier."""
    from titans_domains.dna.task import DOMAIN, load_classifier, load_model

    if (run / CONFIG).is_file() and load_run_table(run, DOMAIN)[0].kind != "train":
        return load_model(run, device)
    return load_classifier(run, device)


def shortest_of(model: Any) -> int:
    """Bases that a sequence needs at least for the model's tokens."""
    tokenizer: DnaTokenizer = getattr(model, "tokenizer_", None) or model.tokenizer
    return tokenizer.shortest


class Scorer(NamedTuple):
    names: list[str]  # of the columns of a score
    score: Score
    # Whether only sequences with as many known bases can be compared: each of them lowers a likelihood.
    even: bool = False


class LikelihoodModel(Protocol):
    def log_likelihood(self, sequences: Sequence[str]) -> Float[np.ndarray, " n"]: ...


CERTAIN = 1e-7
"""Chances nearer to 0 or 1 than this are taken for it: single precision tells no more."""


def class_scorer(model: Classifier, label: str | None, *, log_odds: bool = False) -> Scorer:
    """The chance of one class. Without its name: of the second of two, or of each where there are more.

    Near 0 and 1 chances hardly change whatever changes in a sequence; their log odds do.
    """
    names = class_names(model)
    if label is not None and label not in names:
        raise ValueError(f"--class must be one of {', '.join(names)}: got {label!r}.")
    chosen = list(range(len(names)))
    if label is not None:
        chosen = [names.index(label)]
    elif len(names) == 2 and not is_multilabel(model):
        chosen = [1]

    def score(sequences: Sequence[str]) -> Float[np.ndarray, "n S"]:
        p = _in_batches(model.predict_proba, sequences)[:, chosen]
        if not log_odds:
            return p
        p = np.clip(p, CERTAIN, 1 - CERTAIN)
        return np.log(p) - np.log1p(-p)

    return Scorer([f"{'logit' if log_odds else 'p'}_{names[i]}" for i in chosen], score)


def scorer_of(model: Any, label: str | None, *, log_odds: bool = False) -> Scorer:
    """By chances for a classifier, by likelihoods for a pretrained model."""
    if hasattr(model, "predict_proba"):
        return class_scorer(model, label, log_odds=log_odds)
    if label is not None or log_odds:
        raise ValueError(
            "--class and --log-odds are for classifiers: this run is a pretrained model."
        )
    return likelihood_scorer(model)


def length_of(model: Any) -> int:
    """Bases of the sequences that the model was trained on: of a classifier, of the longest."""
    return int(getattr(model, "length_", 0) or model.window)


def window_of(model: Any, scorer: Scorer, asked: int | None) -> int:
    """Bases around a variant: what is asked for, or as many as in training."""
    size = asked or length_of(model)
    # Half of an even window may be all that is left of it.
    least = shortest_of(model) * (2 if scorer.even else 1)
    if size < least:
        raise ValueError(
            f"--window must be at least {least} bases, as the model's tokens need {shortest_of(model)}: got "
            f"{size}."
        )
    return size


def likelihood_scorer(model: LikelihoodModel) -> Scorer:
    """The logarithm (base e) of the chance that the model gives a sequence."""
    return Scorer(
        ["log_likelihood"],
        lambda x: _in_batches(lambda part: model.log_likelihood(part)[:, None], x),
        even=True,
    )


def _in_batches(score: Score, sequences: Sequence[str]) -> Float[np.ndarray, "n S"]:
    return np.concatenate([score(part) for part in batches(sequences, len)])
