"""Prompts of RULER's tasks at a length, and what must be found in them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from titans_domains.language.suites.greedy import unit_of
from titans_domains.language.suites.haystack import read_sentences
from titans_domains.language.suites.ruler.counting import CommonWords, FrequentWords
from titans_domains.language.suites.ruler.making import Essay, Made, Maker, Setting, largest
from titans_domains.language.suites.ruler.niah import Niah
from titans_domains.language.suites.ruler.tracking import VariableTracking
from titans_domains.language.tokenizers import ByteTokenizer, Tokenizer

TASKS: dict[str, Maker] = {
    "niah_single_1": Niah(haystack="noise"),
    "niah_single_2": Niah(haystack="essay"),
    "niah_single_3": Niah(haystack="essay", value="uuids"),
    # Not RULER's: "word in a haystack" taken at its word, an easier task.
    "niah_single_words": Niah(haystack="essay", value="words"),
    "niah_multikey_1": Niah(haystack="essay", keys=4),
    "niah_multikey_2": Niah(haystack="needle"),
    "niah_multikey_3": Niah(haystack="needle", key="uuids", value="uuids"),
    "niah_multivalue": Niah(haystack="essay", values=4),
    "niah_multiquery": Niah(haystack="essay", keys=4, queries=4),
    "vt": VariableTracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
}

PAPER_NAMES = {
    "S-NIAH-PK": "niah_single_1",
    "S-NIAH-N": "niah_single_2",
    "S-NIAH-W": "niah_single_3",
}
"""What the Titans paper calls them; it gives no settings, so this follows those it compares with."""


class Sample(NamedTuple):
    prompt: str
    answers: tuple[str, ...]
    max_new_tokens: int


def samples(
    task: str,
    length: int,
    count: int = 500,
    seed: int = 42,
    tokenizer: Tokenizer | None = None,
    haystack: str | None = None,
) -> Iterator[Sample]:
    """Prompts that fit `length` tokens with what is generated after them, each as long as possible.

    Tokens are the tokenizer's, without one bytes. `haystack` is the text of the tasks with an essay:
    a file or folder, the embedded corpus where it is None.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}: got {task!r}.")
    if count < 1:
        raise ValueError(f"count must be at least 1 sample: got {count}.")
    maker, tokenizer = TASKS[task], tokenizer or ByteTokenizer()
    essay = Essay(read_sentences(haystack)) if maker.essay else None
    setting = Setting(length, lambda text: len(tokenizer.encode(text.encode())), essay)

    def make(index: int, size: int) -> Made:
        # Every size of a sample is made from the same numbers.
        random = np.random.default_rng([seed, list(TASKS).index(task), length, index])
        return maker.make(random, size, setting)

    # Before the first prompt is asked for, so that a caller hears of it here.
    _largest(task, setting, make, 0, maker.least, tokenizer)
    return _samples(task, setting, make, count, tokenizer)


def _samples(
    task: str,
    setting: Setting,
    make: Callable[[int, int], Made],
    count: int,
    tokenizer: Tokenizer,
) -> Iterator[Sample]:
    size = TASKS[task].least
    for index in range(count):
        # The sizes of two samples differ little, so that the last one's is a good guess.
        size = _largest(task, setting, make, index, size, tokenizer)
        made = make(index, size)
        yield Sample(made.prompt, made.answers, TASKS[task].max_new_tokens)


def _largest(
    task: str,
    setting: Setting,
    make: Callable[[int, int], Made],
    index: int,
    guess: int,
    tokenizer: Tokenizer,
) -> int:
    """The largest size of a sample; ValueError where its smallest is too long."""
    maker = TASKS[task]

    def tokens(size: int) -> int:
        return setting.count(make(index, size).prompt) + maker.max_new_tokens

    size = largest(lambda size: tokens(size) <= setting.length, maker.least, guess)
    if size is None:
        raise ValueError(
            f"length must hold the shortest prompt of {task} and its answer, {tokens(maker.least)} "
            f"{unit_of(tokenizer)}: got {setting.length}."
        )
    return size
