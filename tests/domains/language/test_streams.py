"""Streams of batches: what is read and asked, where documents begin, and going on from a cursor."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from tiny_language import DOCUMENTS

from titans_domains.language import streams
from titans_domains.language.streams import Batch, Corpus, Hub, Streams
from titans_domains.language.tokenizers import ByteTokenizer

END = 256
LENGTHS = (1, 7, 8, 9, 40, 16, 3, 100)


class Numbered:
    """Parts of tokens that occur nowhere else: token n is followed by n + 1 within a part."""

    def part(self, number: int) -> np.ndarray:
        return 1000 * (number + 1) + np.arange(LENGTHS[number % len(LENGTHS)] + 1)


def numbered(rows: int = 3, length: int = 16, grid: int = 8) -> Streams:
    return Streams(Numbered(), rows=rows, length=length, grid=grid)


def texts() -> list[np.ndarray]:
    return [ByteTokenizer().encode(text.encode()) for text in DOCUMENTS]


def mask_of(batch: Batch) -> torch.Tensor:
    return torch.ones_like(batch.inputs, dtype=torch.bool) if batch.mask is None else batch.mask


def reset_of(batch: Batch) -> torch.Tensor:
    return torch.zeros_like(batch.inputs, dtype=torch.bool) if batch.reset is None else batch.reset


def assert_same(ours: Batch, theirs: Batch) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("grid", [1, 4, 8, 16])
def test_every_target_is_the_next_token(grid: int) -> None:
    for batch, _ in islice(numbered(grid=grid).batches(), 50):
        mask = mask_of(batch)
        assert torch.equal(batch.targets[mask], batch.inputs[mask] + 1)
        assert not batch.inputs[~mask].any()
        assert not batch.targets[~mask].any()


@pytest.mark.parametrize("grid", [1, 8, 16])
def test_every_token_of_a_stream_is_a_target_exactly_once(grid: int) -> None:
    seen: Counter[int] = Counter()
    stream = list(islice(numbered(grid=grid).batches(), 60))
    for batch, _ in stream:
        seen.update(batch.targets[mask_of(batch)].tolist())
    cursor = stream[-1][1]
    unfinished = {number for number, _ in cursor["rows"]}
    finished = [number for number in range(cursor["next"]) if number not in unfinished]
    assert len(finished) > 50
    wanted = Counter(int(token) for n in finished for token in Numbered().part(n)[1:])
    assert wanted == {token: n for token, n in seen.items() if token // 1000 - 1 in finished}
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("grid", [1, 4, 8, 16])
def test_documents_begin_on_the_grid_with_a_reset_and_the_gap_is_masked(grid: int) -> None:
    rows = [[] for _ in range(3)]
    for batch, _ in islice(numbered(grid=grid).batches(), 50):
        for row, *content in zip(rows, batch.inputs, mask_of(batch), reset_of(batch), strict=True):
            row += list(zip(*(x.tolist() for x in content), strict=True))
    for row in rows:
        for t, (token, real, reset) in enumerate(row):
            # The first token of a part is a multiple of 1000, and nothing else is.
            assert reset == (real and token % 1000 == 0)
            if reset:
                assert t % grid == 0
            if not real:
                # Padding reaches from a part's end to the next multiple of the grid, no further.
                assert t % grid
    assert rows[0][0][2]


def test_where_every_token_begins_on_the_grid_nothing_is_masked() -> None:
    assert all(batch.mask is None for batch, _ in islice(numbered(grid=1).batches(), 20))
    long = Streams(Numbered(), rows=1, length=8, grid=8).batches({"next": 0, "rows": [[7, 8]]})
    assert next(long)[0].reset is None


def test_a_document_goes_on_in_the_same_row() -> None:
    streams_of_one = Streams(Numbered(), rows=1, length=8, grid=8)
    stream = [batch.inputs[0] for batch, _ in islice(streams_of_one.batches(), 40)]
    read = torch.cat(stream)
    long = Numbered().part(7)[:-1]
    start = read.tolist().index(long[0])
    assert read[start : start + 100].tolist() == long.tolist()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_going_on_from_any_cursor_gives_the_same_batches(rows: int) -> None:
    def fresh() -> Streams:
        return Streams(Corpus(texts(), END, rows, seed=3), rows=rows, length=32, grid=16)

    straight = list(islice(fresh().batches(), 100))
    assert straight[-1][1]["next"] > 2 * fresh().source.count  # type: ignore[attr-defined]
    for at in range(0, 99, 3):
        # A source of its own each time: nothing may be remembered but the cursor.
        batch, cursor = next(fresh().batches(straight[at][1]))
        assert_same(batch, straight[at + 1][0])
        assert cursor == straight[at + 1][1]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
def test_an_epoch_asks_every_byte_and_every_end_exactly_once(rows: int) -> None:
    corpus = Corpus(texts(), END, rows, seed=1)
    offset = np.cumsum([0, *map(len, texts())])
    for epoch in range(4):
        asked: Counter[int] = Counter()
        ends = 0
        for index in range(corpus.count):
            part = corpus.part(epoch * corpus.count + index)
            document, first, last = corpus.pieces[index]
            text = texts()[document]
            assert part[0] == (text[first - 1] if first else END)
            whole = [*text[first:last], END] if last == len(text) else text[first:last]
            assert part[1:].tolist() == list(whole)
            asked.update(range(offset[document] + first, offset[document] + last))
            ends += int((part[1:] == END).sum())
        assert asked == Counter(range(offset[-1]))
        assert ends >= len(DOCUMENTS)


def test_other_epochs_have_another_order_and_other_cuts() -> None:
    corpus = Corpus(texts(), END, 4, seed=1)
    epochs = []
    for epoch in range(3):
        corpus.part(epoch * corpus.count)
        epochs.append(corpus.pieces)
    assert len({len(pieces) for pieces in epochs}) == 1
    assert epochs[0] != epochs[1]
    cuts = [{piece for piece in pieces if piece[0] == 0} for pieces in epochs]
    assert cuts[0] != cuts[1] != cuts[2]
    # Another seed draws others, the same one the same.
    assert Corpus(texts(), END, 4, seed=2).pieces != epochs[0]
    assert Corpus(texts(), END, 4, seed=1).pieces == epochs[0]


def test_every_row_gets_something_of_one_long_document() -> None:
    corpus = Corpus([np.arange(1000)], END, 8, seed=0)
    longest = max(len(corpus.part(n)) for n in range(corpus.count))
    assert longest <= 125 + 2
    batch, _ = next(Streams(corpus, rows=8, length=64, grid=16).batches())
    assert (mask_of(batch).sum(1) > 32).all()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A data set of nine rows, one of them blank; the calls that open it."""
    rows = [b"one", b"two two", b"", *(b"x" * n for n in range(5, 11))]
    calls: list[tuple[str, int]] = []

    def hub_documents(source: str, skip: int = 0) -> Iterator[bytes]:
        calls.append((source, skip))
        yield from rows[skip:]

    monkeypatch.setattr(streams, "hub_documents", hub_documents)
    return calls


