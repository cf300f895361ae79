"""Effective rank, shared directions, what tokens still weigh in a memory, and half-lives."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from titans_core import MemoryConfig
from titans_core.memory import Recall
from titans_core.memory_facts import (
    Standing,
    aged,
    answers,
    effective_rank,
    half_life,
    standing,
    subspace_cosines,
    weights_of,
)
from titans_kernels import memory_update
from titans_kernels.memory_update.reference import read, surprise_gradient


def test_the_effective_rank_is_that_of_the_definition() -> None:
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    for one, found in zip(x.numpy(), effective_rank(x).tolist(), strict=True):
        values = np.linalg.svd(one, compute_uv=False)
        p = values / np.abs(values).sum()
        assert found == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6)
    assert effective_rank(torch.ones(4, 9)).item() == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.zeros(2, 3)).isnan()


def test_principal_angles_tell_which_directions_are_shared() -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    left = torch.linalg.qr(torch.randn(8, 6, dtype=torch.float64)).Q
    sizes = torch.tensor([5.0, 4, 3, 0.1, 0.1, 0.1], dtype=torch.float64)
    one = left @ torch.diag(sizes) @ basis.mT
    # The first and the third direction stay, the second gives way to one that was weak.
    other = left @ torch.diag(sizes) @ basis[:, [0, 3, 2, 1, 4, 5]].mT
    found = subspace_cosines(one, other, 3)
    assert torch.allclose(found, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), atol=1e-9)
    # An angle of 30 degrees between single directions.
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(math.pi / 6), 0.5]])
    assert subspace_cosines(a, b, 1).item() == pytest.approx(math.cos(math.pi / 6), abs=1e-6)


@pytest.mark.parametrize("cuts", [(), (1,), (7, 8, 30), (16, 32)])
def test_the_memory_is_the_sum_of_its_writes_times_their_weight(cuts: tuple[int, ...]) -> None:
    recall = Recall(8, MemoryConfig(num_heads=2, expansion=2, chunk_size=4, max_surprise=0.5), "")
    recall = recall.double()
    x = torch.randn(1, 40, 8, dtype=torch.float64)
    with torch.no_grad():
        q, k, v, _ = recall._project(x, recall.fresh_state(1).conv_tail)
        gates = [gate.clone() for gate in recall._gates(x)]
        # What logarithms and quotients could not take.
        gates[1][0, 11], gates[2][0, 23, 1], gates[2][0, 30] = 0.0, 1.0, 0.0
        step_size, momentum, forget = gates
        memory, total = recall.fresh_memory(1), None
        writes = []
        for t in range(40):
            at = weights_of(recall, memory.chunk_memory)
            grads = surprise_gradient(
                at, k[:, t], v[:, t], (recall.norm_gain, recall.norm_bias), recall.rule
            )
            writes.append([-step_size[0, t, :, n, None, None] * g[0] for n, g in enumerate(grads)])
            part = slice(t, t + 1)
            _, memory = memory_update(
                q[:, part], k[:, part], v[:, part], *(gate[:, part] for gate in gates),
                tuple(recall.initial), rule=recall.rule, norm=(recall.norm_gain, recall.norm_bias),
                state=memory, backend="reference",
            )  # fmt: skip
    found = None
    bounds = [0, *cuts, 40]
    for begin, end in pairwise(bounds):
        piece = momentum[0, begin:end], forget[0, begin:end]
        new = standing(*piece)
        if found is not None:
            old = aged(found, *piece)
            new = Standing(*(torch.cat(pair) for pair in zip(old, new, strict=True)))
        found = new
    assert found is not None
    for layer in range(2):
        total = sum(
            found.written[t, :, layer, None, None] * write[layer] for t, write in enumerate(writes)
        )
        assert torch.allclose(total, memory.memory[layer][0], rtol=0, atol=1e-12)
        running = sum(
            found.carried[t, :, layer, None, None] * write[layer] for t, write in enumerate(writes)
        )
        assert torch.allclose(running, memory.surprise[layer][0], rtol=0, atol=1e-12)
    assert found.retained[10, 1, 0] == 0
    by_hand = (1 - forget[0, 36:, 0, 1]).prod()
    assert found.retained[35, 0, 1].item() == pytest.approx(by_hand.item(), rel=1e-12)


@pytest.mark.parametrize("forget", ["initial", "zero"])
def test_answers_are_what_the_definition_reads(forget: str) -> None:
    recall = Recall(8, MemoryConfig(num_heads=2, forget=forget), "").double()
    with torch.no_grad():
        state = recall(torch.randn(1, 30, 8, dtype=torch.float64), recall.fresh_state(1))[1].memory
    k = torch.randn(5, 2, 4, dtype=torch.float64)
    weights = tuple(w.expand(5, -1, -1, -1) for w in weights_of(recall, state.memory))
    with torch.no_grad():
        wanted = read(weights, k, (recall.norm_gain, recall.norm_bias), recall.rule)
    assert torch.allclose(answers(recall, state, k), wanted, rtol=0, atol=1e-12)


def test_half_lives() -> None:
    ages = list(range(50))
    assert half_life(ages, [0.9**age for age in ages]) == pytest.approx(
        math.log(0.5) / math.log(0.9), abs=0.02
    )
    above = [0.3 + 0.6 * 0.8**age for age in ages]
    assert half_life(ages, above, 0.3) == pytest.approx(math.log(0.5) / math.log(0.8), abs=0.02)
    assert half_life([0, 4], [1.0, 0.0]) == 2
    assert half_life(ages, [1.0] * 50) == math.inf
    assert half_life(ages, [0.2] * 50, 0.2) is None
    assert half_life([], []) is None
