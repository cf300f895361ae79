"""Variable tracking: a chain of assignments hidden among noise, all of whose variables are asked for."""

from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase

import numpy as np

from titans_domains.language.suites.ruler.making import Made, Setting, largest
from titans_domains.language.suites.ruler.niah import NOISE
from titans_domains.language.suites.ruler.words import distinct

TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text above."
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables "
    "are assigned the value {query}, they are: "
)
EXAMPLE_TOKENS = 500


@dataclass(frozen=True, kw_only=True)
class VariableTracking:
    """One chain; the prompt begins with a solved example of about 500 tokens with shorter names."""

    hops: int = 4

    max_new_tokens = 30
    essay = False

    @property
    def least(self) -> int:
        return self.hops + 1

    def make(self, random: np.random.Generator, size: int, setting: Setting) -> Made:
        seed = int(random.integers(2**63))

        def example(size: int) -> Made:
            return self._chain(np.random.default_rng(seed), size, letters=3)

        def fits(size: int) -> bool:
            return setting.count(_solved(example(size))) <= EXAMPLE_TOKENS

        # Five lines are the fewest in which a chain finds places, however many tokens they are.
        lines = largest(fits, self.least, self.least) or self.least
        prompt, answers = self._chain(random, size, letters=5)
        return Made(_solved(example(lines)) + "\n" + prompt, answers)

    def _chain(self, random: np.random.Generator, size: int, *, letters: int) -> Made:
        def name(random: np.random.Generator) -> str:
            return "".join(ascii_uppercase[i] for i in random.integers(26, size=letters))

        names = distinct(random, name, self.hops + 1)
        value = str(random.integers(10_000, 99_999))
        # The blank at the end of an assignment to a variable is the original's.
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
        places = np.sort(random.choice(size, len(chain), replace=False))
        lines = [NOISE] * size
        for place, assignment in zip(places[::-1], chain[::-1], strict=True):
            lines.insert(int(place), assignment)
        context = "\n".join(lines)
        prompt = TEMPLATE.format(context=context, query=value, num_v=len(chain))
        return Made(prompt, tuple(names))


def _solved(made: Made) -> str:
    return f"{made.prompt} {' '.join(made.answers)}\n"
