"""RULER's prompts: to the letter, as long as they can be, solved by a reader of their text."""

import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from ruler_prompts import LITERAL, NOISE
from tiny_language import tiny_model

from titans_domains.language.suites.ruler import (
    PAPER_NAMES,
    TASKS,
    Sample,
    evaluate,
    evaluate_ruler,
    samples,
    score,
)
from titans_domains.language.suites.ruler.making import Essay, largest
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]


@pytest.fixture(scope="module")
def essay(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("essay") / "essay.txt"
    path.write_text(" ".join(f"Line {x} is\n here." for x in NUMBERS))
    return str(path)


@pytest.mark.parametrize("task", LITERAL)
def test_a_prompt_is_rulers_to_the_letter(task: str, essay: str) -> None:
    length, prompt, answers = LITERAL[task]
    assert next(samples(task, length, haystack=essay)) == Sample(prompt, answers, 128)


def test_variables_are_tracked_after_a_solved_example() -> None:
    def asked(value: str, lines: list[str]) -> str:
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
            + "\n".join(lines)
            + f"\nQuestion: Find all variables that are assigned the value {value} in the text above. "
            "Answer: According to the chain(s) of variable assignment in the text above, 5 variables "
            f"are assigned the value {value}, they are: "
        )

    example = ["VAR YWS = 88847", NOISE, "VAR JBN = VAR YWS ", NOISE, "VAR URT = VAR JBN ", NOISE]
    example += ["VAR AEQ = VAR URT ", NOISE, "VAR QYO = VAR AEQ ", NOISE]
    lines = ["VAR WNOIQ = 80269", NOISE, "VAR ERQUB = VAR WNOIQ ", NOISE, "VAR ENOAO = VAR ERQUB "]
    lines += [NOISE, "VAR FFBPC = VAR ENOAO ", *[NOISE] * 4, "VAR NERGP = VAR FFBPC ", NOISE]
    solved = asked("88847", example) + " YWS JBN URT AEQ QYO\n\n"
    answers = ("WNOIQ", "ERQUB", "ENOAO", "FFBPC", "NERGP")
    assert next(samples("vt", 2060)) == Sample(solved + asked("80269", lines), answers, 30)


LISTED = (
    r"Below is a numbered list of words. In these words, some appear more often than others. "
    r"Memorize the ones that appear most often.\n(.*)\n"
    r"Question: What are the 10 most common words in the above list\? "
    r"Answer: The top 10 words that appear most often in the list are:"
)


@pytest.mark.parametrize(
    ("length", "example", "main"), [(3000, (3, 1), (6, 1)), (9000, (10, 3), (30, 3))]
)
def test_common_words_are_repeated_as_rulers(
    length: int, example: tuple[int, int], main: tuple[int, int]
) -> None:
    sample = next(samples("cwe", length))
    found = re.fullmatch(f"{LISTED} (.*)\n{LISTED}", sample.prompt)
    assert found is not None
    assert sample.max_new_tokens == 120
    size = 20 if length < 4096 else 40
    for text, solved, (common, rare) in (
        (found[1], re.findall(r"\d+\. (\w+)", found[2]), example),
        (found[3], list(sample.answers), main),
    ):
        entries = [entry.split(". ") for entry in re.findall(r"\d+\. \w+", text)]
        assert [number for number, _ in entries] == [str(n + 1) for n in range(len(entries))]
        assert text == " ".join(". ".join(entry) for entry in entries)
        counts = Counter(word for _, word in entries)
        assert {word: counts.pop(word) for word in solved} == dict.fromkeys(solved, common)
        assert set(counts.values()) == {rare}
        assert len(solved) == 10
        if text == found[1]:
            assert len(counts) == size - 10


def test_frequent_words_follow_zipf() -> None:
    sample = next(samples("fwe", 4000))
    found = re.fullmatch(
        r"Read the following coded text and track the frequency of each coded word. Find the three "
        r"most frequently appeared coded words. (.*)\nQuestion: Do not provide any explanation. Please "
        r"ignore the dots '....'. What are the three most frequently appeared words in the above coded "
        r"text\? Answer: According to the coded text above, the three most frequently appeared words "
        r"are:",
        sample.prompt,
    )
    assert found is not None
    (dots, most), *ranked = Counter(found[1].split(" ")).most_common()
    assert dots == "..."
    assert tuple(word for word, _ in ranked[:3]) == sample.answers
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked)
    for rank, (_, count) in enumerate(ranked[:10], 2):
        assert abs(count - most / rank**2) < 1
    assert len(ranked) < 4000 // 50
    assert sample.max_new_tokens == 50


def solved(prompt: str) -> str:
    """The answer to a prompt by reading it, apart from how it was made."""
    if "VAR " in prompt:
        text = prompt.split("\n\n")[-1]
        value = re.search(r"assigned the value (\d+) in", text)
        assert value is not None
        names = re.findall(rf"VAR (\w+) = {value[1]}\n", text)
        while more := re.findall(rf"VAR (\w+) = VAR {names[-1]} ", text):
            names += more
        return " ".join(names)
    if "numbered list" in prompt:
        counts = Counter(re.findall(r"\d+\. (\w+)", prompt.split("Below")[-1]))
        return " ".join(word for word, _ in counts.most_common(10))
    if "coded text" in prompt:
        text = prompt.split("coded words. ")[1].split("\nQuestion")[0]
        return " ".join(word for word, _ in Counter(text.split()).most_common(4)[1:])
    asked = prompt.rsplit(" for ", 1)[1].split(" mentioned")[0]
    hidden = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", prompt)
    return " ".join(value for key, value in hidden if key in re.split(", and |, ", asked))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [3000, 8192])
