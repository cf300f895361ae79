"""How many questions a model answers: greedy generation, scored strictly and loosely."""

import re
from collections.abc import Callable
from typing import Any

from titans_domains.language.model import LanguageModel
from titans_domains.language.suites.babilong.prompts import Prompt
from titans_domains.language.suites.babilong.samples import samples
from titans_domains.language.suites.babilong.worlds import LABELS
from titans_domains.language.suites.greedy import greedy, unit_of
from titans_domains.language.tokenizers import Tokenizer


def first_sentence(prediction: str) -> str:
    return re.split(r"\.|<context>|<example>", prediction.lower(), maxsplit=1)[0]


def exact_label(prediction: str, question: str, answer: str, task: str) -> bool:
    """Whether the first sentence names the answer and no other label, those of the question aside."""
    labels = {label.lower() for label in LABELS[task]}
    named, asked = (
        {label for label in labels if label in text}
        for text in (first_sentence(prediction), question.lower())
    )
    return named - asked == {answer.lower()}


def contains(prediction: str, answer: str) -> bool:
    """Whether the first sentence has the answer in it, whatever else it names: the looser score."""
    return answer.lower() in first_sentence(prediction)


def evaluate_babilong(
    model: LanguageModel,
    tokenizer: Tokenizer,
    task: str,
    length: int,
    mode: str = "carried",
    *,
    count: int = 1000,
    seed: int = 42,
    books: str | None = None,
    babi: str | None = None,
    prompt: Prompt | None = None,
    segment: int = 512,
    progress: Callable[[int], None] = lambda samples: None,
) -> dict[str, Any]:
    """Shares of the questions answered, by both scores; every prompt is a document of its own.

    Mode reset restarts every memory at each segment (`greedy.greedy`). It is the control for a
    detector of the facts' small vocabulary: what is answered so does not need the memory.
    """
    exact = loose = 0
    for sample in samples(task, length, count, seed, tokenizer, books, babi, prompt):
        made = greedy(
            model, tokenizer, sample.prompt, sample.max_new_tokens, mode=mode, segment=segment
        )
        exact += exact_label(made, sample.question, sample.answer, task)
        loose += contains(made, sample.answer)
        progress(1)
    return {
        "task": task, "length": length, "unit": unit_of(tokenizer), "mode": mode,
        "samples": count, "exact_label": exact / count, "contains": loose / count,
    }  # fmt: skip