def test_a_hub_is_opened_once_and_read_on(hub: list[tuple[str, int]]) -> None:
    source = Hub("hf:some/set", ByteTokenizer())
    assert source.part(0).tolist() == [END, *b"one", END]
    assert source.part(1).tolist() == [END, *b"two two", END]
    assert len(source.part(2)) == 1  # nothing to ask of a blank row
    assert source.part(3).tolist() == [END, *b"xxxxx", END]
    assert hub == [("hf:some/set", 0)]
    assert source.part(1).tolist() == [END, *b"two two", END]
    assert hub[1:] == [("hf:some/set", 1)]


def test_a_hub_goes_on_from_any_cursor(hub: list[tuple[str, int]]) -> None:
    def fresh() -> Streams:
        return Streams(Hub("hf:some/set", ByteTokenizer()), rows=2, length=4, grid=4)

    straight = list(islice(fresh().batches(), 8))
    for at in range(7):
        batch, cursor = next(fresh().batches(straight[at][1]))
        assert_same(batch, straight[at + 1][0])
        assert cursor == straight[at + 1][1]


def test_a_resumed_hub_is_opened_once(hub: list[tuple[str, int]]) -> None:
    resumed = Streams(Hub("hf:some/set", ByteTokenizer()), rows=3, length=4, grid=4)
    # Out of order, with gaps between, and one finished row.
    batch, _ = next(resumed.batches({"next": 8, "rows": [[7, 2], [1, 8], [4, 3]]}))
    assert batch.inputs.tolist() == [[*b"xxxx"], [END, *b"xxx"], [*b"xxxx"]]
    assert batch.targets[2].tolist() == [*b"xxx", END]
    assert hub == [("hf:some/set", 1)]


def test_a_cursor_of_another_batch_size_is_refused() -> None:
    cursor = next(numbered(rows=3).batches())[1]
    for rows in (2, 4):
        sentence = f"train.batch_size must be that of the run, 3 rows: got {rows}"
        with pytest.raises(ValueError, match=sentence):
            next(numbered(rows=rows).batches(cursor))


def test_a_corpus_may_hold_its_tokens_in_their_smallest_type() -> None:
    small = [ByteTokenizer().encode(text.encode(), ByteTokenizer().smallest) for text in DOCUMENTS]
    assert {x.dtype for x in small} == {np.dtype(np.uint8)}
    ours, theirs = Corpus(small, END, 3, seed=1), Corpus(texts(), END, 3, seed=1)
    for number in range(2 * ours.count):
        part = ours.part(number)
        assert part.dtype == np.int64
        assert part.tolist() == theirs.part(number).tolist()


def test_a_hub_that_ends_says_so(hub: list[tuple[str, int]]) -> None:
    endless = Streams(Hub("hf:some/set", ByteTokenizer()), rows=1, length=8, grid=8).batches()
    with pytest.raises(ValueError, match="hf:some/set ended after 9 documents; ask for fewer"):
        list(islice(endless, 100))


def test_a_sequence_is_a_multiple_of_the_grid() -> None:
    with pytest.raises(ValueError, match=r"data\.seq_len must be a multiple of 8, .* got 20"):
        numbered(length=20)
