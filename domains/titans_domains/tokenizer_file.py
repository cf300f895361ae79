"""Tokenizers of Hugging Face's library, read from what may be anything."""

from typing import Any

LARGEST = 2**28
"""Bytes; the largest vocabularies in use take a fifth of it."""


def parse_tokenizer(text: str, source: str) -> Any:
    """The library's tokenizer; ValueError, which names the source, where it makes none of the text."""
    from tokenizers import Tokenizer

    if len(text) > LARGEST:
        raise ValueError(f"{source} is larger than {LARGEST:,} bytes, as no tokenizer is.")
    try:
        return Tokenizer.from_str(text)
    except BaseException as error:
        # It raises a bare Exception, and at some damage panics, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{source} is not a tokenizer file of Hugging Face tokenizers: {error}."
        ) from None
