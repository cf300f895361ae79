"""Batches whose rows are streams of their own: a document longer than a sequence goes on in the next.

B rows, T tokens of a sequence. A document starts afresh at a multiple of `grid` tokens of its row, and
the gap before it is masked.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from titans_domains.language.corpus import hub_documents
from titans_domains.language.tokenizers import Tokenizer


class Batch(NamedTuple):
    inputs: Tensor  # Int[B, T]
    targets: Tensor  # Int[B, T]: the token after each input
    mask: Tensor | None  # Bool[B, T]: False on padding; None where there is none
    reset: Tensor | None  # Bool[B, T]: True at a document's first token


class Source(Protocol):
    """Numbered parts: the token ids of a document or a piece of one, its predecessor in front."""

    def part(self, number: int) -> np.ndarray: ...


class Corpus:
    """Documents in memory, in another order and cut at other places in every epoch.

    A document longer than a row's share of the corpus is cut, so that every row has something to read.
    """

    def __init__(self, texts: list[np.ndarray], end: int, rows: int, seed: int) -> None:
        self.texts, self.end, self.seed = texts, end, seed
        self.share = max(1, -(-sum(map(len, texts)) // rows))
        self.epoch, self.pieces = -1, list[tuple[int, int, int]]()
        self._cut(0)
        # As many parts in every epoch, so that a part's number says which epoch it is of.
        self.count = len(self.pieces)

    def _cut(self, epoch: int) -> None:
        random = np.random.default_rng([self.seed, epoch])
        pieces = []
        for index, text in enumerate(self.texts):
            cuts = [0, len(text)]
            if len(text) > self.share:
                # A first piece of random length moves all later cuts.
                inner = -(-len(text) // self.share)
                first = int(random.integers(1, self.share + 1))
                cuts = [0, *(first + self.share * i for i in range(inner)), len(text)]
                cuts = sorted({min(cut, len(text)) for cut in cuts})
                # One cut more or less would change the number of parts.
                while len(cuts) < inner + 2:
                    widest = int(np.argmax(np.diff(cuts)))
                    cuts.insert(widest + 1, (cuts[widest] + cuts[widest + 1]) // 2)
            pieces += [(index, a, b) for a, b in pairwise(cuts)]
        self.epoch, self.pieces = epoch, [pieces[i] for i in random.permutation(len(pieces))]

    def part(self, number: int) -> np.ndarray:
        epoch, index = divmod(number, self.count)
        if epoch != self.epoch:
            self._cut(epoch)
        document, first, last = self.pieces[index]
        text = self.texts[document]
        part = np.full(last - first + 2, self.end, np.int64)
        part[0 if first else 1 : -1] = text[max(first - 1, 0) : last]
        return part if last == len(text) else part[:-1]


class Hub:
    """A streamed data set; only the documents that are being read are held."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source, self.tokenizer = source, tokenizer
        self.next = -1
        self.rows: Iterator[bytes] = iter(())

    def part(self, number: int) -> np.ndarray:
        if self.next < 0 or number < self.next:
            self.rows = hub_documents(self.source, skip=number)
        else:
            # Reading past a few rows costs less than opening the data set again.
            deque(islice(self.rows, number - self.next), maxlen=0)
        self.next = number + 1
        text = next(self.rows, None)
        if text is None:
            raise ValueError(f"{self.source} ended after {number} documents; ask for fewer steps.")
        end = [self.tokenizer.end]
        # Rows are numbered as the hub skips them, so a blank one has a number, and nothing to read.
        if not text:
            return np.array(end, np.int64)
        return np.concatenate([end, self.tokenizer.encode(text), end])


class Streams:
    """Endless batches over a source. The cursor after each batch is all that is needed to go on."""

    def __init__(self, source: Source, *, rows: int, length: int, grid: int) -> None:
        if length % grid:
            raise ValueError(
                f"data.seq_len must be a multiple of {grid}, the tokens between which a document may "
                f"begin (memory.chunk_size, or hybrid.segment_len of mac): got {length}."
            )
        self.source, self.rows, self.length, self.grid = source, rows, length, grid

    def batches(
        self, cursor: dict[str, Any] | None = None
    ) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Batches from `cursor` on, or from the start, each with the cursor after it."""
        if cursor is None:
            cursor = {"next": 0, "rows": [[-1, 0]] * self.rows}
        if len(cursor["rows"]) != self.rows:
            raise ValueError(
                f"train.batch_size must be that of the run, {len(cursor['rows'])} rows: got "
                f"{self.rows} (times train.accumulate)."
            )
        return self._batches(cursor)

    def _batches(self, cursor: dict[str, Any]) -> Iterator[tuple[Batch, dict[str, Any]]]:
        following = cursor["next"]
        # In ascending order, so that a streamed source is gone through once.
        numbers = sorted({number for number, _ in cursor["rows"] if number >= 0})
        parts = {-1: np.zeros(0, np.int64)} | {n: self.source.part(n) for n in numbers}
        # Per row: number of the part, tokens of it already read, the part.
        reading = [(number, at, parts[number]) for number, at in cursor["rows"]]
        while True:
            inputs = np.zeros((self.rows, self.length), np.int64)
            targets, mask = inputs.copy(), np.zeros(inputs.shape, bool)
            reset = mask.copy()
            for row in range(self.rows):
                number, at, part = reading[row]
                t = 0
                while t < self.length:
                    left = len(part) - 1 - at
                    if left <= 0:
                        number, at, part = following, 0, self.source.part(following)
                        following += 1
                        reset[row, t] = True
                        left = len(part) - 1
                    take = min(left, self.length - t)
                    inputs[row, t : t + take] = part[at : at + take]
                    targets[row, t : t + take] = part[at + 1 : at + 1 + take]
                    mask[row, t : t + take] = True
                    at += take
                    t += take if at < len(part) - 1 else -(-take // self.grid) * self.grid
                reading[row] = (number, at, part)
            batch = Batch(
                torch.from_numpy(inputs),
                torch.from_numpy(targets),
                None if mask.all() else torch.from_numpy(mask),
                torch.from_numpy(reset) if reset.any() else None,
            )
            yield batch, {"next": following, "rows": [[n, at] for n, at, _ in reading]}
