"""bAbI's worlds and files: questions that a reader of the story can answer, splits that stay apart."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from babi_reader import LINES, Reader

from titans_domains.language.suites.babilong import LABELS, Story, samples, story
from titans_domains.language.suites.babilong.files import babi_stories, read_stories


def stories(task: str, count: int = 300) -> list[Story]:
    random = np.random.default_rng(0)
    return [story(task, random) for _ in range(count)]


@pytest.mark.parametrize("task", LABELS)
def test_a_reader_of_the_story_finds_the_answer(task: str) -> None:
    found = stories(task)
    for facts, question, answer in found:
        assert Reader(facts).answer(question) == answer
        assert answer in LABELS[task]
        assert answer not in question
    counts = Counter(x.answer for x in stories(task, 2000))
    expected = 2000 / len(LABELS[task])
    assert counts.keys() == set(LABELS[task])
    # Chi squared with 5 or 6 degrees of freedom: one in a thousand is above 23.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 23


def test_stories_are_as_the_generator_tells_them() -> None:
    assert {len(x.facts) for x in stories("qa1")} == {2, 4, 6, 8, 10}
    assert {len(x.facts) for x in stories("qa4")} == {2}
    assert min(len(x.facts) for x in stories("qa2")) == 3
    forms = Counter(re.sub(r"\b[A-Z]\w+ (?=give)|(?<=the )\w+|(?<=to )[A-Z]\w+", "_", x.question)
                    for x in stories("qa5", 1000))  # fmt: skip
    assert len(forms) == 5
    # What was given last is asked for within five sentences.
    for facts, _, _ in stories("qa5"):
        assert any(re.fullmatch(r"\w+ \w+ the \w+ to [A-Z]\w+\.", fact) for fact in facts[-6:])


@pytest.mark.parametrize(
    ("task", "seed", "facts", "question", "answer"),
    [
        (
            "qa1", 11, "John journeyed to the bathroom. Sandra went to the garden.",
            "Where is Sandra?", "garden",
        ),
        (
            "qa2", 30, "Daniel went back to the bathroom. Mary went back to the bathroom. "
            "Mary picked up the apple there.", "Where is the apple?", "bathroom",
        ),
        (
            "qa3", 49, "Mary went to the garden. Mary grabbed the apple there. Daniel went to the "
            "kitchen. John travelled to the garden. Mary went back to the bathroom.",
            "Where was the apple before the bathroom?", "garden",
        ),
        (
            "qa4", 0, "The garden is south of the bedroom. The bedroom is south of the kitchen.",
            "What is south of the bedroom?", "garden",
        ),
        (
            "qa5", 47, "Mary took the apple there. Bill journeyed to the garden. Mary travelled to the "
            "kitchen. Mary passed the apple to Jeff.", "Who gave the apple to Jeff?", "Mary",
        ),
    ],
)  # fmt: skip
def test_a_story_word_for_word(
    task: str, seed: int, facts: str, question: str, answer: str
) -> None:
    told = story(task, np.random.default_rng(seed))
    assert (" ".join(told.facts), told.question, told.answer) == (facts, question, answer)


REAL = {"qa1": 1000, "qa2": 1000, "qa3": 1000, "qa4": 1000, "qa5": 998}
"""Of a thousand each; two of the fifth's ask for a gift before the last, which no reader can know."""


@pytest.mark.parametrize("task", REAL)
def test_the_reader_answers_babis_own_questions(task: str) -> None:
    folder = Path(os.environ.get("TITANS_DATA", "no folder"), "language", "babi")
    if not folder.exists():
        pytest.skip("TITANS_DATA names no folder with language/babi")
    found = babi_stories(folder, task, "test")
    right = sum(Reader(x.facts).answer(x.question) == x.answer for x in found)
    assert (len(found), right) == (1000, REAL[task])


def test_files_give_one_sample_for_each_question(tmp_path: Path) -> None:
    path = tmp_path / "qa1_single_test.txt"
    path.write_text(LINES)
    first, second = "Mary moved to the bathroom.", "John went to the hallway."
    assert read_stories(path) == [
        Story((first, second), "Where is Mary?", "bathroom"),
        Story((first, second, "Mary went back to the office."), "Where is Mary?", "office"),
        Story(("Sandra moved to the garden.",), "Where is Sandra?", "garden"),
    ]


def test_tests_come_from_the_test_file_alone(tmp_path: Path) -> None:
    for kind, room in (("train", "kitchen"), ("test", "garden")):
        lines = [f"1 Mary moved to the {room}.\n2 Where is Mary?\t{room}\t1\n"] * 20
        (tmp_path / f"qa1_x_{kind}.txt").write_text("".join(lines))
    answers = {
        split: [x.answer for x in babi_stories(tmp_path, "qa1", split)]
        for split in ("train", "valid", "test")
    }
    assert answers == {"train": ["kitchen"] * 18, "valid": ["kitchen"] * 2, "test": ["garden"] * 20}
    assert {x.answer for x in samples("qa1", 0, 5, babi=str(tmp_path))} == {"garden"}


def test_files_that_are_not_babis_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold one file qa2_\*_train.txt .* it has 0"):
        babi_stories(tmp_path, "qa2", "valid")
    path = tmp_path / "qa1_x_test.txt"
    for text, sentence in (
        ("Mary moved.", "line 1 must be a number and a sentence: got 'Mary moved.'"),
        ("1 Mary moved.", "must hold stories with questions: it has none"),
        ("1 Where?\tattic\t1", "must answer with bathroom, .*: got 'attic'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            babi_stories(tmp_path, "qa1", "test")
