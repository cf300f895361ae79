"""Stories among background as rows of tokens, with the label asked for at the last place.

inputs   < hay  Mary moved to the garden.  hay  Where is Mary?
targets  .  .   .    .     .  .   .         .   .     .  garden
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from titans_core import BackboneConfig
from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.babilong import worlds
from titans_domains.language.suites.babilong.samples import (
    LEAST_WORDS,
    draw_fitting,
    draw_stories,
)
from titans_domains.language.suites.haystack import Haystack, part_of, read_sentences, weave
from titans_domains.language.suites.problem import IGNORED, SPLITS, Examples, Split, random_of
from titans_domains.language.tokenizers import ByteTokenizer

ALL_LABELS = sorted({label for labels in worlds.LABELS.values() for label in labels})
"""The fixed vocabulary of answers, of all tasks."""

FACT_WORDS = sorted(
    {
        word
        for phrases in (
            worlds.ROOMS, worlds.THINGS, worlds.PEOPLE, worlds.GIVERS, worlds.MOVES, worlds.GETS,
            worlds.DROPS, worlds.GIVES, *worlds.DIRECTIONS.items(),
            ("to the there is of The . ? Where was before What did give Who gave received",),
        )
        for phrase in phrases
        for word in phrase.split()
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Babi:
    """Rows of exactly the length asked for: all tokens but story and question are background.

    Labels have ids of their own: in bytes they come after the byte tokenizer's ids, and in words they
    are the ids of those words. Words are those of the facts and the commonest of the training text;
    all others are one unknown word. The last sentence of the background is cut to make the length.
    """

    task: str = "qa1"
    tokens: Literal["bytes", "words"] = "words"
    words: int = 1000  # of the background
    books: str | None = None  # a file or folder; None for the embedded corpus
    babi: str | None = None  # a folder of bAbI's files; None for the simulator
    seed: int = 0

    def __post_init__(self) -> None:
        worlds.check_task(self.task)
        if self.tokens not in ("bytes", "words"):
            raise ValueError(f"tokens must be bytes or words: got {self.tokens!r}.")
        if self.words < 1:
            raise ValueError(f"words must be at least 1: got {self.words}.")

    @property
    def vocab_size(self) -> int:
        if self.tokens == "bytes":
            return ByteTokenizer.vocab_size + len(ALL_LABELS)
        return 2 + len(FACT_WORDS) + self.words

    @property
    def chance(self) -> float:
        return 1 / len(worlds.LABELS[self.task])

    def model(self, config: BackboneConfig) -> LanguageModel:
        return LanguageModel(config, self.vocab_size)

    def label(self, answer: str) -> int:
        """The id of an answer."""
        if self.tokens == "bytes":
            return ByteTokenizer.vocab_size + ALL_LABELS.index(answer)
        return self.table[answer]

    @cached_property
    def draws(self) -> dict[Split, Callable[[np.random.Generator], worlds.Story]]:
        return {split: draw_stories(self.task, self.babi, split) for split in SPLITS}

    @cached_property
    def parts(self) -> dict[Split, list[str]]:
        found = read_sentences(self.books, LEAST_WORDS)
        return {split: part_of(found, split) for split in SPLITS}

    @cached_property
    def table(self) -> dict[str, int]:
        """Ids of words; 0 is an unknown one, 1 the end of a document."""
        counts = Counter(word for text in self.parts["train"] for word in _words(text))
        ours = set(FACT_WORDS)
        common = [word for word, _ in counts.most_common() if word not in ours]
        return {word: n for n, word in enumerate(FACT_WORDS + common[: self.words], 2)}

    @cached_property
    def hays(self) -> dict[Split, Haystack]:
        return {split: Haystack.of(self.parts[split], self.encode) for split in SPLITS}

    def encode(self, text: str) -> np.ndarray:
        if self.tokens == "bytes":
            return ByteTokenizer().encode(text.encode())
        return np.array([self.table.get(word, 0) for word in _words(text)], np.int64)

    def draw(self, rows: int, length: int, split: Split, number: int = 0) -> Examples:
        random = random_of(self.seed, split, length, number)
        end = ByteTokenizer.end if self.tokens == "bytes" else 1
        inputs = np.full((rows, length), end, np.int64)
        targets = np.full((rows, length), IGNORED, np.int64)

        def tokens(found: worlds.Story) -> int:
            return 1 + sum(len(self.encode(part + " ")) for part in (*found.facts, found.question))

        for row in range(rows):
            found = draw_fitting(self.draws[split], random, length, tokens)
            facts = [self.encode(fact + " ") for fact in found.facts]
            filling, cuts = self.hays[split].take(random, length - tokens(found))
            places = np.sort(random.choice(np.append(cuts, len(filling)), len(facts)))
            context = weave(filling, places.tolist(), facts)
            inputs[row, 1:] = np.concatenate([context, self.encode(found.question + " ")])
            targets[row, -1] = self.label(found.answer)
        return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
