"""A classifier of DNA sequences in scikit-learn's conventions.

n sequences, T tokens, C classes or labels, W width of the embedding.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from titans_domains.dna.classify import ClassifyTask, build, logits_of, train_until_worse
from titans_domains.dna.encoder import ModelConfig
from titans_domains.dna.examples import Examples, Weights, chances, encode_all, in_order, padded
from titans_domains.dna.labels import held_out, known_labels, read_labels, strings
from titans_domains.dna.model import SequenceNetwork
from titans_domains.dna.saved import load_classifier, load_encoder, save_classifier
from titans_domains.dna.splits import overlaps
from titans_domains.dna.tokenizers import make_tokenizer
from titans_domains.runs import choose_device
from titans_domains.train_config import TrainConfig


class SequenceClassifier(ClassifierMixin, BaseEstimator):
    """Classes of DNA sequences (strings), or several labels for each where y is [n, C] of 0 and 1.

    A share of the examples is set aside for validation: it decides when training stops and which
    weights are kept. Sequences of one group, and duplicates on either strand, stay on one side.

    `model` is a `ModelConfig`; its head's positions are cut to the longest sequence. `members` networks
    are trained, each with a seed and a validation share of its own, and their mean is predicted.
    `pretrained` is a run of `titans dna pretrain`, whose encoder the training goes on from.
    """

    def __init__(
        self,
        model: ModelConfig | None = None,
        *,
        tokenizer: str = "nucleotide",
        k: int = 6,
        vocab_size: int = 4096,
        pretrained: str | Path | None = None,
        epochs: int = 15,
        patience: int = 5,
        batch_size: int = 64,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.05,
        class_weight: Weights = None,
        validation_fraction: float = 0.1,
        members: int = 1,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.k = k
        self.vocab_size = vocab_size
        self.pretrained = pretrained
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.members = members
        self.seed = seed
        self.device = device

    def fit(
        self,
        X: Sequence[str],
        y: Any,
        *,
        groups: Any = None,
        validation: tuple[Sequence[str], Any] | None = None,
    ) -> "SequenceClassifier":
        """Trains on sequences X. `validation` are examples to use instead of a share of these."""
        self._check_settings()
        sequences = strings(X)
        labels, self.classes_, self.multilabel_ = read_labels(y, len(sequences))
        self.length_ = max(map(len, sequences))
        self.tokenizer_ = make_tokenizer(
            self.tokenizer, sequences, k=self.k, vocab_size=self.vocab_size
        )
        examples = Examples(self._encode(sequences), labels)
        split: tuple[Examples, Examples | None] = examples, None
        if validation is not None:
            split = examples, self._validation_set(sequences, *validation)
        device = choose_device(self.device)
        devices = [device] if device.type == "cuda" else []
        self.networks_ = []
        for seed in range(self.seed, self.seed + self.members):
            if validation is None:
                split = self._split(examples, sequences, groups, seed)
            # What is drawn here changes nothing for the caller.
            with torch.random.fork_rng(devices):
                self.networks_.append(self._train(*split, seed, device))
        return self

    def _split(
        self, examples: Examples, sequences: list[str], groups: Any, seed: int
    ) -> tuple[Examples, Examples | None]:
        """What a network is trained on, and what it is validated on."""
        if not self.validation_fraction:
            return examples, None
        chosen = held_out(
            sequences, examples.targets, groups, self.validation_fraction, seed,
            names=self.classes_.tolist(),
        )  # fmt: skip
        return examples.take(~chosen), examples.take(chosen)

    def _check_settings(self) -> None:
        for name in ("epochs", "patience", "batch_size", "members"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        for name in ("label_smoothing", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1: got {getattr(self, name)}."
                )

    def _validation_set(self, sequences: list[str], X: Sequence[str], y: Any) -> Examples:
        others = strings(X)
        for overlap in overlaps({"the training set": sequences, "the validation set": others}):
            warnings.warn(f"{overlap}.", stacklevel=3)
        return Examples(self._encode(others), known_labels(y, self.classes_, self.multilabel_))

    def _train(
        self, examples: Examples, valid: Examples | None, seed: int, device: torch.device
    ) -> SequenceNetwork:
        torch.manual_seed(seed)
        every = -(-len(examples.tokens) // self.batch_size)
        network = build(
            self._model_config(examples), self.tokenizer_, len(self.classes_), device=device
        )
        if self.pretrained is not None:
            load_encoder(network, Path(self.pretrained), self.tokenizer_)
        task = ClassifyTask(
            network, examples, valid,
            tokenizer=self.tokenizer_, classes=self.classes_.tolist(), batch_size=self.batch_size,
            seed=seed, smoothing=self.label_smoothing, weights=self.class_weight,
        )  # fmt: skip
        config = TrainConfig(
            steps=self.epochs * every, batch_size=self.batch_size, lr=self.lr, min_lr=0.05,
            weight_decay=self.weight_decay, valid_every=every,
        )  # fmt: skip
        train_until_worse(task, config, patience=self.patience)
        return network

    def _model_config(self, examples: Examples) -> ModelConfig:
        config = self.model or ModelConfig()
        longest = max(map(len, examples.tokens))
        positions = min(config.head.positions, longest)
        return replace(config, head=replace(config.head, positions=positions))

    def _encode(self, sequences: list[str]) -> list[Int[np.ndarray, " T"]]:
        return encode_all(self.tokenizer_, sequences)

    def _logits(self, X: Sequence[str]) -> list[Float[torch.Tensor, "n C"]]:
        check_is_fitted(self)
        tokens = self._encode(strings(X))
        return [logits_of(network, tokens) for network in self.networks_]

    def predict_proba(self, X: Sequence[str]) -> Float[np.ndarray, "n C"]:
        """Chance of each class, or of each label."""
        parts = [chances(logits, multilabel=self.multilabel_) for logits in self._logits(X)]
        found: np.ndarray = torch.stack(parts).double().mean(0).numpy()
        return found

    def predict(self, X: Sequence[str]) -> Shaped[np.ndarray, "n ..."]:
        """The likeliest class, or 1 for every label that is likelier than not."""
        proba = self.predict_proba(X)
        if self.multilabel_:
            return (proba >= 0.5).astype(np.int64)
        return self.classes_[proba.argmax(1)]

    @torch.no_grad()
    def embed(self, X: Sequence[str]) -> Float[np.ndarray, "n W"]:
        """What each network's last layer sees, the networks' vectors one after the other."""
        check_is_fitted(self)
        tokens = self._encode(strings(X))
        device = choose_device(self.device)
        found = torch.empty(len(tokens), sum(n.out.in_features for n in self.networks_))
        for rows, part in in_order(tokens):
            vectors = [network.features(*padded(part, device)) for network in self.networks_]
            found[rows] = torch.cat(vectors, 1).float().cpu()
        return found.numpy()

    def gradients(self, X: Sequence[str], target: Any = None) -> list[Float[np.ndarray, " T"]]:
        """Input times gradient of a class's logit (default: the predicted class's), for every token.

        That is what the token adds to the logit to first order; with several labels, to the sum of
        those predicted, or to that of `target`.
        """
        check_is_fitted(self)
        tokens = self._encode(strings(X))
        wanted = self._wanted(X, target)
        device = choose_device(self.device)
        found: list[np.ndarray] = [np.empty(0)] * len(tokens)
        for rows, part in in_order(tokens):
            ids, mask = padded(part, device)
            scale = torch.ones(ids.shape, device=device, requires_grad=True)
            weight = wanted[rows].to(device)
            for network in self.networks_:
                (network(ids, mask, scale) * weight).sum().backward()
            assert scale.grad is not None
            for row, values in zip(rows, scale.grad.cpu().numpy(), strict=True):
                found[row] = values[: len(tokens[row])] / len(self.networks_)
        for network in self.networks_:
            network.zero_grad(set_to_none=True)
        return found

    def _wanted(self, X: Sequence[str], target: Any) -> Float[torch.Tensor, "n C"]:
        """1 for the logits that `gradients` looks at."""
        proba = self.predict_proba(X)
        if target is None:
            chosen = proba >= 0.5 if self.multilabel_ else proba == proba.max(1, keepdims=True)
        else:
            if target not in self.classes_:
                known = ", ".join(map(str, self.classes_))
                raise ValueError(f"target must be one of {known}: got {target!r}.")
            chosen = np.broadcast_to(self.classes_ == target, proba.shape)
        return torch.from_numpy(chosen.astype(np.float32))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the fitted classifier as a folder, which `load` reads on any device."""
        check_is_fitted(self)
        save_classifier(self, Path(path), force=force)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "SequenceClassifier":
        """The classifier that `save` wrote, or that of a run of `titans dna train`."""
        return load_classifier(cls, Path(path), device)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "networks_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.classifier_tags.multi_label = True
        return tags
