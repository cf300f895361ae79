"""The reference against autograd of the loss, and the systems that are settings of the memory.

B batch, T time, H memory heads, D width of a head, L layers of the memory MLP.
"""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from memory_problems import Problem, make_problem
from torch import Tensor

from titans_kernels import momentary_surprise
from titans_kernels.memory_update.reference import surprise_gradient

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}


def mlp(weights: list[Tensor], u: Tensor, problem: Problem, head: int) -> Tensor:
    """f(W; u) of one row and head, for u [D]."""
    x = u
    for layer, w in enumerate(weights):
        x = w @ x
        if layer < len(weights) - 1:
            x = ACTIVATIONS[problem.rule.activation](x)
    if problem.norm is not None:
        gain, bias = problem.norm
        x = F.layer_norm(x, x.shape, gain[head], bias[head], eps=1e-5)
    return u + x if problem.rule.residual else x


def loss_gradients(
    weights: list[Tensor], k: Tensor, v: Tensor, problem: Problem, head: int
) -> list[Tensor]:
    """Autograd's gradient of the loss (eq. 12) by each layer, clamped to `max_surprise`."""
    weights = [w.detach().requires_grad_() for w in weights]
    prediction = mlp(weights, k, problem, head)
    loss = -(prediction @ v) if problem.rule.objective == "dot" else (prediction - v).square().sum()
    grads = torch.autograd.grad(loss, weights)
    if problem.rule.max_surprise is None:
        return list(grads)
    return [g * min(1.0, problem.rule.max_surprise / float(g.norm())) for g in grads]


def settings() -> list[dict[str, Any]]:
    choices: dict[str, tuple[Any, ...]] = {
        "depth": (1, 2, 3),
        "norm": (True, False),
        "residual": (True, False),
        "objective": ("l2", "dot"),
        "max_surprise": (None, 0.5),
        "activation": ("gelu", "silu"),
    }
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


def test_surprise_gradient_is_autograds() -> None:
    for setting in settings():
        problem = make_problem(time=1, heads=3, **setting)
        weights = tuple(w + torch.zeros(2, 1, 1, 1, dtype=w.dtype) for w in problem.initial)
        grads = surprise_gradient(
            weights, problem.k[:, 0], problem.v[:, 0], problem.norm, problem.rule
        )
        for row, head in itertools.product(range(2), range(3)):
            wanted = loss_gradients(
                [w[row, head] for w in weights],
                problem.k[row, 0, head], problem.v[row, 0, head], problem, head,
            )  # fmt: skip
            for grad, x in zip(grads, wanted, strict=True):
                torch.testing.assert_close(grad[row, head], x, rtol=1e-12, atol=1e-12)


