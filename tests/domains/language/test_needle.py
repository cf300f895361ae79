"""Needles as rows of bytes: what stands in them, and that teacher forcing asks what generation does."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_language import tiny_model
from torch import Tensor, nn

from titans_core import BackboneConfig
from titans_domains.language.generate import generate
from titans_domains.language.suites.greedy import answer_by_segments, greedy, segments
from titans_domains.language.suites.problem import IGNORED, Examples, Split, Tally, answer
from titans_domains.language.suites.ruler import Needle
from titans_domains.language.suites.task import SuiteConfig, SuiteTask
from titans_domains.language.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
VALUES = {
    "pk": r"[1-9]\d{6}",
    "n": r"[1-9]\d{6}",
    "w": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "w-words": r"[a-z]{6}-[a-z]{6}",
}


@pytest.fixture(scope="module")
def essay(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("essay") / "essay.txt"
    path.write_text(" ".join(f"Sentence {n} is né here." for n in range(400)))
    return str(path)


def texts(examples: Examples) -> list[tuple[str, list[str]]]:
    """Each row's text with its last answer byte, and the answers asked for in it."""
    found = []
    for inputs, targets in zip(examples.inputs, examples.targets, strict=True):
        asked = targets != IGNORED
        assert inputs[0] == BYTES.end
        # The target of a place is the next input, where there is one.
        assert torch.equal(targets[:-1][asked[:-1]], inputs[1:][asked[:-1]])
        assert asked[-1]
        text = bytes([*inputs[1:].tolist(), int(targets[-1])])
        runs = re.findall("1+", "".join(map(str, asked.int().tolist())))
        given = bytes(targets[asked].tolist()).decode()
        size = len(given) // len(runs)
        assert {len(run) for run in runs} == {size}
        answers = [given[n * size : (n + 1) * size] for n in range(len(runs))]
        found.append((text.decode(errors="ignore"), answers))
    return found


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("template", ["ruler", "short"])
@pytest.mark.parametrize(("split", "queries"), [("train", 3), ("valid", 1), ("test", 1)])
def test_a_row_asks_for_what_is_hidden_in_it(
    kind: Any, template: Any, split: Split, queries: int, essay: str
) -> None:
    letters = 3 if template == "short" else None
    problem = Needle(kind=kind, template=template, queries=3, key_letters=letters, text=essay)
    examples = problem.draw(4, 1500, split)
    assert examples.inputs.shape == examples.targets.shape == (4, 1500)
    assert examples.mask is None
    for text, answers in texts(examples):
        assert len(answers) == queries
        form = r"One of the special magic \w+ for (\S+) is: (\S+)\." if letters is None else (
            rf"\b([a-z]{{3}}) is ({VALUES[kind]})\.[ \n]"
        )  # fmt: skip
        hidden = dict(re.findall(form, text))
        assert len(hidden) == queries
        asked = r"for (\S+) mentioned in the provided text is( \S+)" if letters is None else (
            r"\n([a-z]{3}) is( [^\s.]+)(?![^\s])"
        )  # fmt: skip
        found = re.findall(asked, text)[-queries:]
        assert [given for _, given in found] == answers
        assert {key: given[1:] for key, given in found} == hidden
        for given in answers:
            assert re.fullmatch(" " + VALUES[kind], given)
            assert text.count(given) == 2
        assert text.endswith(answers[-1])
        assert ("The grass is green." in text) == (kind == "pk")


def test_a_needle_may_be_asked_for_more_than_once_in_training(essay: str) -> None:
    problem = Needle(queries=2, asked=3, template="short", key_letters=4, text=essay)
    for text, answers in texts(problem.draw(4, 700, "train")):
        hidden = dict(re.findall(r"\b([a-z]{4}) is (\d{7})\.", text))
        found = re.findall(r"\n([a-z]{4}) is( \d{7})(?![\d.])", text)
        assert [given for _, given in found] == answers
        assert sorted(key for key, _ in found) == sorted([*hidden] * 3)
        # Each round asks for all of them.
        assert all({key for key, _ in found[n : n + 2]} == set(hidden) for n in (0, 2, 4))
        assert all(hidden[key] == given[1:] for key, given in found)
    assert all(len(answers) == 1 for _, answers in texts(problem.draw(4, 700, "test")))


