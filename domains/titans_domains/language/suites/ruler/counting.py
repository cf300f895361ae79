"""The words that appear most often: common ones in a numbered list, frequent ones in a coded text."""

import math
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

from titans_domains.language.suites.ruler.making import Made, Setting
from titans_domains.language.suites.ruler.words import NUM_WORDS, distinct, word

COMMON_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
    " Answer: The top 10 words that appear most often in the list are:"
)
FREQUENT_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
SHORT = 4096
"""Below this length a list is made of fewer repetitions."""


@dataclass(frozen=True)
class CommonWords:
    """Ten words appear thirty times, all others three times; `size` words; a solved example in front."""

    least = 11
    max_new_tokens = 120
    essay = False

    def make(self, random: np.random.Generator, size: int, setting: Setting) -> Made:
        example, common, rare = (20, 3, 1) if setting.length < SHORT else (40, 10, 3)
        shown, solved = self._list(random, example, common, rare)
        common, rare = (6, 1) if setting.length < SHORT else (30, 3)
        context, answers = self._list(random, size, common, rare)
        first = COMMON_TEMPLATE.format(context=shown) + " " + numbered(solved)
        return Made(f"{first}\n{COMMON_TEMPLATE.format(context=context)}", tuple(answers))

    def _list(
        self, random: np.random.Generator, size: int, common: int, rare: int
    ) -> tuple[str, list[str]]:
        if size > NUM_WORDS:
            raise ValueError(
                f"length must need at most {NUM_WORDS:,} different words in cwe: got more. Give a "
                "shorter one."
            )
        words = [word(int(i)) for i in random.choice(NUM_WORDS, size, replace=False)]
        repeated = words[:10] * common + words[10:] * rare
        return numbered([repeated[i] for i in random.permutation(len(repeated))]), words[:10]


def numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {text}" for number, text in enumerate(words, 1))


@dataclass(frozen=True)
class FrequentWords:
    """Coded words of six letters by Zipf's law with exponent 2; the most frequent of all is dots.

    `size` is the number of words before each word's share of them is rounded down.
    """

    least = 74  # from here on the fourth rank appears more often than the fifth
    max_new_tokens = 50
    essay = False

    def make(self, random: np.random.Generator, size: int, setting: Setting) -> Made:
        def code(random: np.random.Generator) -> str:
            return "".join(ascii_lowercase[i] for i in random.integers(26, size=6))

        vocabulary = distinct(random, code, max(5, setting.length // 50))
        vocabulary[0] = "..."
        shares = np.arange(1, len(vocabulary) + 1) ** -2.0 / (math.pi**2 / 6)
        text = np.repeat(vocabulary, (size * shares).astype(int))
        context = " ".join(text[random.permutation(len(text))])
        return Made(FREQUENT_TEMPLATE.format(context=context), tuple(vocabulary[1:4]))
