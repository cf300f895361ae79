"""Multi-query associative recall: rows as the docstring draws them, and a test that is never trained on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from titans_core import BackboneConfig, MemoryConfig
from titans_domains.language.suites import mqar as module
from titans_domains.language.suites.mqar import IGNORED, RecallConfig, RecallTask, mqar
from titans_domains.training import TrainConfig, train

CPU = torch.device("cpu")
MODEL = BackboneConfig(dim=16, num_layers=1, memory=MemoryConfig(num_heads=2))
SMALL = RecallConfig(length=32, pairs=4, vocab_size=32, batch_size=4, test_rows=16)


def rows(x: Tensor, y: Tensor) -> Iterator[tuple[list[int], list[int]]]:
    return zip(x.tolist(), y.tolist(), strict=True)


@pytest.mark.parametrize(("length", "pairs", "vocab"), [(9, 2, 6), (64, 4, 512), (64, 16, 64)])
def test_rows_are_as_drawn_in_the_docstring(length: int, pairs: int, vocab: int) -> None:
    inputs, targets = mqar(20, length, pairs, vocab, seed=1)
    assert inputs.shape == targets.shape == (20, length)
    assert inputs.dtype == targets.dtype == torch.int64
    for x, y in rows(inputs, targets):
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
    inputs, _ = mqar(500, 64, 4, 64, seed=0)
    places = [t for x in inputs.tolist() for t in range(8, 64) if x[t]]
    assert min(places) == 8
    assert max(places) > 50
    assert sum(t < 20 for t in places) > len(places) / 2


def test_a_seed_repeats_and_another_differs() -> None:
    first = mqar(4, 32, 4, 32, seed=1)
    assert all(map(torch.equal, mqar(4, 32, 4, 32, seed=1), first))
    assert not torch.equal(mqar(4, 32, 4, 32, seed=2)[0], first[0])


def test_no_batch_shares_its_seed_with_another_or_with_a_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []

    def watched(rows: int, length: int, pairs: int, vocab_size: int, seed: int) -> object:
        seeds.append(seed)
        return mqar(rows, length, pairs, vocab_size, seed)

    monkeypatch.setattr(module, "mqar", watched)
    for seed in (0, 1):
        task = RecallTask(MODEL, RecallConfig(**{**vars(SMALL), "seed": seed}), CPU)
        list(islice(task.batches(None), 50))
        for length in (32, 64):
            task.accuracy(length)
    assert len(set(seeds)) == len(seeds) == 2 * 52


def test_batches_go_on_from_any_cursor() -> None:
    task = RecallTask(MODEL, SMALL, CPU)
    straight = list(islice(task.batches(None), 5))
    for at in range(4):
        (inputs, targets), cursor = next(task.batches(straight[at][1]))
        assert torch.equal(inputs, straight[at + 1][0][0])
        assert torch.equal(targets, straight[at + 1][0][1])
        assert cursor == straight[at + 1][1]
    assert not torch.equal(straight[0][0][0], straight[1][0][0])


class Oracle(torch.nn.Module):
    """Answers from the pairs, rightly or always with the same token."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*inputs.shape, SMALL.vocab_size)
        for row, x in enumerate(inputs.tolist()):
            answers = dict(zip(x[0:8:2], x[1:8:2], strict=True))
            for t, token in enumerate(x):
                logits[row, t, answers.get(token, 0) if self.right else 1] = 1
        return logits, None


@pytest.mark.parametrize("right", [True, False])
def test_accuracy_is_the_share_of_queries_answered_rightly(right: bool) -> None:
    task = RecallTask(MODEL, SMALL, CPU)
    task.model = Oracle(right)  # type: ignore[assignment]
    assert [task.accuracy(length) for length in (32, 100)] == [float(right)] * 2
    assert task.validate() == {"error_at_64": 1 - right, "error_at_512": 1 - right}


def test_recall_is_learned_by_training(tmp_path: Path) -> None:
    data = RecallConfig(length=16, pairs=1, vocab_size=8, batch_size=32)
    settings = TrainConfig(
        steps=60, lr=2e-2, warmup=5, valid_every=0, checkpoint_every=60, weight_decay=0.0
    )
    task = RecallTask(MODEL, data, CPU)
    before = task.accuracy(16)
    train(task, settings, tmp_path, device=CPU)
    assert before < 0.5
    assert task.accuracy(16) > 0.9


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
        mqar(1, length, pairs, vocab, seed=0)
    mqar(1, 16, 4, 10, seed=0)
