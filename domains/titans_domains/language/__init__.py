"""Language modelling: tokenizers, corpora, streams of batches, evaluation and generation."""

from titans_domains.language.task import DOMAIN, LanguageConfig, LanguageDomain, load_run

__all__ = ["DOMAIN", "LanguageConfig", "LanguageDomain", "load_run"]
