"""Prompts with facts scattered in long text, at a length, and the label that answers each."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from titans_domains.language.suites.babilong.files import babi_stories
from titans_domains.language.suites.babilong.prompts import PROMPTS, Prompt
from titans_domains.language.suites.babilong.worlds import LABELS, Story, check_task, story
from titans_domains.language.suites.greedy import unit_of
from titans_domains.language.suites.haystack import read_sentences
from titans_domains.language.suites.problem import Split
from titans_domains.language.tokenizers import ByteTokenizer, Tokenizer

MAX_NEW_TOKENS = 20
LEAST_WORDS = 10
"""Of a sentence of the background; the original's are of at least ten tokens of GPT-2."""

TRIES = 1000
TOKENS_PER_FACT = 8
"""Stories with more facts than the length has room for at this rate are left out."""


class Sample(NamedTuple):
    prompt: str
    question: str
    answer: str
    max_new_tokens: int


def draw_stories(
    task: str, babi: str | None, split: Split
) -> Callable[[np.random.Generator], Story]:
    """Draws from a folder of bAbI's files, or from the simulator of that world."""
    check_task(task)
    if babi is None:
        return lambda random: story(task, random)
    found = babi_stories(babi, task, split)
    return lambda random: found[random.integers(len(found))]


def draw_fitting(
    draw: Callable[[np.random.Generator], Story],
    random: np.random.Generator,
    length: int,
    tokens: Callable[[Story], int],
) -> Story:
    """A story of at most `length` tokens of facts and all that goes with them."""
    for _ in range(TRIES):
        found = draw(random)
        few = len(found.facts) <= length // TOKENS_PER_FACT
        if few and tokens(found) <= length:
            return found
    raise ValueError(
        f"length must hold a story and its question: none of {TRIES} stories fits {length}. "
        "Give a longer one."
    )


def samples(
    task: str,
    length: int,
    count: int = 1000,
    seed: int = 42,
    tokenizer: Tokenizer | None = None,
    books: str | None = None,
    babi: str | None = None,
    prompt: Prompt | None = None,
) -> Iterator[Sample]:
    """Prompts that fit `length` tokens with what is generated; of length 0: facts without background.

    Tokens are the tokenizer's, without one bytes. `books` is the text of the background, a file or
    folder, the embedded corpus where it is None. `babi` is a folder of bAbI, of which the test files
    alone are read.
    """
    check_task(task)
    if length < 0 or count < 1:
        raise ValueError(
            f"length must be 0 or more and count at least 1: got {length} and {count}."
        )
    tokenizer = tokenizer or ByteTokenizer()
    draw = draw_stories(task, babi, "test")
    found = read_sentences(books, LEAST_WORDS) if length else []
    maker = _Maker(tokenizer, length, found, prompt or PROMPTS[task])
    if 0 < length <= (frame := maker.size((), "")):
        raise ValueError(
            f"length must hold facts in the prompt of {task}, which takes {frame} "
            f"{unit_of(tokenizer)} with its answer: got {length}."
        )
    return (
        maker.make(draw, np.random.default_rng([seed, list(LABELS).index(task), length, index]))
        for index in range(count)
    )


class _Maker:
    def __init__(self, tokenizer: Tokenizer, length: int, found: list[str], prompt: Prompt) -> None:
        self.tokenizer, self.length, self.found, self.prompt = tokenizer, length, found, prompt

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text.encode()))

    def size(self, facts: Sequence[str], question: str) -> int:
        return self.count(self.prompt.filled(" ".join(facts), question)) + MAX_NEW_TOKENS

    def make(
        self, draw: Callable[[np.random.Generator], Story], random: np.random.Generator
    ) -> Sample:
        if not self.length:
            facts, question, answer = draw(random)
            context = list(facts)
        else:
            facts, question, answer = draw_fitting(
                draw, random, self.length, lambda found: self.size(found.facts, found.question)
            )
            context = self._scattered(random, list(facts), question)
        text = self.prompt.filled(" ".join(context), question)
        return Sample(text, question, answer, MAX_NEW_TOKENS)

    def _scattered(self, random: np.random.Generator, facts: list[str], question: str) -> list[str]:
        """The facts in order at random places among as many sentences as fit."""
        left = self.length - self.size(facts, question)
        first, background = int(random.integers(len(self.found))), list[str]()
        while (size := self.count(" " + self._sentence(first + len(background)))) <= left:
            background.append(self._sentence(first + len(background)))
            left -= size
        chances = random.random(len(facts))
        while True:
            places = np.sort((chances * (len(background) + 1)).astype(int))
            mixed = list(background)
            for place, fact in zip(places[::-1], facts[::-1], strict=True):
                mixed.insert(int(place), fact)
            # Sentences may take more tokens together than one by one.
            if not background or self.size(mixed, question) <= self.length:
                return mixed
            background.pop()

    def _sentence(self, number: int) -> str:
        return self.found[number % len(self.found)]