def test_momentary_surprise_is_the_norm_of_that_gradient() -> None:
    for setting in settings():
        problem = make_problem(time=5, carried=True, **setting)
        assert problem.state is not None
        norms = momentary_surprise(
            problem.k, problem.v, problem.state, problem.initial,
            rule=problem.rule, norm=problem.norm,
        )  # fmt: skip
        held = tuple(
            base + w for base, w in zip(problem.initial, problem.state.chunk_memory, strict=True)
        )
        free = replace(problem.rule, max_surprise=None)
        for t in range(5):
            grads = surprise_gradient(held, problem.k[:, t], problem.v[:, t], problem.norm, free)
            wanted = torch.stack([torch.linalg.matrix_norm(g) for g in grads], -1)
            torch.testing.assert_close(norms[:, t], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "setting",
    [
        {"depth": 2},
        {"depth": 3, "forget_toward": "zero", "gates": "shared", "max_surprise": 0.5},
        {"depth": 1, "norm": False, "activation": "silu", "forget_toward": "zero"},
        {"depth": 2, "residual": False, "objective": "dot"},
        {"depth": 2, "inner_steps": 3},
        {"depth": 3, "channel_forget": True, "largest_forget": 1.0},
        {"depth": 1, "channel_forget": True, "inner_steps": 2, "max_surprise": 0.5},
    ],
)
def test_reference_is_the_papers_recurrence(setting: dict[str, Any]) -> None:
    problem = make_problem(batch=1, time=11, chunk_size=4, heads=2, **setting)
    y, state = problem.run("reference")
    layers = range(len(problem.initial))
    for head in range(2):
        home = [w[head] for w in problem.initial]
        floor = [0 * w if problem.rule.forget_toward == "zero" else w for w in home]
        memory, surprise = home, [0 * w for w in home]
        for t in range(11):
            if t % 4 == 0:
                held, streams = memory, [(memory, surprise)] * problem.rule.inner_steps
            step, momentum, forget = gates_of(problem, t, head)
            k, v = problem.k[0, t, head], problem.v[0, t, head]
            weights, grads = held, [0 * w for w in home]
            for j, (memory, surprise) in enumerate(streams):
                new = loss_gradients(weights, k, v, problem, head)
                grads = [grads[i] + new[i] for i in layers]
                surprise = [
                    momentum[i] * surprise[i] - step[i] * grads[i] for i in layers
                ]  # eq. 14
                memory = [
                    floor[i] + (1 - forget[i]) * (memory[i] - floor[i]) + surprise[i]
                    for i in layers
                ]  # eq. 13
                streams[j], weights = (memory, surprise), memory
            wanted = mlp(memory, problem.q[0, t, head], problem, head)  # eq. 15
            torch.testing.assert_close(y[0, t, head], wanted, rtol=1e-11, atol=1e-11)
        ends = [*state.passes, (state.memory, state.surprise)]
        for (got, got_surprise), (memory, surprise) in zip(ends, streams, strict=True):
            for i in layers:
                kept = got[i][0, head]
                if problem.rule.forget_toward == "initial":
                    kept = kept + home[i]
                torch.testing.assert_close(kept, memory[i], rtol=1e-11, atol=1e-11)
                torch.testing.assert_close(
                    got_surprise[i][0, head], surprise[i], rtol=1e-11, atol=1e-11
                )


def gates_of(problem: Problem, t: int, head: int) -> list[list[Tensor]]:
    """Step, momentum and forget of one token for every layer, as they multiply its matrix."""
    depth = len(problem.initial)
    gates = (problem.step_size, problem.momentum, problem.forget)
    *others, channels = (gate[0, t, head] for gate in gates)
    if not problem.rule.channel_forget:
        return [list(gate.expand(depth)) for gate in (*others, channels)]
    first, last = channels[None, :], channels[:, None]
    forget = [first, *[channels.mean()] * (depth - 2), last][:depth]
    return [*(list(gate.expand(depth)) for gate in others), forget]


@pytest.mark.parametrize("inner_steps", [1, 2, 3])
@pytest.mark.parametrize("max_surprise", [None, 0.5])
def test_inner_steps_are_gradient_descent_on_each_token(
    inner_steps: int, max_surprise: float | None
) -> None:
    problem = make_problem(
        batch=1, time=9, chunk_size=1, inner_steps=inner_steps, max_surprise=max_surprise
    )
    zero = torch.zeros_like(problem.momentum)
    problem = replace(problem, momentum=zero, forget=zero)
    wanted = torch.empty_like(problem.q)
    for head in range(2):
        weights = [w[head] for w in problem.initial]
        for t in range(9):
            for _ in range(inner_steps):
                grads = loss_gradients(
                    weights, problem.k[0, t, head], problem.v[0, t, head], problem, head
                )
                steps = problem.step_size[0, t, head]
                weights = [w - s * g for w, s, g in zip(weights, steps, grads, strict=True)]
            wanted[0, t, head] = mlp(weights, problem.q[0, t, head], problem, head)
    assert_output(problem, wanted)


def linear(chunk_size: int, **rule: Any) -> Problem:
    """One matrix from zero, without norm, residual and momentum, one gate per head."""
    problem = make_problem(
        time=37, depth=1, norm=False, gates="shared", residual=False, chunk_size=chunk_size, **rule
    )
    initial = tuple(0 * w for w in problem.initial)
    return replace(
        problem, momentum=0 * problem.momentum, forget=0 * problem.forget, initial=initial
    )


