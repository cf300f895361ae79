"""Needles in a haystack: values hidden under keys among sentences, and asked for."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from titans_domains.language.suites.ruler.making import Made, Setting
from titans_domains.language.suites.ruler.words import DRAWS, Kind, distinct

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
HEAD = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
QUESTION = "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"

DEPTHS = np.linspace(0, 100, 40).round().astype(int)


def worded(template: str, kind: str, query: str = "", *, one: bool) -> str:
    """A template about `kind`, in the singular where one value is asked for."""
    if one:
        for plural, singular in (("Some", "A"), ("are all", "is"), ("are", "is")):
            template = template.replace(plural, singular)
        kind = kind[:-1]
    return template.format(kind=kind, query=query)


def listed(queries: list[str]) -> str:
    return queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"


@dataclass(frozen=True, kw_only=True)
class Niah:
    haystack: Literal["noise", "essay", "needle"]
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1  # under each key
    queries: int = 1

    max_new_tokens = 128

    @property
    def least(self) -> int:
        return 1 if self.essay else self.keys * self.values

    @property
    def essay(self) -> bool:
        return self.haystack == "essay"

    def make(self, random: np.random.Generator, size: int, setting: Setting) -> Made:
        more = size if self.haystack == "needle" else 0
        # Those of the needles come first, so that a longer haystack leaves them as they are.
        keys = distinct(random, DRAWS[self.key], self.keys + more)
        values = distinct(random, DRAWS[self.value], self.keys * self.values + more)
        needles = [
            NEEDLE.format(kind=self.value, key=keys[n // self.values], value=values[n])
            for n in range(self.keys * self.values)
        ]
        asked = random.choice(self.keys, self.queries, replace=False)
        needles = [needles[i] for i in random.permutation(len(needles))]
        if self.essay:
            context = among_essay(random, needles, setting, size)
        else:
            hay = [NOISE] * size
            if more:
                distractors = zip(keys[self.keys :], values[-size:], strict=True)
                hay = [NEEDLE.format(kind=self.value, key=k, value=v) for k, v in distractors]
            context = among_lines(random, needles, hay)
        answers = tuple(values[k * self.values + v] for k in asked for v in range(self.values))
        query = listed([keys[k] for k in asked])
        head, tail = (
            worded(part, self.value, query, one=len(answers) == 1)
            for part in (HEAD, QUESTION + PREFIX)
        )
        return Made(head + context + tail, answers)


def among_lines(random: np.random.Generator, needles: list[str], hay: list[str]) -> str:
    """Lines of hay, a needle before as many different ones of them."""
    lines = list(hay)
    places = np.sort(random.choice(len(hay), len(needles), replace=False))[::-1]
    for place, needle in zip(places, needles, strict=True):
        lines.insert(int(place), needle)
    return "\n".join(lines)


def among_essay(
    random: np.random.Generator, needles: list[str], setting: Setting, size: int
) -> str:
    """The essay's first words, a needle at as many different depths of forty."""
    assert setting.essay is not None
    found = setting.essay.first(size)
    depths = np.sort(random.choice(DEPTHS, len(needles), replace=False))
    places = [int(len(found) * (depth / 100)) for depth in depths]
    parts, last = list[str](), 0
    for place, needle in zip(places, needles, strict=True):
        # Before the first sentence and between two needles this is nothing, and its blank stays, as
        # it does in the original.
        parts += [" ".join(found[last:place]), needle]
        last = place
    return " ".join([*parts, " ".join(found[last:])])
