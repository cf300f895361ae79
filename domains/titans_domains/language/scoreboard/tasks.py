"""The tasks of the scoreboard: what each is trained on, where it is asked, and which figure counts."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from titans_domains.language.suites.babilong import Babi
from titans_domains.language.suites.mad import BASELINES
from titans_domains.language.suites.mqar import Mqar
from titans_domains.language.suites.problem import Problem
from titans_domains.language.suites.ruler import Needle
from titans_domains.language.suites.state_tracking import GroupWords, ModularArithmetic, Parity


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    problem: Callable[[], Problem] | None  # None: language modelling of a text
    lengths: tuple[int, ...]  # trained on, ascending; see SuiteTask
    tests: tuple[int, ...] = ()  # asked at
    figure: str = "accuracy"
    steps: int = 600
    batch_tokens: int = 4096
    train: dict[str, Any] = field(default_factory=dict)  # more settings of training
    test_rows: int = 256
    test_tokens: int = 2**18  # of all test rows of one length: long ones are fewer
    fewest_rows: int = 16
    test_batch_tokens: int = 2**15  # read at once
    retrievable: bool = True  # whether EM-LLM, which reads streams, can be asked
    about: str = ""

    @property
    def trained_length(self) -> int:
        return self.lengths[-1]

    @property
    def less_is_better(self) -> bool:
        return self.problem is None

    def described(self) -> dict[str, Any]:
        """What a cell's figures depend on, without code."""
        values = dataclasses.asdict(self)
        del values["about"]
        return values | {"problem": None if self.problem is None else repr(self.problem())}


RECALL: dict[str, TaskSpec] = {
    f"mqar-{length}-{pairs}": TaskSpec(
        problem=lambda pairs=pairs: Mqar(pairs=pairs, vocab_size=512),
        lengths=(length,), tests=(length, 4 * length), steps=steps,
        about=f"Multi-query recall, {pairs} pairs, 512 tokens in the vocabulary. Without any of the pairs, "
        f"giving one of a row's values is right in 1 of {pairs}.",
    )
    for length, pairs, steps in ((64, 4, 500), (128, 8, 500), (256, 16, 600))
}  # fmt: skip
RECALL |= {
    f"mad-{name.replace(' ', '-')}": TaskSpec(
        problem=lambda setting=setting: setting.problem,
        lengths=(setting.length,), tests=(setting.length,), steps=300,
        retrievable=name != "compression",
        about="MAD's baseline setting in a reduced protocol: so many steps instead of 200 epochs, one "
        "weight decay, and no choice by test rows.",
    )
    for name, setting in BASELINES.items()
}  # fmt: skip

LONG_CONTEXT: dict[str, TaskSpec] = {
    f"niah-{kind}": TaskSpec(
        problem=lambda kind=kind, asked=asked: Needle(
            kind=kind, template="short", key_letters=4, queries=2, asked=asked
        ),
        # In short rows, nearly all of them answers, a model learns to copy at all.
        lengths=(shortest, 1024, 2048), tests=(2048, 4096, 8192, 16384, 32768), figure="exact",
        steps=1000, test_rows=64, test_tokens=2**20,
        about=f"{about}, in bytes: a line 'abcd is VALUE.', asked for by 'abcd is'. A row to train on "
        f"has two needles and asks {asked} times for each, a row to test on one and asks once. A cell counts "
        "where the whole answer is right.",
    )
    for kind, asked, shortest, about in (
        ("pk", 8, 384, "A number hidden in noise (S-NIAH-PK)"),
        ("n", 8, 384, "A number hidden in text (S-NIAH-N)"),
        ("w", 3, 512, "A UUID hidden in text (S-NIAH-W)"),
    )
}  # fmt: skip

LONG_CONTEXT |= {
    f"babi-{task}": TaskSpec(
        problem=lambda task=task: Babi(task=task), lengths=(256, 512), tests=(512, 2048, 8192, 32768),
        steps=600, test_rows=128, test_tokens=2**20,
        about=f"bAbI's {task} among sentences of text, by words; the answer is one of a few labels.",
    )
    for task in ("qa1", "qa2", "qa3")
}  # fmt: skip

SIZES_OF_ROWS = "rows of 3 to 40 tokens, tests of 40 up to the length named."

STATE: dict[str, TaskSpec] = {
    "parity": TaskSpec(
        problem=Parity, lengths=(40,), tests=(40, 64, 128, 256), test_rows=1024, steps=400,
        about=f"Whether the ones are odd in number; {SIZES_OF_ROWS}",
    ),
    "modular-arithmetic": TaskSpec(
        problem=ModularArithmetic, lengths=(40,), tests=(40, 64, 128, 256), test_rows=1024,
        about=f"Expressions modulo 5 without brackets; {SIZES_OF_ROWS}",
    ),
    **{
        f"words-{name}": TaskSpec(
            problem=lambda name=name: GroupWords(group=name), lengths=(32,), tests=(32, 64, 128),
            about=f"Running products in the group {name}.",
        )
        for name in ("A5", "S5", "Z60")
    },
}  # fmt: skip

LANGUAGE: dict[str, TaskSpec] = {
    "text": TaskSpec(
        problem=None, lengths=(256,), figure="bits_per_byte", steps=300, retrievable=False,
        about="Bytes of a text, read with the memory carried, or by windows where a state grows.",
    ),
}  # fmt: skip

BENCHES: dict[str, dict[str, TaskSpec]] = {
    "recall": RECALL, "longcontext": LONG_CONTEXT, "state": STATE, "language": LANGUAGE,
}  # fmt: skip
"""What one command runs."""

ONCE = "mqar-64-4"
"""The task on which learning rates are chosen for all benches."""

TASKS = {name: spec for bench in BENCHES.values() for name, spec in bench.items()}
