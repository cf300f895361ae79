"""MAD: rows are as the docstrings draw them, a reader of rules answers every test, and no row leaks."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from titans_core import BackboneConfig, MemoryConfig
from titans_domains.language.suites.auto_encoder import AutoEncoder
from titans_domains.language.suites.mad import BASELINES, CHANGES, settings_of
from titans_domains.language.suites.mad_other import Compression, Memorization, SelectiveCopying
from titans_domains.language.suites.mad_recall import FuzzyRecall, InContextRecall
from titans_domains.language.suites.pool import places
from titans_domains.language.suites.problem import IGNORED, Examples, Problem, Tally, answer
from titans_domains.language.suites.task import SuiteConfig, SuiteTask

CPU = torch.device("cpu")
MODEL = BackboneConfig(dim=16, num_layers=1, memory=MemoryConfig(num_heads=2))
NOISY = InContextRecall(vocab_size=32, noise_vocab_size=16, noise=0.5)
SETTINGS = {f"{task}, {name}": s for task in BASELINES for name, s in settings_of(task).items()}


def rows(examples: Examples) -> list[tuple[list[int], list[int]]]:
    return list(zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True))


def test_there_are_as_many_settings_as_in_the_paper() -> None:
    assert len(SETTINGS) == 66
    counts = [len(settings_of(task)) for task in BASELINES]
    assert counts == [11, 11, 14, 13, 11, 6]
    changed = settings_of("noisy recall", seed=3)
    assert changed["noise=0.6"].problem == InContextRecall(
        vocab_size=32, noise_vocab_size=16, noise=0.6, seed=3
    )
    assert (changed["length=256"].length, changed["noise=0.6"].length) == (256, 128)
    assert changed["train_rows=800"].problem.train_rows == 800
    assert all(
        set(values) <= {"length", *vars(BASELINES[t].problem)} for t, values in CHANGES.items()
    )
    with pytest.raises(ValueError, match="task must be one of in-context recall, .* got 'recall'"):
        settings_of("recall")


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_draws_rows_that_fit(setting: Any) -> None:
    problem: Problem = setting.problem
    for split in ("train", "test"):
        x = problem.draw(2, setting.length, split)
        assert x.inputs.dtype == x.targets.dtype == torch.int64
        assert x.inputs.shape == x.targets.shape
        assert setting.length - 1 <= x.inputs.shape[1] <= setting.length
        asked = x.targets[x.targets != IGNORED]
        assert len(asked) > 0
        assert min(int(x.inputs.min()), int(asked.min())) >= 0
        assert max(int(x.inputs.max()), int(asked.max())) < problem.vocab_size


@pytest.mark.parametrize("problem", [InContextRecall(), NOISY], ids=["plain", "noisy"])
def test_recall_asks_for_values_of_keys_that_came_before(problem: InContextRecall) -> None:
    half, words, noises, pairs = problem.words // 2, problem.words, 0, 0
    for inputs, targets in rows(problem.draw(20, 64, "test")):
        assert len(inputs) == 63
        value_of: dict[int, int] = {}
        for t in range(0, 63, 2):
            key = inputs[t]
            pairs += 1
            if key >= words:
                noises += 1
                assert inputs[t + 1] >= words
                assert targets[t] == IGNORED
            elif key in value_of:
                assert targets[t] == value_of[key]
                assert t == 62 or inputs[t + 1] == value_of[key]
            else:
                assert key < half <= inputs[t + 1] < words
                assert targets[t] == IGNORED
                value_of[key] = inputs[t + 1]
        assert targets[62] != IGNORED
        assert set(targets[1::2]) == {IGNORED}
    assert noises / pairs == pytest.approx(problem.noise * 31 / 32, abs=0.06)


@pytest.mark.parametrize("problem", [InContextRecall(), NOISY, FuzzyRecall()])
def test_training_asks_for_every_next_token(problem: InContextRecall | FuzzyRecall) -> None:
    for inputs, targets in rows(problem.draw(5, 40, "train")):
        assert targets[:-1] == inputs[1:]
        assert targets[-1] != IGNORED


def test_almost_all_noise_leaves_a_pair_to_ask_for() -> None:
    problem = InContextRecall(vocab_size=32, noise_vocab_size=16, noise=0.99)
    for inputs, targets in rows(problem.draw(200, 8, "test")):
        assert inputs[-1] in inputs[:-1]
        assert targets[-1] == inputs[inputs.index(inputs[-1]) + 1]


def motifs(tokens: list[int], first_value: int) -> list[tuple[int, int, int]]:
    """Where each key begins, where its value does, and where that ends."""
    kinds = [token >= first_value for token in tokens]
    starts = [t for t in range(len(tokens)) if not kinds[t] and (t == 0 or kinds[t - 1])]
    found = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        value = next(t for t in range(start, end) if kinds[t])
        found.append((start, value, end))
    return found


@pytest.mark.parametrize("split", ["train", "test"])
def test_fuzzy_keys_and_values_are_runs(split: Any) -> None:
    problem = FuzzyRecall(vocab_size=8)
    key_sizes, value_sizes = set(), set()
    for inputs, targets in rows(problem.draw(100, 60, split)):
        tokens = [*inputs, targets[-1]]
        padding = tokens.count(7)
        assert tokens[:padding] == [7] * padding
        assert len(tokens) == 61
        value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
        wanted = [IGNORED] * 61
        whole = tokens[padding:]
        for start, value, end in motifs(whole, 3):
            key, given = tuple(whole[start:value]), tuple(whole[value:end])
            assert len(set(key)) == len(key)
            assert len(set(given)) == len(given)
            key_sizes.add(len(key))
            value_sizes.add(len(given))
            if key in value_of:
                wanted[padding + value : padding + end] = given
            assert value_of.setdefault(key, given) == given
        # The key at the end came before.
        assert wanted[-1] != IGNORED
        assert targets == (tokens if split == "train" else wanted)[1:]
    assert key_sizes == ({1, 2, 3} if split == "train" else {3})
    assert value_sizes == {1, 2, 3}


def test_copying_gives_the_data_back_in_order() -> None:
    blanks = set()
    for inputs, targets in rows(SelectiveCopying(copied=5).draw(50, 20, "test")):
        at = inputs.index(15)
        assert at == 14
        assert inputs[15:] == [14] * 5
        data = [token for token in inputs[:at] if token != 14]
        assert targets == [IGNORED] * 15 + data
        assert len(data) == 5
        blanks.add(tuple(token == 14 for token in inputs[:at]))
    assert len(blanks) > 40


def test_memorization_has_one_map_for_all_splits_and_never_shows_it() -> None:
    problem = Memorization(vocab_size=16)
    for split in ("train", "valid", "test"):
        for inputs, targets in rows(problem.draw(8, 12, split)):  # type: ignore[arg-type]
            assert inputs[1::2] == [15] * 6
            assert set(targets[::2]) == {IGNORED}
            assert [problem.value_of[key] for key in inputs[::2]] == targets[1::2]
            assert max(inputs[::2]) < 7
    assert sorted(set(problem.value_of.tolist())) == sorted(problem.value_of.tolist())
    assert set(problem.value_of.tolist()) <= set(range(7, 15))
    other = Memorization(vocab_size=16, seed=1)
    assert other.value_of.tolist() != problem.value_of.tolist()


def test_compression_asks_for_the_row_itself() -> None:
    x = Compression().draw(4, 10, "test")
    assert torch.equal(x.inputs, x.targets)
    assert set(x.inputs[:, -1].tolist()) == {15}
    assert int(x.inputs[:, :-1].max()) < 15


ALL: list[Problem] = [setting.problem for setting in BASELINES.values()]


@pytest.mark.parametrize("problem", ALL, ids=BASELINES)
def test_a_batch_is_the_same_again_and_no_other(problem: Problem) -> None:
    def drawn(p: Problem, split: Any, number: int) -> list[Any]:
        return rows(p.draw(4, 40, split, number))

    ours = {split: drawn(problem, split, 1) for split in ("train", "valid", "test")}
    assert ours["test"] == drawn(problem, "test", 1)
    assert ours["train"] == drawn(problem, "train", 1)
    inputs = [x for found in ours.values() for x, _ in found]
    inputs += [x for x, _ in drawn(problem, "test", 2)]
    inputs += [x for x, _ in drawn(type(problem)(seed=1), "test", 1)]  # type: ignore[call-arg]
    assert len({tuple(x) for x in inputs}) == len(inputs) == 20


def test_an_epoch_holds_every_training_row_once() -> None:
    problem = SelectiveCopying(copied=4, train_rows=10)
    drawn = [x for n in range(15) for x, _ in rows(problem.draw(4, 20, "train", n))]
    epochs = [[tuple(x) for x in drawn[i : i + 10]] for i in range(0, 60, 10)]
    assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    # The batches may be larger than an epoch.
    assert sorted(places(25, 0, seed=0, train_rows=10)[:20]) == sorted([*range(10)] * 2)
    fresh = SelectiveCopying(copied=4, train_rows=None)
    assert len({tuple(x) for n in range(15) for x, _ in rows(fresh.draw(4, 20, "train", n))}) == 60
    assert len({tuple(x) for n in range(15) for x, _ in rows(problem.draw(4, 20, "test", n))}) == 60


@pytest.mark.parametrize("problem", ALL, ids=BASELINES)
def test_chance_is_what_one_guess_for_all_is_worth(problem: Problem) -> None:
    x = problem.draw(300, 40, "test")
    asked = x.targets[x.targets != IGNORED]
    if isinstance(problem, Compression):
        asked = x.targets[:, :-1].flatten()
    share = asked.bincount().max().item() / len(asked)
    assert problem.chance <= share < 1.6 * problem.chance + 0.005


class Reader(torch.nn.Module):
    """Answers recall by the rule: what stood behind a key when it came first."""

    def forward(self, inputs: Tensor, state: Any = None, mask: Any = None) -> tuple[Tensor, None]:
        logits = torch.zeros(*inputs.shape, 16)
        for row, x in enumerate(inputs.tolist()):
            for t, token in enumerate(x):
                logits[row, t, x[x.index(token) + 1] if x.index(token) < t else 0] = 1
        return logits, None


def test_the_rule_is_right_everywhere_and_counted_so() -> None:
    x = InContextRecall().draw(20, 32, "test")
    tally = Tally()
    tally.add(x.targets, answer(Reader(), x))
    assert tally.figures() == {"accuracy": 1, "macro": 1, "exact": 1}


@pytest.mark.parametrize("dim", [16, 9])
def test_an_auto_encoder_decodes_from_one_state_and_a_place(dim: int) -> None:
    heads = 2 if dim == 16 else 3
    config = BackboneConfig(dim=dim, num_layers=1, memory=MemoryConfig(num_heads=heads))
    model = AutoEncoder(config, 8)
    with torch.no_grad():
        hidden, _ = model.backbone(model.embedding(torch.tensor([[1, 2, 3, 7]])))
        waves = [
            [f(t / 10_000 ** (i / (-(-dim // 2) - 1))) for f in (np.sin, np.cos) for i in range(-(-dim // 2))]
            for t in range(4)
        ]  # fmt: skip
        code = hidden[0, -1] + torch.tensor(waves, dtype=torch.float32)[:, :dim]
        logits, _ = model(torch.tensor([[1, 2, 3, 7]]))
        assert torch.allclose(logits[0], model.decoder(code), atol=1e-6)
        padded = torch.tensor([[1, 2, 3, 7, 0, 0], [5, 5, 5, 5, 5, 7]])
        mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
        assert torch.allclose(model(padded, mask=mask)[0][0, :4], logits[0], atol=1e-6)
    with pytest.raises(
        ValueError, match="state must be None: an auto-encoder reads a row as a whole"
    ):
        model(padded, model.backbone.fresh_state(2))


@pytest.mark.parametrize(
    ("problem", "length"),
    [
        (Memorization(vocab_size=7), 6),
        (Compression(vocab_size=3), 3),
        (SelectiveCopying(vocab_size=4, copied=1), 4),
    ],
    ids=["memorization", "compression", "copying"],
)
def test_a_small_one_is_learned(problem: Problem, length: int) -> None:
    task = SuiteTask(MODEL, problem, SuiteConfig(lengths=(length,), batch_tokens=16 * length), CPU)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=2e-2)
    before = task.scores(length, 32)["accuracy"]
    for batch, _ in islice(task.batches(None), 60):
        optimizer.zero_grad()
        task.step(batch, None).loss.backward()
        optimizer.step()
    after = task.scores(length, 32)
    assert before < 0.8 < 0.95 < after["accuracy"]
    assert task.validate() == {"error": pytest.approx(0, abs=0.05)}


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (InContextRecall, {"noise": 1.0}, "noise must be at least 0 and below 1: got 1.0"),
        (InContextRecall, {"noise": 0.1}, "give noise_vocab_size"),
        (
            InContextRecall,
            {"noise_vocab_size": 15},
            "leave a key and a value beside 15 noise tokens",
        ),
        (InContextRecall, {"train_rows": 0}, "train_rows must be at least 1, or None"),
        (FuzzyRecall, {"key_motif": 0}, "key_motif and value_motif must be at least 1 token"),
        (FuzzyRecall, {"vocab_size": 6}, "tokens for keys of 3 and values of 3: got 6"),
        (SelectiveCopying, {"copied": 0}, "copied at least 1: got 16 and 0"),
        (Compression, {"vocab_size": 1}, "vocab_size must be at least 2: got 1"),
        (Memorization, {"vocab_size": 2}, "vocab_size must be at least 3: got 2"),
    ],
)
def test_settings_without_sense_are_refused(kind: Any, settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**settings)


@pytest.mark.parametrize(
    ("problem", "good", "bad", "sentence"),
    [
        (InContextRecall(), 4, 5, "length must be even, two pairs or more: got 5"),
        (FuzzyRecall(), 18, 17, "length must be at least 18 tokens, three pairs of 6: got 17"),
        (SelectiveCopying(copied=3), 8, 7, "at least 8 tokens: got 7"),
        (Compression(), 2, 1, "length must be at least 2 tokens: got 1"),
        (Memorization(), 2, 3, "length must be even, a key and its question each: got 3"),
    ],
)
def test_rows_too_short_are_refused(problem: Problem, good: int, bad: int, sentence: str) -> None:
    assert problem.draw(2, good, "test").inputs.shape[1] in (good, good - 1)
    with pytest.raises(ValueError, match=sentence):
        problem.draw(2, bad, "test")
