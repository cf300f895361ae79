"""State tracking: answers recomputed from the rows, and tables that are the groups they are called."""

from itertools import islice, permutations
from typing import Any

import numpy as np
import pytest
import torch

from titans_core import BackboneConfig, MemoryConfig
from titans_domains.language.suites.groups import GROUPS, product_table
from titans_domains.language.suites.problem import IGNORED, Problem
from titans_domains.language.suites.state_tracking import GroupWords, ModularArithmetic, Parity
from titans_domains.language.suites.task import SuiteConfig, SuiteTask

ORDERS = {"S5": 120, "A5": 60, "A4xZ5": 60, "Z60": 60}


@pytest.mark.parametrize("name", GROUPS)
def test_a_table_is_a_group(name: str) -> None:
    table, n = product_table(name), ORDERS[name]
    assert table.shape == (n, n)
    everything = np.arange(n)
    # Closed, with inverses on both sides: each row and column holds every element once.
    assert all(sorted(line) == everything.tolist() for line in (*table.tolist(), *table.T.tolist()))
    assert np.array_equal(table[0], everything)
    assert np.array_equal(table[:, 0], everything)
    left = table[table]
    right = table[everything[:, None, None], table[None]]
    assert np.array_equal(left, right)


def normal_closure(table: np.ndarray, element: int) -> set[int]:
    """The smallest normal subgroup that holds an element."""
    inverse = table.argmin(1)
    conjugates = {int(table[table[inverse[g], element], g]) for g in range(len(table))}
    found, new = {0}, {0}
    while new:
        new = {int(table[a, b]) for a in new for b in conjugates} - found
        found |= new
    return found


def elements_of_order(table: np.ndarray) -> dict[int, int]:
    orders: dict[int, int] = {}
    for element in range(len(table)):
        power, order = element, 1
        while power:
            power, order = int(table[power, element]), order + 1
        orders[order] = orders.get(order, 0) + 1
    return orders


def test_the_groups_are_what_they_are_called() -> None:
    s5, a5, a4xz5, z60 = map(product_table, GROUPS)
    assert not np.array_equal(s5, s5.T)
    assert np.array_equal(z60, z60.T)
    assert not np.array_equal(a4xz5, a4xz5.T)
    # A5 is simple; S5 has A5 in it, A4xZ5 several normal subgroups.
    assert {len(normal_closure(a5, x)) for x in range(1, 60)} == {60}
    assert {len(normal_closure(s5, x)) for x in range(1, 120)} == {60, 120}
    assert {len(normal_closure(a4xz5, x)) for x in range(1, 60)} == {4, 5, 12, 20, 60}
    assert elements_of_order(s5) == {1: 1, 2: 25, 3: 20, 4: 30, 5: 24, 6: 20}
    assert elements_of_order(a5) == {1: 1, 2: 15, 3: 20, 5: 24}
    assert elements_of_order(a4xz5) == {1: 1, 2: 3, 3: 8, 5: 4, 10: 12, 15: 32}
    assert elements_of_order(z60)[60] == 16


def test_a_product_of_permutations_is_one_after_the_other() -> None:
    elements = list(permutations(range(5)))
    things = "abcde"
    for i, j in ((17, 100), (3, 4), (119, 55)):
        once = [things[k] for k in elements[i]]
        assert [once[k] for k in elements[j]] == [
            things[k] for k in elements[product_table("S5")[j, i]]
        ]


@pytest.mark.parametrize("group", GROUPS)
def test_words_are_multiplied_from_the_identity_on(group: str) -> None:
    table = product_table(group)
    problem = GroupWords(group=group)
    x = problem.draw(5, 30, "train")
    assert x.mask is None
    assert problem.vocab_size == ORDERS[group]
    for word, products in zip(x.inputs.tolist(), x.targets.tolist(), strict=True):
        assert products[0] == word[0]
        done = 0
        for element, product in zip(word, products, strict=True):
            done = int(table[done, element])
            assert product == done


LETTERS = "01234+-*="