def test_answers_stand_once_in_prompts_as_long_as_can_be(
    task: str, length: int, essay: str
) -> None:
    # What one more unit would take at most: a line, a word, an entry, and words of several ranks.
    unit = {"noise": 90, "vt": 90, "essay": 6, "needle": 120, "cwe": 45, "fwe": 45}
    kind = getattr(TASKS[task], "haystack", task)
    found = list(samples(task, length, 4, haystack=essay))
    assert len(found) == 4
    for prompt, answers, made in found:
        assert length - unit[kind] < len(prompt) + made <= length
        assert score(solved(prompt), answers) == 1
        assert len(set(answers)) == len(answers)
        if task.startswith("niah"):
            assert [prompt.count(answer) for answer in answers] == [1] * len(answers)
            keys = re.findall(r"for (\S+) is: ", prompt)
            values = re.findall(r" is: (\S+)\.", prompt)
            assert len(set(values)) == len(values)
            assert len(set(keys)) == (1 if task == "niah_multivalue" else len(keys))


def test_lengths_are_counted_by_the_tokenizer(essay: str) -> None:
    bpe = BPETokenizer.train([Path(essay).read_bytes() * 9, NOISE.encode() * 9], 300)
    for sample in samples("niah_single_1", 900, 3, tokenizer=bpe):
        size = len(bpe.encode(sample.prompt.encode())) + 128
        assert 900 - len(bpe.encode(f"{NOISE}\n".encode())) < size <= 900


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2"])
def test_needles_lie_at_all_depths(task: str, essay: str) -> None:
    depths = []
    for sample in samples(task, 4096, 200, haystack=essay):
        context = sample.prompt.split("afterwards.\n")[1].split("\nWhat is")[0]
        where = re.search("One of the special", context)
        assert where is not None
        depths.append(where.start() / (len(context) - 76))
    assert min(depths) < 0.02
    assert max(depths) > 0.95
    counts, _ = torch.histogram(torch.tensor(depths), 4, range=(0.0, 1.02))
    assert counts.min() > 25


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_repeats_and_another_differs(task: str, essay: str) -> None:
    first = list(samples(task, 3000, 3, 1, haystack=essay))
    assert list(islice(samples(task, 3000, 9, 1, haystack=essay), 3)) == first
    other = list(samples(task, 3000, 3, 2, haystack=essay))
    assert all(a.answers != b.answers for a, b in zip(first, other, strict=True))
    assert len({sample.answers for sample in first}) == 3


def test_every_size_is_found_from_every_guess() -> None:
    for most in range(3, 40):
        found = {largest(lambda size, most=most: size <= most, 3, guess) for guess in range(60)}
        assert found == {most}
    assert largest(lambda size: False, 3, 50) is None


def test_an_essay_goes_round() -> None:
    text = Essay(["One two.", "Three.", "Four five six."])
    assert text.first(2) == ["One two."]
    assert text.first(4) == ["One two.", "Three.", "Four"]
    assert text.first(6) == text.sentences
    assert text.first(15) == [*text.sentences * 2, "One two.", "Three."]


@pytest.mark.parametrize(
    ("prediction", "share"),
    [
        ("are 12 and 34.", 1.0),
        ("\x0012\x1f34", 1.0),
        ("the first is 12", 0.5),
        ("1 2 3 4", 0.0),
        ("", 0.0),
    ],
)
def test_the_score_is_the_share_of_references_named(prediction: str, share: float) -> None:
    assert score(prediction, ("12", "34")) == share
    assert score("KEYVUS-Dorlis", ("keyvus-dorlis",)) == 1


def test_figures_are_means_over_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def reader(model: Any, tokenizer: Any, prompt: str, most: int, **settings: Any) -> str:
        seen.append(settings | {"most": most})
        return solved(prompt) if len(seen) % 4 else "no idea"

    monkeypatch.setattr(evaluate, "greedy", reader)
    done: list[int] = []
    figures = evaluate_ruler(
        tiny_model(), ByteTokenizer(), "vt", 3000, 8, mode="reset", segment=64, progress=done.append
    )
    assert figures == {
        "task": "vt", "length": 3000, "unit": "bytes", "mode": "reset", "samples": 8, "score": 75.0,
    }  # fmt: skip
    assert seen == [{"mode": "reset", "segment": 64, "most": 30}] * 8
    assert sum(done) == 8


def test_a_model_is_asked_by_greedy_generation() -> None:
    figures = evaluate_ruler(tiny_model(), ByteTokenizer(), PAPER_NAMES["S-NIAH-PK"], 572, 1)
    assert figures["score"] == 0


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task must be one of niah_single_1, .*: got 'niah'"):
        samples("niah", 4096)
    with pytest.raises(ValueError, match=r"shortest prompt of niah_single_1 and its .*: got 512"):
        samples("niah_single_1", 512)
    with pytest.raises(ValueError, match=r"of cwe and its answer, \d+ bytes: got 4096"):
        samples("cwe", 4096)
    with pytest.raises(ValueError, match=r"count must be at least 1 sample: got 0"):
        samples("vt", 4096, 0)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"empty.txt is empty"):
        samples("niah_single_2", 4096, haystack=str(tmp_path / "empty.txt"))
    (tmp_path / "short.txt").write_text("Two sentences. No more.")
    with pytest.raises(ValueError, match=r"short.txt must hold at least 10 sentences .*: it has 2"):
        samples("niah_single_2", 4096, haystack=str(tmp_path / "short.txt"))
