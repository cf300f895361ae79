"""How much of what is hidden a model finds: greedy generation and RULER's score."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.greedy import greedy, unit_of
from titans_domains.language.suites.ruler.samples import samples
from titans_domains.language.tokenizers import Tokenizer


def score(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the prediction, small and capital letters alike.

    This is string_match_all, from 0 to 1; the floor is 0.
    """
    text = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip().lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def evaluate_ruler(
    model: LanguageModel,
    tokenizer: Tokenizer,
    task: str,
    length: int,
    count: int = 500,
    seed: int = 42,
    haystack: str | None = None,
    *,
    mode: str = "carried",
    segment: int = 512,
    progress: Callable[[int], None] = lambda samples: None,
) -> dict[str, Any]:
    """The mean score, in percent, over prompts of `length` tokens, each a document of its own.

    Modes are those of `greedy.greedy`.
    """
    total = 0.0
    for sample in samples(task, length, count, seed, tokenizer, haystack):
        made = greedy(
            model, tokenizer, sample.prompt, sample.max_new_tokens, mode=mode, segment=segment
        )
        total += score(made, sample.answers)
        progress(1)
    return {
        "task": task, "length": length, "unit": unit_of(tokenizer), "mode": mode,
        "samples": count, "score": 100 * total / count,
    }  # fmt: skip
