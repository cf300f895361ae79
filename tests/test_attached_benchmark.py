"""What `benchmarks/attached.py` asks can be known from the windows before the last, and only from them."""

from types import ModuleType

import pytest
import torch
from test_benchmarks import benchmark

from titans_domains.language.suites.babilong.worlds import PEOPLE, ROOMS
from titans_domains.language.suites.problem import IGNORED


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("attached", monkeypatch)


@pytest.mark.parametrize(("windows", "one"), [(1, False), (1, True), (2, False), (4, True)])
def test_the_room_asked_for_is_the_last_that_was_told(
    attached: ModuleType, windows: int, one: bool
) -> None:
    rows, size = attached.Rows(), attached.WINDOW
    facts, asks = (attached.FACTS, size - attached.FACTS)
    if windows > 1:
        facts, asks = (windows - 1) * size, size
    inputs, targets = rows.draw(20, facts, asks, "test", 0, one=one)
    assert inputs.shape == targets.shape == (20, windows * size)
    words = {n: word for word, n in rows.problem.table.items()}
    for row, asked in zip(inputs.tolist(), targets.tolist(), strict=True):
        text = [words.get(n, "") for n in row]
        told = {}
        for at, word in enumerate(text[:facts]):
            if word in PEOPLE:
                told[word] = next(room for room in text[at:] if room in ROOMS)
        answers = {at: words[n] for at, n in enumerate(asked) if n != IGNORED}
        assert answers
        assert all(at >= facts and text[at] == "?" for at in answers)
        assert answers == {at: told[text[at - 1]] for at in answers}
        if one:
            assert list(answers) == [len(row) - 1]
            assert not any(word in ROOMS for word in text[facts:])
        else:
            assert all(text[at + 1] == room for at, room in answers.items())


def test_a_text_is_the_same_whenever_it_is_drawn(attached: ModuleType) -> None:
    first, again = (attached.Rows().draw(3, 32, 32, "train", 5)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, attached.Rows().draw(3, 32, 32, "train", 6)[0])
