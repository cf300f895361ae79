"""The walk by groups of chunks: wherever a group ends, and whatever is kept of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import (
    Problem,
    assert_backends_agree,
    assert_close,
    make_problem,
    values_and_gradients,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from titans_kernels.memory_update import group_walk, walk
from titans_kernels.memory_update.coefficients import shares_of
from titans_kernels.memory_update.network import curve_into

GROUPS = {"of one chunk": 0, "of three chunks": 26_000}
KEPT = {"everything": 2**30, "every group's start": 20_000, "every sqrt(N)-th start": 0}
SETTINGS: list[dict[str, Any]] = [
    {"depth": 1, "norm": False},
    {"depth": 2, "max_surprise": 0.5, "gates": "shared"},
    {"depth": 2, "objective": "dot", "forget_toward": "zero"},
    {"depth": 3, "activation": "silu", "residual": False},
]


def documents(setting: dict[str, Any]) -> Problem:
    """Twelve chunks of 4; rows at different phases, and documents that begin at edges of groups."""
    problem = make_problem(
        batch=3, time=45, chunk_size=4, carried=True, started=True, largest_step=0.05, **setting
    )
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 16, 6]))
    reset, mask = torch.zeros(2, 3, 45, dtype=torch.bool).unbind()
    mask = ~mask
    # On the grid of its row, row 0 begins documents with chunks 3 and 4, row 1 with chunk 6.
    reset[0, 9] = reset[0, 13] = reset[1, 24] = True
    mask[0, 11:13] = mask[1, 21:24] = mask[2, 30:] = False
    return replace(problem, reset=reset, mask=mask)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("group", GROUPS)
def test_groups_and_what_is_kept_change_nothing(
    setting: dict[str, Any], kept: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = documents(setting)
    wanted = values_and_gradients(problem, "chunked")
    monkeypatch.setattr(group_walk, "GROUP_BYTES", GROUPS[group])
    monkeypatch.setattr(walk, "KEEP_ALL_BYTES", KEPT[kept])
    assert_close(values_and_gradients(problem, "chunked"), wanted, 1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_groups_equal_the_reference(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_walk, "GROUP_BYTES", GROUPS["of three chunks"])
    assert_backends_agree(documents(setting))


def test_the_groups_are_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = group_walk.Group.forward

    def counted(self: group_walk.Group, pairs: list[Tensor]) -> list[Tensor]:
        sizes.append(len(self.given.q))
        return forward(self, pairs)

    monkeypatch.setattr(group_walk.Group, "forward", counted)
    problem = make_problem(time=45, chunk_size=4)
    for size in GROUPS.values():
        monkeypatch.setattr(group_walk, "GROUP_BYTES", size)
        problem.run()
    assert sizes == [1] * 12 + [3] * 4


def test_a_backward_may_be_repeated() -> None:
    problem = make_problem(time=21, chunk_size=4)
    problem.q.requires_grad_()
    y, _ = problem.run()
    first, second = (torch.autograd.grad(y.sum(), problem.q, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("kept", KEPT)
def test_under_activation_checkpointing(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_walk, "GROUP_BYTES", GROUPS["of three chunks"])
    monkeypatch.setattr(walk, "KEEP_ALL_BYTES", KEPT[kept])
    problem = make_problem(time=45, chunk_size=4)
    problem.q.requires_grad_()
    (wanted,) = torch.autograd.grad(problem.run()[0].sum(), problem.q)
    y, _ = checkpoint(problem.run, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.sum(), problem.q)[0], wanted)


def shares_by_definition(momentum: Tensor, forget: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """What M_t and the last S_t are made of, from eq. 13 and 14 with one column per part."""
    size = len(momentum)
    parts = torch.eye(size + 2, dtype=momentum.dtype)
    memory, surprise, rows = parts[0], parts[1], []
    for t in range(size):
        if live[t]:
            surprise = momentum[t] * surprise + parts[t + 2]
            memory = (1 - forget[t]) * memory + surprise
        else:
            # Its update is 0, whatever it is multiplied with.
            surprise = surprise + parts[t + 2]
        rows.append(memory)
    return torch.stack(rows), surprise[1:]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_shares(size: int) -> None:
    momentum, forget = torch.rand(2, 3, size, dtype=torch.float64).unbind()
    momentum[0, size // 2], forget[1, size // 2] = 0, 1
    live = torch.ones(3, size, dtype=torch.bool)
    live[2, size // 2 :] = False
    inputs = (momentum.requires_grad_(), forget.requires_grad_())
    shares, kept = shares_of(*inputs, live)
    for row in range(3):
        wanted, last = shares_by_definition(momentum[row], forget[row], live[row])
        torch.testing.assert_close(shares[row], wanted, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(kept[row], last, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(lambda *gates: shares_of(*gates, live), inputs)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_second_derivative_of_an_activation(activation: str) -> None:
    z = torch.linspace(-5, 5, 41, dtype=torch.float64, requires_grad=True)
    function = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[activation]
    (slope,) = torch.autograd.grad(function(z).sum(), z, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), z)
    torch.testing.assert_close(curve_into(torch.empty_like(z), z.detach(), activation), curve)