def test_a_row_in_full() -> None:
    (text, answers), = texts(Needle(seed=3).draw(1, 500, "test"))  # fmt: skip
    key = re.findall(r"for (\S+) is: ", text)[0]
    noise = (
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    )
    about = f"special magic number for {key} mentioned in the provided text"
    assert text == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will "
        "quiz you about the number afterwards.\n"
        f"{noise}\nOne of the special magic numbers for {key} is:{answers[0]}.\n{noise[:47]}\n"
        f"What is the {about}? The {about} is{answers[0]}"
    )


@pytest.mark.parametrize("kind", ["pk", "n"])
def test_needles_lie_at_all_depths(kind: Any, essay: str) -> None:
    problem = Needle(kind=kind, template="short", key_letters=3, text=essay)
    depths = [
        re.search(r"[a-z]{3} is \d{7}\.", text)
        for text, _ in texts(problem.draw(200, 2048, "test"))
    ]
    places = torch.tensor([where.start() / 2020 for where in depths if where])
    assert len(places) == 200
    assert places.min() < 0.02
    assert places.max() > 0.93
    assert torch.histogram(places, 4, range=(0.0, 1.0))[0].min() > 25


def test_splits_batches_and_seeds_are_apart(essay: str) -> None:
    problem = Needle(kind="n", text=essay)
    seen = [
        (problem if seed == 0 else Needle(kind="n", text=essay, seed=seed)).draw(2, 700, split, number)
        for split in ("train", "valid", "test")
        for number in (0, 1)
        for seed in (0, 1)
    ]  # fmt: skip
    answers = [given for examples in seen for _, given in texts(examples)]
    assert len({*map(tuple, answers)}) == len(answers) == 24
    again = Needle(kind="n", text=essay).draw(2, 700, "valid", 1)
    assert torch.equal(again.inputs, seen[6].inputs)
    # The text of a test is not what was trained on.
    hay = [{*re.findall(r"Sentence \d+ ", text)} for part in (seen[:4], seen[8:]) for e in part
           for text, _ in texts(e)]  # fmt: skip
    trained, tested = set().union(*hay[:8]), set().union(*hay[8:])
    assert trained
    assert tested
    assert not trained & tested


class Known(nn.Module):
    """Goes on as one row does, but for one place; its state is what it has read."""

    def __init__(self, row: list[int], wrong: int | None) -> None:
        super().__init__()
        self.row, self.wrong = row, wrong
        self.embedding = nn.Embedding(1, 1)
        self.backbone = SimpleNamespace(fresh_state=self.fresh_state)

    def fresh_state(self, rows: int) -> Tensor:
        return torch.zeros(rows, 0, dtype=torch.int64)

    def forward(self, tokens: Tensor, state: Any = None, *, mask: Any = None) -> tuple[Tensor, Any]:
        read = torch.cat([self.fresh_state(1) if state is None else state, tokens], 1)
        logits = torch.zeros(1, tokens.shape[1], BYTES.vocab_size)
        for t in range(tokens.shape[1]):
            upto = read.shape[1] - tokens.shape[1] + t + 1
            if read[0, :upto].tolist() == self.row[:upto] and upto < len(self.row):
                logits[0, t, self.row[upto] if upto != self.wrong else 1] = 1
        return logits, read


@pytest.mark.parametrize("wrong", [None, 1, 4, 8])
def test_teacher_forcing_asks_what_greedy_generation_must_say(wrong: int | None) -> None:
    examples = Needle(template="short", key_letters=3).draw(1, 200, "test")
    row = [*examples.inputs[0].tolist(), int(examples.targets[0, -1])]
    model: Any = Known(row, None if wrong is None else len(row) - wrong)
    tally = Tally()
    tally.add(examples.targets, answer(model, examples, piece=64))
    assert tally.figures()["exact"] == (wrong is None)
    prompt, wanted = bytes(row[1:-8]), bytes(row[-8:])
    made = b"".join(generate(model, BYTES, prompt, max_tokens=8, temperature=0))
    assert (made == wanted) == (wrong is None)


@pytest.mark.parametrize(
    ("problem", "chance"),
    [
        (Needle(digits=2), (1 + 1 / 9 + 1 / 10) / 3),
        (Needle(kind="w"), (6 + 1 / 4 + 30 / 16) / 37),
        # Letters are not all alike in lists of so few adjectives and nouns.
        (Needle(kind="w-words"), 0.2989),
    ],
)
def test_the_chance_is_that_of_the_best_constant_answer(problem: Needle, chance: float) -> None:
    assert problem.chance == pytest.approx(chance, abs=1e-3)
    # The likeliest letter at each place in half of the rows, asked in the other half.
    rows = [given[0] for _, given in texts(problem.draw(2000, 640, "train"))]
    share = [
        letters[1000:].count(max(set(letters), key=letters[:1000].count)) / 1000
        for letters in zip(*rows, strict=True)
    ]
    assert sum(share) / len(share) == pytest.approx(chance, abs=0.012)


