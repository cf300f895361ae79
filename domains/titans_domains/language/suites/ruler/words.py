"""Made-up words, all of six letters, so that none is part of another; keys and values of needles."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Literal
from uuid import UUID

import numpy as np

Kind = Literal["words", "numbers", "uuids"]

ONSETS, VOWELS, CODAS = "bdfghjklmnprstvz", "aeiou", "lnrs"
SYLLABLES = tuple(map("".join, product(ONSETS, VOWELS, CODAS)))
NUM_WORDS = len(SYLLABLES) ** 2

ADJECTIVES, NOUNS = 912, 6782
"""As many as in the lists of wonderwords 3.0.1, which RULER draws its keys from."""


def word(number: int) -> str:
    first, second = divmod(number, len(SYLLABLES))
    return SYLLABLES[first] + SYLLABLES[second]


@lru_cache(maxsize=1)
def word_lists() -> tuple[list[str], list[str]]:
    """Adjectives and nouns: the same for every seed, as a list of English words would be."""
    chosen = np.random.default_rng(0).choice(NUM_WORDS, ADJECTIVES + NOUNS, replace=False)
    made = [word(int(number)) for number in chosen]
    return made[:ADJECTIVES], made[ADJECTIVES:]


def draw_word(random: np.random.Generator) -> str:
    adjectives, nouns = word_lists()
    return f"{adjectives[random.integers(ADJECTIVES)]}-{nouns[random.integers(NOUNS)]}"


def draw_number(random: np.random.Generator, digits: int = 7) -> str:
    return str(random.integers(10 ** (digits - 1), 10**digits))


def draw_uuid(random: np.random.Generator) -> str:
    return str(UUID(bytes=random.bytes(16), version=4))


DRAWS: dict[Kind, Callable[[np.random.Generator], str]] = {
    "words": draw_word,
    "numbers": draw_number,
    "uuids": draw_uuid,
}


def distinct(
    random: np.random.Generator, draw: Callable[[np.random.Generator], str], count: int
) -> list[str]:
    """So many different ones, in the order in which they are drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(random)] = None
    return list(found)
