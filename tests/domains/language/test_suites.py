"""Made tasks: batches of their own for every split, answers read in pieces, scores by hand."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from titans_core import BackboneConfig, MemoryConfig
from titans_domains.language.suites.mqar import Mqar
from titans_domains.language.suites.problem import IGNORED, SPLITS, Tally, answer
from titans_domains.language.suites.task import SuiteConfig, SuiteTask
from titans_domains.training import TrainConfig, train

CPU = torch.device("cpu")
MODEL = BackboneConfig(dim=16, num_layers=1, memory=MemoryConfig(num_heads=2))
PROBLEM = Mqar(vocab_size=32)
SMALL = SuiteConfig(lengths=(32,), batch_tokens=128, valid_rows=6)


def drawn(seed: int) -> dict[bytes, str]:
    """Every row of three splits, two lengths and three batches, by what it holds."""
    problem = Mqar(vocab_size=64, seed=seed)
    return {
        row.numpy().tobytes(): f"{split} {length} {number}"
        for split in SPLITS for length in (32, 64) for number in range(3)
        for row in problem.draw(5, length, split, number).inputs
    }  # fmt: skip


def test_no_row_is_drawn_twice_and_a_seed_repeats() -> None:
    first = drawn(0)
    assert len(first) == 3 * 2 * 3 * 5
    assert first == drawn(0)
    assert not first.keys() & drawn(1).keys()


def test_runs_of_other_seeds_train_on_other_batches() -> None:
    seen: list[Tensor] = []
    for seed in (0, 1):
        task = SuiteTask(MODEL, PROBLEM, SuiteConfig(**{**vars(SMALL), "seed": seed}), CPU)
        seen += [batch.inputs for batch, _ in islice(task.batches(None), 20)]
    assert len({x.numpy().tobytes() for x in seen}) == 40


def test_batches_go_on_from_any_cursor() -> None:
    task = SuiteTask(MODEL, PROBLEM, SMALL, CPU)
    straight = list(islice(task.batches(None), 5))
    for at in range(4):
        batch, cursor = next(task.batches(straight[at][1]))
        assert torch.equal(batch.inputs, straight[at + 1][0].inputs)
        assert torch.equal(batch.targets, straight[at + 1][0].targets)
        assert cursor == straight[at + 1][1]


def test_longer_rows_come_in_later_and_take_turns() -> None:
    config = SuiteConfig(lengths=(32, 64, 128), batch_tokens=128, steps=30)
    task = SuiteTask(MODEL, PROBLEM, config, CPU)
    lengths = [task.length(step) for step in range(30)]
    assert set(lengths[:10]) == {32}
    assert sorted(lengths[10:20]) == [32] * 5 + [64] * 5
    assert {lengths[20:].count(length) for length in (32, 64, 128)} == {3, 4}
    shapes = [tuple(batch.inputs.shape) for batch, _ in islice(task.batches(None), 30)]
    assert shapes == [(128 // length, length) for length in lengths]


class Oracle(torch.nn.Module):
    """Answers rightly from the pairs, or with the same token always; remembers them in its state."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right, self.pieces = right, 0

    def forward(self, inputs: Tensor, state: Any = None, *, mask: Any = None) -> Any:
        self.pieces += 1
        state = state or [dict(zip(x[0:8:2], x[1:8:2], strict=True)) for x in inputs.tolist()]
        logits = torch.zeros(*inputs.shape, 32)
        for row, x in enumerate(inputs.tolist()):
            for t, token in enumerate(x):
                logits[row, t, state[row].get(token, 0) if self.right else 1] = 1
        return logits, state


@pytest.mark.parametrize("right", [True, False])
def test_a_task_scores_what_its_model_answers(right: bool) -> None:
    task = SuiteTask(MODEL, PROBLEM, SMALL, CPU)
    task.model = Oracle(right)
    for length in (32, 100):
        assert task.scores(length, 7)["accuracy"] == float(right)
    assert task.validate() == {"error": 1 - right}
    assert task.scores(32, 7) == task.scores(32, 7)


def test_answers_are_read_in_pieces_of_one_stream() -> None:
    oracle, examples = Oracle(True), PROBLEM.draw(3, 32, "test")
    given = answer(oracle, examples, piece=8)
    asked = examples.targets != IGNORED
    assert oracle.pieces == 4
    assert torch.equal(given[asked], examples.targets[asked])


def test_scores_by_token_by_class_and_by_answer() -> None:
    tally = Tally()
    i = IGNORED
    # Answers: (1 1) right, (2) wrong; (1) wrong at a row's end, (2 2 1) half right, (2) right.
    tally.add(torch.tensor([[1, 1, i, 2]]), torch.tensor([[1, 1, 7, 1]]))
    tally.add(
        torch.tensor([[i, i, i, i, i, i, 1], [2, 2, 1, i, i, i, 2]]),
        torch.tensor([[1, 1, 1, 1, 1, 1, 2], [2, 1, 1, 2, 2, 2, 2]]),
    )
    figures = tally.figures()
    assert figures["accuracy"] == 5 / 8
    assert figures["macro"] == (3 / 4 + 2 / 4) / 2
    assert figures["exact"] == 2 / 5
    with pytest.raises(ValueError, match="nothing to score"):
        Tally().figures()


def test_recall_is_learned_by_training(tmp_path: Path) -> None:
    settings = TrainConfig(
        steps=60, lr=2e-2, warmup=5, valid_every=0, checkpoint_every=60, weight_decay=0.0
    )
    data = SuiteConfig(lengths=(16,), batch_tokens=512, steps=60)
    task = SuiteTask(MODEL, Mqar(pairs=1, vocab_size=8), data, CPU)
    before = task.scores(16, 64)["accuracy"]
    train(task, settings, tmp_path, device=CPU)
    assert before < 0.5
    assert task.scores(16, 64)["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("lengths", "tokens", "sentence"),
    [
        ((), 64, r"lengths must be ascending: got \[\]"),
        ((64, 32), 64, r"lengths must be ascending: got \[64, 32\]"),
        ((32, 64), 63, "batch_tokens must hold a row of 64 tokens: got 63"),
    ],
)
def test_lengths_that_cannot_be_trained_on_are_refused(
    lengths: tuple[int, ...], tokens: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        SuiteConfig(lengths=lengths, batch_tokens=tokens)
