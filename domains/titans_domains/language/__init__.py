"""Language modelling: tokenizers, corpora, streams of batches, evaluation and generation."""

from titans_domains.language.task import LanguageDomain

DOMAIN = LanguageDomain()

__all__ = ["DOMAIN", "LanguageDomain"]
