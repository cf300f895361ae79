"""Multi-query associative recall: rows as the docstring draws them."""

from collections.abc import Iterator

import pytest
import torch

from titans_domains.language.suites.mqar import Mqar
from titans_domains.language.suites.problem import IGNORED, Examples


def rows(examples: Examples) -> Iterator[tuple[list[int], list[int]]]:
    return zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True)


@pytest.mark.parametrize(("length", "pairs", "vocab"), [(9, 2, 6), (64, 4, 512), (64, 16, 64)])
def test_rows_are_as_drawn_in_the_docstring(length: int, pairs: int, vocab: int) -> None:
    examples = Mqar(pairs=pairs, vocab_size=vocab).draw(20, length, "train")
    assert examples.inputs.shape == examples.targets.shape == (20, length)
    assert examples.inputs.dtype == examples.targets.dtype == torch.int64
    for x, y in rows(examples):
        keys, values = x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(0 < key < vocab // 2 for key in keys)
        assert all(vocab // 2 <= value < vocab for value in values)
        assert set(y[: 2 * pairs]) == {IGNORED}
        asked = {t: token for t, token in enumerate(x) if t >= 2 * pairs and token}
        # Each key once, every second token, and its target is its value at that place.
        assert sorted(asked.values()) == sorted(keys)
        assert all(t % 2 == 0 for t in asked)
        answers = dict(zip(keys, values, strict=True))
        assert {t: answers[key] for t, key in asked.items()} == {
            t: target for t, target in enumerate(y) if target != IGNORED
        }


def test_queries_stand_anywhere_and_rather_early() -> None:
    inputs = Mqar(vocab_size=64).draw(500, 64, "train").inputs
    places = [t for x in inputs.tolist() for t in range(8, 64) if x[t]]
    assert min(places) == 8
    assert max(places) > 50
    assert sum(t < 20 for t in places) > len(places) / 2


@pytest.mark.parametrize(
    ("length", "pairs", "vocab", "sentence"),
    [
        (15, 4, 32, "at least 16 tokens for 4 pairs: got 15"),
        (64, 0, 32, "length must leave room for pairs"),
        (64, 4, 9, "vocab_size must be at least 10: got 9"),
    ],
)
def test_what_has_no_room_is_refused(length: int, pairs: int, vocab: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Mqar(pairs=pairs, vocab_size=vocab).draw(1, length, "train")
    Mqar(vocab_size=10).draw(1, 16, "train")
