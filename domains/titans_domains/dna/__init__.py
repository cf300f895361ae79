"""DNA: reading, tokenizers, classification, variants and long genomes."""

from typing import Any

from titans_domains.dna.configs import DnaConfig
from titans_domains.dna.encoder import ModelConfig
from titans_domains.dna.task import DOMAIN, DnaDomain, load_model

__all__ = [
    "DOMAIN",
    "DnaConfig",
    "DnaDomain",
    "ModelConfig",
    "SequenceClassifier",
    "load_model",
]


def __getattr__(name: str) -> Any:
    # It needs scikit-learn, which nothing else here does.
    if name == "SequenceClassifier":
        from titans_domains.dna.classifier import SequenceClassifier

        return SequenceClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