def assert_output(problem: Problem, wanted: Tensor) -> None:
    for backend in ("reference", "chunked"):
        torch.testing.assert_close(problem.run(backend)[0], wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [1, 4, 16, 64])
@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
def test_linear_attention(chunk_size: int, forget_toward: str) -> None:
    problem = linear(chunk_size, objective="dot", forget_toward=forget_toward)
    problem = replace(problem, step_size=torch.ones_like(problem.step_size))
    scores = torch.einsum("bthd,bshd->bhts", problem.q, problem.k).tril()
    assert_output(problem, torch.einsum("bhts,bshd->bthd", scores, problem.v))


@pytest.mark.parametrize("chunk_size", [1, 16])
def test_scalar_decay(chunk_size: int) -> None:
    """RetNet where the decay is constant, Mamba-2's SSD where data makes it."""
    problem = linear(chunk_size, objective="dot", forget_toward="zero")
    forget = torch.rand(problem.step_size.shape, dtype=torch.float64)
    problem = replace(problem, step_size=torch.ones_like(forget), forget=forget)
    logs = (1 - forget).log().cumsum(1).movedim(1, 2)  # [B, H, T]
    decay = (logs[..., None] - logs[..., None, :]).tril().exp().tril()
    scores = torch.einsum("bthd,bshd->bhts", problem.q, problem.k) * decay
    assert_output(problem, torch.einsum("bhts,bshd->bthd", scores, problem.v))


@pytest.mark.parametrize("chunk_size", [1, 4, 16, 64])
@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
def test_gated_linear_attention(chunk_size: int, forget_toward: str) -> None:
    problem = linear(
        chunk_size, objective="dot", forget_toward=forget_toward,
        channel_forget=True,
    )  # fmt: skip
    forget = torch.rand(problem.q.shape, dtype=torch.float64)
    problem = replace(problem, step_size=torch.ones_like(problem.step_size), forget=forget)
    memory, outputs = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    for t in range(problem.q.shape[1]):
        memory = memory * (1 - forget[:, t, :, None])
        memory = memory + torch.einsum("bho,bhi->bhoi", problem.v[:, t], problem.k[:, t])
        outputs.append(torch.einsum("bhoi,bhi->bho", memory, problem.q[:, t]))
    assert_output(problem, torch.stack(outputs, 1))


def delta_rule(problem: Problem, rate: Tensor) -> Tensor:
    """Reads of M_t = M_{t-1} (1 - rate k k^T) + rate v k^T, for a rate [B, T, H]."""
    memory = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    outputs = []
    for t in range(problem.q.shape[1]):
        k, v, r = problem.k[:, t], problem.v[:, t], rate[:, t, :, None]
        miss = v - torch.einsum("bhoi,bhi->bho", memory, k)
        memory = memory + torch.einsum("bho,bhi->bhoi", r * miss, k)
        outputs.append(torch.einsum("bhoi,bhi->bho", memory, problem.q[:, t]))
    return torch.stack(outputs, 1)


def test_deltanet() -> None:
    problem = linear(1)
    beta = torch.rand(problem.step_size.shape, dtype=torch.float64)
    problem = replace(problem, step_size=beta / 2)
    assert_output(problem, delta_rule(problem, beta))


def test_longhorn() -> None:
    problem = linear(1)
    beta = torch.rand(problem.step_size.shape, dtype=torch.float64)
    problem = replace(problem, k=2 * problem.k)
    rate = beta / (1 + beta * problem.k.square().sum(-1))
    assert_output(replace(problem, step_size=rate / 2), delta_rule(problem, rate))


def test_momentum_one_rotates() -> None:
    """On one key, matrix and surprise turn by a sixth of a circle with every token."""
    problem = linear(1)
    ones = torch.ones_like(problem.step_size)
    still = {
        name: x[:, :1].expand_as(x).contiguous()
        for name, x in (("q", problem.k), ("k", problem.k), ("v", problem.v))
    }
    problem = replace(problem, step_size=ones / 2, momentum=ones, **still)
    y, _ = problem.run()
    torch.testing.assert_close(y[:, 6:], y[:, :-6], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(y[:, 3:], y[:, :-3])
