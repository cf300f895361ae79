"""BABILong (Kuratov et al., arXiv 2406.10149): facts of bAbI scattered in long text, and a question.

`samples` and `evaluate_babilong` give prompts and score what a model generates; `Babi` gives rows to
train small models on. Facts come from `worlds`, simulators of bAbI's first five tasks, or from bAbI's
own files. What differs from the original: the prompts' wording is ours in its frame, the few-shot
prompt's own tokens are taken from the length in place of a flat 300, background is filled by whole
sentences of at least ten words, and stories whose facts do not fit are drawn again.
"""

from titans_domains.language.suites.babilong.evaluate import (
    contains,
    evaluate_babilong,
    exact_label,
)
from titans_domains.language.suites.babilong.problem import Babi
from titans_domains.language.suites.babilong.prompts import PROMPTS, Prompt
from titans_domains.language.suites.babilong.samples import Sample, samples
from titans_domains.language.suites.babilong.worlds import LABELS, Story, story

__all__ = [
    "LABELS", "PROMPTS", "Babi", "Prompt", "Sample", "Story", "contains", "evaluate_babilong",
    "exact_label", "samples", "story",
]  # fmt: skip