@pytest.mark.parametrize(
    ("split", "length"), [("train", 40), ("valid", 40), ("test", 256), ("test", 9)]
)
@pytest.mark.parametrize("problem", [Parity(), ModularArithmetic()], ids=["parity", "arithmetic"])
def test_the_answer_stands_at_the_last_place(problem: Problem, split: Any, length: int) -> None:
    sizes = []
    x = problem.draw(200, length, split)
    assert x.mask is not None
    assert x.inputs.shape[1] <= length
    for tokens, targets, mask in zip(*(part.tolist() for part in x), strict=True):
        size = sum(mask)
        sizes.append(size)
        assert mask == [True] * size + [False] * (len(mask) - size)
        assert set(tokens[size:]) <= {0}
        if isinstance(problem, Parity):
            answer = tokens[:size].count(1) % 2
        else:
            text = "".join(LETTERS[token] for token in tokens[:size])
            assert text.endswith("=")
            assert set(text[1:-1:2]) <= set("+-*")
            answer = eval(text[:-1]) % 5
        assert targets[:size] == [IGNORED] * (size - 1) + [answer]
        assert set(targets[size:]) <= {IGNORED}
    shortest = min(length - length % 2 if isinstance(problem, ModularArithmetic) else length, 40)
    if split != "test":
        shortest = 3 if isinstance(problem, Parity) else 4
    assert min(sizes) == shortest or (length == 256 and min(sizes) < 46)
    assert max(sizes) > length - 6
    assert min(sizes) >= shortest


def test_another_modulus_counts_by_itself() -> None:
    x = ModularArithmetic(modulus=3).draw(50, 20, "train")
    assert x.mask is not None
    for tokens, targets, mask in zip(*(part.tolist() for part in x), strict=True):
        text = "".join("012+-*="[token] for token in tokens[: sum(mask)])
        assert targets[sum(mask) - 1] == eval(text[:-1]) % 3


@pytest.mark.parametrize("problem", [Parity(), ModularArithmetic(), GroupWords(group="A5")])
def test_a_batch_is_the_same_again_and_no_other(problem: Problem) -> None:
    first = problem.draw(8, 40, "train", 1)
    again = problem.draw(8, 40, "train", 1)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    others = [problem.draw(8, 40, "train", 2), problem.draw(8, 40, "test", 1)]
    others.append(type(problem)(seed=1).draw(8, 40, "train", 1))  # type: ignore[call-arg]
    assert not any(torch.equal(first.inputs, other.inputs) for other in others)


@pytest.mark.parametrize(
    "problem", [Parity(), ModularArithmetic(), *(GroupWords(group=name) for name in GROUPS)]
)
def test_chance_is_what_a_guess_is_worth(problem: Problem) -> None:
    x = problem.draw(3000, 12, "train")
    asked = x.targets[x.targets != IGNORED]
    shares = asked.bincount(minlength=problem.vocab_size) / len(asked)
    answers = shares[shares > 0]
    assert answers.mean().item() == pytest.approx(problem.chance)
    assert answers.max() < 1.5 * problem.chance


def test_padding_changes_no_loss_and_short_parity_is_learned() -> None:
    model = BackboneConfig(dim=16, num_layers=1, memory=MemoryConfig(num_heads=2))
    config = SuiteConfig(lengths=(4,), batch_tokens=256)
    task = SuiteTask(model, Parity(), config, torch.device("cpu"))
    batch, _ = next(task.batches(None))
    assert batch.mask is not None
    assert not batch.mask.all()
    loss = task.step(batch, None).loss
    other = batch._replace(inputs=batch.inputs.masked_fill(~batch.mask, 1))
    assert task.step(other, None).loss == loss
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=2e-2)
    for batch, _ in islice(task.batches(None), 80):
        optimizer.zero_grad()
        task.step(batch, None).loss.backward()
        optimizer.step()
    assert task.scores(4, 64)["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GroupWords(group="A6"), "group must be one of S5, A5, A4xZ5, Z60: got 'A6'"),
        (lambda: GroupWords().draw(1, 0, "train"), "length must be at least 1 element: got 0"),
        (lambda: ModularArithmetic(modulus=1), "modulus must be at least 2: got 1"),
        (lambda: ModularArithmetic().draw(1, 3, "train"), "length must be at least 4"),
        (lambda: Parity().draw(1, 2, "train"), "length must be at least 3 tokens: got 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
