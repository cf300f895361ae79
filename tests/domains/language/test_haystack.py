"""Sentences, the parts of a text, and pieces set in among its tokens."""

from pathlib import Path

import numpy as np
import pytest

from titans_domains.language.suites.haystack import (
    Haystack,
    part_of,
    read_sentences,
    sentences,
    weave,
)


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def test_a_sentence_ends_before_a_capital_or_a_digit() -> None:
    text = 'One  is\nhere. "Two?" (Three!) 4 is e.g. 3.5 of it... And a tail, v. small'
    assert sentences(text) == [
        "One is here.", '"Two?"', "(Three!)", "4 is e.g.", "3.5 of it...", "And a tail, v. small",
    ]  # fmt: skip
    assert sentences(" \n") == []
    assert " ".join(sentences(text)) == " ".join(text.split())


def test_short_sentences_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("Too short. This one is long enough. " * 12)
    assert read_sentences(str(path), 5) == ["This one is long enough."] * 12
    with pytest.raises(ValueError, match="at least 10 sentences of 6 or more words .* it has 0"):
        read_sentences(str(path), 6)


def test_the_splits_share_no_sentence_and_leave_none_out() -> None:
    found = [str(n) for n in range(57)]
    parts = [part_of(found, split) for split in ("train", "valid", "test")]
    assert [x for part in parts for x in part] == found
    assert list(map(len, parts)) == [45, 6, 6]


@pytest.mark.parametrize("size", [0, 1, 5, 17, 40])
def test_text_goes_round_from_a_sentence_on(size: int) -> None:
    text = "Ab. Cde. F. "
    hay = Haystack.of(["Ab.", "Cde.", "F."], letters)
    assert bytes(hay.ids.tolist()).decode() == text
    random, firsts = np.random.default_rng(0), set()
    for _ in range(20):
        ids, cuts = hay.take(random, size)
        taken = bytes(ids.tolist()).decode()
        assert len(taken) == size
        start = next(n for n in hay.starts.tolist() if (text * 5)[n:].startswith(taken))
        firsts.add((text * 5)[start : start + 3])
        # Every place before which a sentence begins, the end of what was taken included.
        begins = [n for n in range(size + 1) if n == 0 or (taken[n - 1] == " ")]
        assert cuts.tolist() == begins
    assert size < 3 or len(firsts) == 3


def test_pieces_are_set_in_where_they_are_cut() -> None:
    woven = weave(letters("hay hay "), [0, 4, 4, 8], [letters(x) for x in ("A ", "B ", "C ", "D")])
    assert bytes(woven.tolist()).decode() == "A hay B C hay D"
