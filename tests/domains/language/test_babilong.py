"""BABILong: facts in order among long text, prompts that fit, strict and loose scores, rows to train on."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from babi_reader import LINES, PEOPLE, Reader
from tiny_language import tiny_model

from titans_domains.language.suites.babilong import (
    LABELS,
    PROMPTS,
    Babi,
    Prompt,
    Sample,
    contains,
    evaluate,
    evaluate_babilong,
    exact_label,
    samples,
)
from titans_domains.language.suites.haystack import sentences
from titans_domains.language.suites.problem import IGNORED
from titans_domains.language.tokenizers import ByteTokenizer

BOOK = " ".join(
    f"Sentence {n} of the book has more than ten words, says page {n}." for n in range(400)
)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("books") / "book.txt"
    path.write_text(BOOK)
    return str(path)


def test_a_prompt_in_full(tmp_path: Path, books: str) -> None:
    (tmp_path / "qa1_x_test.txt").write_text(LINES.split("4 Mary")[0])
    prompt = Prompt("Read.", "<example>\nX\n</example>", "Answer.")
    frame = (
        "Read.\n\n<example>\nX\n</example>\n\nAnswer.\n\n<context>\n{}\n</context>\n\n"
        "Question: Where is Mary?"
    )
    settings: dict[str, Any] = {"babi": str(tmp_path), "books": books, "prompt": prompt}
    (bare,) = samples("qa1", 0, 1, **settings)
    facts = ["Mary moved to the bathroom.", "John went to the hallway."]
    assert bare == Sample(frame.format(" ".join(facts)), "Where is Mary?", "bathroom", 20)
    (sample,) = samples("qa1", 400, 1, 1, **settings)
    pages = [
        f"Sentence {n} of the book has more than ten words, says page {n}." for n in (177, 178, 179)
    ]
    context = " ".join([facts[0], *pages, facts[1]])
    assert sample.prompt == frame.format(context)


@pytest.mark.parametrize("task", LABELS)
def test_prompts_fit_and_another_sentence_would_not(task: str, books: str) -> None:
    found = list(samples(task, 4096, 8, books=books))
    assert len({x.prompt for x in found}) == 8
    longest = max(len(sentence) for sentence in sentences(BOOK)) + 1
    for sample in found:
        assert 4096 - longest < len(sample.prompt) + 20 <= 4096
        context = sample.prompt.split("<context>\n")[1].split("\n</context>")[0]
        parts = sentences(context)
        facts = [x for x in parts if not x.startswith("Sentence")]
        # The facts are there in their order, and the background in its own.
        assert Reader(tuple(facts)).answer(sample.question) == sample.answer
        pages = [int(x.split()[1]) for x in parts if x.startswith("Sentence")]
        assert [(page - pages[0]) % 400 for page in pages] == list(range(len(pages)))
        assert sample.prompt.startswith(PROMPTS[task].instruction)
        assert sample.prompt.endswith(f"\n\nQuestion: {sample.question}")


def test_facts_lie_anywhere_and_repeat_by_seed(books: str) -> None:
    depths = []
    for sample in samples("qa4", 4096, 100, books=books):
        context = sample.prompt.split("<context>\n")[1].split("\n</context>")[0]
        depths += [x.start() / len(context) for x in re.finditer("The [a-z]+ is ", context)]
    assert len(depths) == 200
    assert torch.histogram(torch.tensor(depths), 4, range=(0.0, 1.0))[0].min() > 25
    first = list(samples("qa2", 3000, 3, 7, books=books))
    assert list(samples("qa2", 3000, 5, 7, books=books))[:3] == first
    assert not set(first) & set(samples("qa2", 3000, 3, 8, books=books))


@pytest.mark.parametrize(
    ("prediction", "exact", "loose"),
    [
        ("The most recent location of Mary is Kitchen. Then the garden.", True, True),
        ("kitchen", True, True),
        ("kitchen or garden", False, True),
        ("garden. kitchen", False, False),
        ("<example> kitchen", False, False),
        ("kitchen<context> garden", True, True),
        ("office kitchen", True, True),
        ("", False, False),
    ],
)
def test_the_strict_score_allows_one_label_and_those_of_the_question(
    prediction: str, exact: bool, loose: bool
) -> None:
    question = "Where was the apple before the office?"
    assert exact_label(prediction, question, "kitchen", "qa3") == exact
    assert contains(prediction, "kitchen") == loose


def test_figures_of_both_scores(monkeypatch: pytest.MonkeyPatch, books: str) -> None:
    asked: list[dict[str, Any]] = []

    def reader(model: Any, tokenizer: Any, prompt: str, most: int, **settings: Any) -> str:
        asked.append(settings)
        context = prompt.split("<context>\n")[1].split("\n</context>")[0]
        facts = [x for x in sentences(context) if not x.startswith("Sentence")]
        answer = Reader(tuple(facts)).answer(prompt.split("Question: ")[-1])
        return [f"It is {answer}.", f"{answer}, garden, office, kitchen", "so", f"{answer}"][
            len(asked) % 4
        ]

    monkeypatch.setattr(evaluate, "greedy", reader)
    figures = evaluate_babilong(
        tiny_model(), ByteTokenizer(), "qa1", 2500, "reset", count=8, segment=64, books=books
    )
    assert figures == {
        "task": "qa1", "length": 2500, "unit": "bytes", "mode": "reset", "samples": 8,
        "exact_label": 0.5, "contains": 0.75,
    }  # fmt: skip
    assert asked == [{"mode": "reset", "segment": 64}] * 8


@pytest.mark.parametrize("mode", ["carried", "reset"])
def test_a_model_is_asked_in_both_modes(mode: str, books: str) -> None:
    model = tiny_model(num_layers=1)
    figures = evaluate_babilong(
        model, ByteTokenizer(), "qa4", 0, mode, count=1, prompt=Prompt("A", "B", "C"), segment=32
    )
    assert (figures["mode"], figures["exact_label"]) == (mode, 0)


@pytest.mark.parametrize("tokens", ["bytes", "words"])
@pytest.mark.parametrize("task", LABELS)
def test_rows_end_in_a_question_and_ask_for_its_label(task: str, tokens: Any, books: str) -> None:
    problem = Babi(task=task, tokens=tokens, books=books)
    inputs, targets, mask = problem.draw(3, 3000, "train")
    assert inputs.shape == targets.shape == (3, 3000)
    assert mask is None
    assert (targets[:, :-1] == IGNORED).all()
    names = {problem.label(label): label for label in LABELS[task]}
    assert len(names) == len(LABELS[task])
    assert problem.chance == 1 / len(names)
    assert max(inputs.max(), *names) < problem.vocab_size
    words = {n: word for word, n in problem.table.items()}
    for row, target in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
        if tokens == "bytes":
            assert row[0] == 256
            text = bytes(row[1:]).decode()
        else:
            assert row[0] == 1
            text = re.sub(r" ([.?,])", r"\1", " ".join(words.get(n, "0") for n in row[1:]))
        question = re.findall(r"(?:Where|What|Who)[^.?]*\?", text)[-1]
        facts = re.findall(rf"(?:The [a-z]+|{PEOPLE}) [^.?]*\.", text)
        assert Reader(tuple(facts)).answer(question) == names[target]


def test_rows_repeat_and_splits_are_apart(books: str) -> None:
    problem = Babi(task="qa2", tokens="bytes", books=books)
    rows = {
        (split, number): problem.draw(2, 1500, split, number)
        for split in ("train", "valid", "test") for number in (0, 1)
    }  # fmt: skip
    again = Babi(task="qa2", tokens="bytes", books=books).draw(2, 1500, "test", 1)
    assert all(map(torch.equal, again[:2], rows["test", 1][:2]))
    assert len({bytes(x.inputs.numpy().tobytes()) for x in rows.values()}) == 6
    pages = {
        split: {
            page
            for number in (0, 1)
            for row in rows[split, number].inputs.tolist()
            for page in re.findall(r"Sentence (\d+) ", bytes(row[1:]).decode())
        }
        for split in ("train", "valid", "test")
    }
    assert max(map(int, pages["train"])) < 320 <= min(map(int, pages["valid"]))
    assert max(map(int, pages["valid"])) < 360 <= min(map(int, pages["test"]))


def test_what_cannot_be_made_is_refused(books: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task must be one of qa1, .*: got 'qa6'"):
        samples("qa6", 4096)
    with pytest.raises(ValueError, match="task must be one of qa1, .*: got 'qa6'"):
        Babi(task="qa6")
    with pytest.raises(ValueError, match=r"prompt of qa1, which takes \d+ bytes .*: got 500"):
        samples("qa1", 500)
    with pytest.raises(ValueError, match="length must hold a story and its question: none of 1000"):
        Babi(books=books).draw(1, 16, "test")
    with pytest.raises(ValueError, match="tokens must be bytes or words: got 'bpe'"):
        Babi(tokens="bpe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length must be 0 or more and count at least 1"):
        samples("qa1", 4096, 0)
    with pytest.raises(ValueError, match="words must be at least 1: got 0"):
        Babi(words=0)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty.txt is empty"):
        samples("qa1", 4096, books=str(tmp_path / "empty.txt"))
