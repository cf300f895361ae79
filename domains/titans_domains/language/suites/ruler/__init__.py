"""RULER (Hsieh et al., arXiv 2404.06654): long prompts with something to find, made from a seed.

`samples` and `evaluate_ruler` follow its prompts to the letter and score what a model generates.
`Needle` gives single needles as rows of bytes, to train small models on. What differs from the
original: words come from a grammar of syllables and essays from any text, sentences are cut by
`haystack.sentences`, keys and values of a prompt are distinct, and every prompt is filled as far as
it goes, where the original fills one and shortens others by whole steps.
"""

from titans_domains.language.suites.ruler.evaluate import evaluate_ruler, score
from titans_domains.language.suites.ruler.needle import Needle
from titans_domains.language.suites.ruler.samples import PAPER_NAMES, TASKS, Sample, samples

__all__ = ["PAPER_NAMES", "TASKS", "Needle", "Sample", "evaluate_ruler", "samples", "score"]
