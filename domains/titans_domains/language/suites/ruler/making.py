"""What a task needs to make one prompt, and the search for the largest prompt that fits."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np


class Made(NamedTuple):
    prompt: str
    answers: tuple[str, ...]


class Essay:
    """A text by its sentences, of which the first so many words can be had."""

    def __init__(self, found: Sequence[str]) -> None:
        self.sentences = list(found)

    @cached_property
    def ends(self) -> np.ndarray:
        """Words up to the end of each sentence."""
        return np.cumsum([len(sentence.split(" ")) for sentence in self.sentences])

    def first(self, words: int) -> list[str]:
        """The sentences of so many words, the last of them cut, from the start again where they end."""
        rounds, rest = divmod(words, int(self.ends[-1]))
        whole = int(np.searchsorted(self.ends, rest, "right"))
        left = rest - (int(self.ends[whole - 1]) if whole else 0)
        cut = [" ".join(self.sentences[whole].split(" ")[:left])] if left else []
        return self.sentences * rounds + self.sentences[:whole] + cut


class Setting(NamedTuple):
    length: int  # tokens of a prompt and what is generated after it
    count: Callable[[str], int]  # tokens of a text
    essay: Essay | None  # for the tasks that have one


class Maker(Protocol):
    @property
    def least(self) -> int:
        """The smallest size there is."""
        ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def essay(self) -> bool: ...

    def make(self, random: np.random.Generator, size: int, setting: Setting) -> Made:
        """A prompt with `size` units of what fills it."""
        ...


def largest(fits: Callable[[int], bool], least: int, guess: int) -> int | None:
    """A size that fits while the next does not, looked for from a guess on; None if `least` does not."""
    low, step = max(guess, least), 1
    if fits(low):
        while fits(low + step):
            low, step = low + step, 2 * step
        high = low + step
    else:
        high = low
        while not fits(low := max(least, high - step)):
            if low == least:
                return None
            high, step = low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
