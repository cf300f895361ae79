"""MAD (Poli et al., Mechanistic Design and Scaling of Hybrid Architectures, arXiv 2403.17844): six tasks.

A score is the mean accuracy over the baseline of each task and every single change of it, 66 settings
in all; `accuracy` is micro, `macro` what the authors report. What differs from their code:

- Their best of six runs is chosen by the test rows. There is a `valid` split here to choose by.
- Their runs that end in NaN are left out of the mean; here they are no better than wrong.
- Their blanks of selective copying come from an unseeded source; here all comes from `seed`.
- Their row may be all noise, or may ask at its end for a fuzzy key that never came; not so here.
- Their compression never hides its noise from the targets. The 66 settings have none, nor has it here.
- Their macro accuracy is averaged over batches; here it is over all rows at once.
- A fixed state is to be compared at equal size: count what a memory holds (`state_bytes`).
- 66 settings with six runs each are 396 trainings; fewer of them are a protocol of another name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from titans_domains.language.suites.mad_other import Compression, Memorization, SelectiveCopying
from titans_domains.language.suites.mad_recall import FuzzyRecall, InContextRecall

MadProblem = InContextRecall | FuzzyRecall | SelectiveCopying | Compression | Memorization


class Setting(NamedTuple):
    problem: MadProblem
    length: int


BASELINES: dict[str, Setting] = {
    "in-context recall": Setting(InContextRecall(), 128),
    "fuzzy recall": Setting(FuzzyRecall(), 128),
    "noisy recall": Setting(InContextRecall(vocab_size=32, noise_vocab_size=16, noise=0.2), 128),
    "selective copying": Setting(SelectiveCopying(), 256),
    "compression": Setting(Compression(), 32),
    "memorization": Setting(Memorization(), 32),
}

_FEWER = (6400, 3200, 1600, 800)

CHANGES: dict[str, dict[str, tuple[Any, ...]]] = {
    "in-context recall": {
        "vocab_size": (32, 64, 128), "length": (256, 512, 1024), "train_rows": _FEWER,
    },
    "fuzzy recall": {
        "vocab_size": (32, 64, 128), "length": (256, 512, 1024), "train_rows": _FEWER,
    },
    "noisy recall": {
        "vocab_size": (48, 80, 144), "length": (256, 512, 1024), "train_rows": _FEWER,
        "noise": (0.4, 0.6, 0.8),
    },
    "selective copying": {
        "vocab_size": (32, 64, 128), "length": (512, 1024), "train_rows": _FEWER,
        "copied": (32, 64, 96),
    },
    "compression": {
        "vocab_size": (32, 64, 128), "length": (64, 128, 256), "train_rows": _FEWER,
    },
    "memorization": {"vocab_size": (512, 1024, 2048, 4096, 8192)},
}  # fmt: skip


def settings_of(task: str, seed: int = 0) -> Mapping[str, Setting]:
    """The baseline of a task and each single change of it, by names like `length=256`."""
    if task not in BASELINES:
        raise ValueError(f"task must be one of {', '.join(BASELINES)}: got {task!r}.")
    problem, length = BASELINES[task]
    problem = replace(problem, seed=seed)
    found = {"baseline": Setting(problem, length)}
    for name, values in CHANGES[task].items():
        for value in values:
            if name == "length":
                changed = Setting(problem, value)
            else:
                changed = Setting(replace(problem, **{name: value}), length)
            found[f"{name}={value}"] = changed
    return found