def test_a_model_is_trained_and_asked_by_the_shared_task() -> None:
    config = BackboneConfig(dim=16, num_layers=1)
    problem = Needle(template="short", key_letters=2, digits=1, queries=2)
    suite = SuiteConfig(lengths=(128, 160), batch_tokens=320, valid_rows=2)
    task = SuiteTask(config, problem, suite, torch.device("cpu"))
    batch, _ = next(task.batches(None))
    step = task.step(batch, ())
    assert torch.isfinite(step.loss)
    assert task.scores(160, 2).keys() == {"accuracy", "macro", "exact"}


@torch.no_grad()
def test_reset_reads_each_segment_with_a_fresh_memory() -> None:
    model = tiny_model().double()
    for name, weight in model.named_parameters():
        # So that what the memory holds decides what is likeliest.
        weight.mul_(30 if name.endswith("mixer.out.weight") else 1)
    text = "The memory reads what it did not expect. " * 3
    ids = torch.tensor([[BYTES.end, *text.encode()]])
    parts = segments(ids, 50)
    assert [part.shape[1] for part in parts] == [24, 50, 50]
    state = model.backbone.fresh_state(1)
    for part in parts:
        state = model.backbone.restart_memory(state)
        logits, state = model(part, state)
    made = []
    for _ in range(20):
        made.append(int(logits[0, -1].argmax()))
        logits, state = model(torch.tensor([made[-1:]]), state)
    wanted = bytes(x for x in made if x < 256).decode(errors="replace")
    assert greedy(model, BYTES, text, 20, mode="reset", segment=50) == wanted
    carried = b"".join(generate(model, BYTES, text.encode(), max_tokens=20, temperature=0))
    assert greedy(model, BYTES, text, 20) == carried.decode(errors="replace") != wanted


@torch.no_grad()
def test_answers_by_segments_forget_and_whole_ones_do_not() -> None:
    model = tiny_model(num_layers=1).double()
    rows = torch.randint(256, (2, 100))
    other = rows.clone()
    other[:, :30] = torch.randint(256, (2, 30))
    given, changed = (Examples(x, torch.full_like(x, IGNORED)) for x in (rows, other))
    late = answer_by_segments(model, given, 40)
    # The first segment has 20 tokens, the convolutions reach a few tokens beyond it and the next.
    assert torch.equal(late[:, 70:], answer_by_segments(model, changed, 40)[:, 70:])
    whole = answer_by_segments(model, given, 100)
    assert torch.equal(whole, answer(model, given))
    logits = [model(x)[0][:, 70:] for x in (rows, other)]
    assert not torch.equal(*logits)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "s"}, "kind must be one of pk, n, w, w-words: got 's'"),
        ({"template": "long"}, "template must be ruler or short: got 'long'"),
        ({"haystack": "hay"}, "haystack must be noise, essay or None: got 'hay'"),
        ({"queries": 0}, "queries must be from 1 to 100: got 0"),
        ({"digits": 1, "queries": 10}, "digits must give each of 10 queries a number of its own"),
        ({"key_letters": 1}, "key_letters must be from 2 to 26: got 1"),
    ],
)
def test_settings_that_make_no_rows_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Needle(**settings)


def test_what_has_no_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"length must leave room .* 1 needles.* got 300"):
        Needle().draw(1, 300, "test")
    with pytest.raises(ValueError, match=r"room for sentences between 3 needles.* got 200"):
        Needle(template="short", queries=3).draw(1, 200, "train")
    with pytest.raises(ValueError, match="mode must be one of carried, reset: got 'frozen'"):
        greedy(tiny_model(), BYTES, "x", 1, mode="frozen")
    with pytest.raises(ValueError, match="segment must be at least 1 token: got 0"):
        greedy(tiny_model(), BYTES, "x", 1, mode="reset", segment=0)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty.txt is empty"):
        Needle(kind="n", text=str(tmp_path / "empty.txt")).draw(1, 900, "test")
