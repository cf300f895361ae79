"""Random inputs for the memory update, and the comparison of two ways to compute it.

B batch, T time, H memory heads, D width of a head, E hidden width, L layers of the memory MLP.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from titans_kernels import MemoryState, UpdateRule, memory_update

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference from the reference, relative to a tensor's largest entry."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "forget_toward": ("initial", "zero"),
    "gates": ("layer", "shared"),
    "norm": (True, False),
    "residual": (True, False),
    "activation": ("gelu", "silu"),
    "objective": ("l2", "dot"),
    "max_surprise": (None, 0.5),
    "carried": (True, False),
}

STREAMS = ("q", "k", "v", "step_size", "momentum", "forget", "mask", "reset")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All that `memory_update` takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    step_size: Tensor
    momentum: Tensor
    forget: Tensor
    initial: tuple[Tensor, ...]
    rule: UpdateRule
    norm: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None
    state: MemoryState | None = None
    start: MemoryState | None = None

    def run(self, backend: str = "chunked") -> tuple[Tensor, MemoryState]:
        arguments = {f.name: getattr(self, f.name) for f in fields(self)}
        return memory_update(**arguments, backend=backend)

    def tokens(self, first: int, last: int, state: MemoryState | None = None) -> "Problem":
        """The problem of tokens first to last - 1, from another state."""
        pieces = {
            name: x[:, first:last] for name in STREAMS if (x := getattr(self, name)) is not None
        }
        return replace(self, state=state, **pieces)

    def row(self, index: int) -> "Problem":
        """The problem of one row alone."""
        rows = {
            name: x[index : index + 1] for name in STREAMS if (x := getattr(self, name)) is not None
        }
        state = None if self.state is None else state_row(self.state, index)
        return replace(self, state=state, **rows)


def make_problem(
    *,
    batch: int = 2,
    time: int = 33,
    heads: int = 2,
    width: int = 4,
    hidden: int = 6,
    depth: int = 2,
    norm: bool = True,
    gates: str = "layer",
    carried: bool = False,
    started: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    largest_step: float = 0.1,
    largest_forget: float = 0.1,
    **rule: Any,
) -> Problem:
    """Unit keys and queries, and gates; `carried` goes on from the middle of a stream."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def gate(largest: float) -> Tensor:
        shape = (batch, time, heads, depth) if gates == "layer" else (batch, time, heads)
        return largest * torch.rand(*shape, generator=generator, dtype=torch.float64)

    def forget_gate() -> Tensor:
        if not rule.get("channel_forget"):
            return gate(largest_forget)
        shape = (batch, time, heads, width)
        return largest_forget * torch.rand(*shape, generator=generator, dtype=torch.float64)

    sizes = [width, *[hidden] * (depth - 1), width]
    shapes = [(heads, o, i) for i, o in pairwise(sizes)]

    def state(rows: int) -> MemoryState:
        scale = {"initial": 0.1, "zero": 0.5}[rule.get("forget_toward", "initial")]

        def weights() -> tuple[Tensor, ...]:
            return tuple(scale * normal(rows, *shape) for shape in shapes)

        memory, held, surprise = weights(), weights(), weights()
        position = torch.randint(0, 40, (rows,), generator=generator)
        passes = tuple((weights(), weights()) for _ in range(rule.get("inner_steps", 1) - 1))
        return MemoryState(memory, held, surprise, position, passes)

    problem = Problem(
        q=unit(normal(batch, time, heads, width)),
        k=unit(normal(batch, time, heads, width)),
        v=normal(batch, time, heads, width),
        step_size=gate(largest_step),
        momentum=gate(0.9),
        forget=forget_gate(),
        initial=tuple(normal(*shape) / shape[-1] ** 0.5 for shape in shapes),
        norm=(1 + 0.1 * normal(heads, width), 0.1 * normal(heads, width)) if norm else None,
        rule=UpdateRule(**rule),
        state=state(batch) if carried else None,
        start=state(1) if started else None,
    )
    return convert(problem, lambda x: x.to(dtype) if x.is_floating_point() else x)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def convert(node: Any, function: Any) -> Any:
    """The same problem, state or tuple with `function` applied to every tensor."""
    if isinstance(node, Tensor):
        return function(node)
    if isinstance(node, Problem):
        return replace(
            node, **{f.name: convert(getattr(node, f.name), function) for f in fields(node)}
        )
    if isinstance(node, tuple):
        children = [convert(child, function) for child in node]
        return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
    return node


def named(node: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a problem, state or tuple by its place."""
    if isinstance(node, Tensor):
        return {name: node}
    if isinstance(node, Problem):
        children = {f.name: getattr(node, f.name) for f in fields(node)}
    elif isinstance(node, dict):
        children = {f"{name}.{key}": child for key, child in node.items()}
    elif isinstance(node, tuple):
        keys = getattr(node, "_fields", range(len(node)))
        children = {f"{name}.{key}": child for key, child in zip(keys, node, strict=True)}
    else:
        return {}
    return {n: x for key, child in children.items() for n, x in named(child, key).items()}


def values_and_gradients(
    problem: Problem, backend: str, autocast: bool = False
) -> dict[str, Tensor]:
    """Output, final state, and the gradient of a random weighting of them by every input.

    `autocast` is that of the forward alone.
    """
    problem = convert(problem, lambda x: x.detach().clone().requires_grad_(x.is_floating_point()))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y, state = problem.run(backend)
    found = {"y": y, **named(state, "final")}
    generator = torch.Generator().manual_seed(1)
    loss = y.new_zeros(())
    for x in found.values():
        if x.is_floating_point():
            weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            loss = loss + (x * weights.to(x.dtype)).sum()
    inputs = {n: x for n, x in named(problem).items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    for (name, x), grad in zip(inputs.items(), grads, strict=True):
        found[f"gradient by {name}"] = torch.zeros_like(x) if grad is None else grad
    return {name: x.detach() for name, x in found.items()}


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor equal up to `tolerance` times its largest entry, integers exactly."""
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        assert got[name].shape == x.shape, name
        if x.numel() == 0:
            continue
        if not x.is_floating_point():
            assert torch.equal(got[name], x), name
            continue
        # Below 1e-3, what is left of sums of terms of order one.
        error = (got[name] - x).abs().max() / x.abs().max().clamp_min(1e-3)
        assert error <= tolerance, f"{name}: off by {error:.1e} of its largest entry"


def assert_backends_agree(problem: Problem, tolerance: float | None = None) -> None:
    wanted = values_and_gradients(problem, "reference")
    got = values_and_gradients(problem, "chunked")
    assert_close(got, wanted, tolerance or TOLERANCES[problem.q.dtype])


def assert_same_result(
    got: tuple[Tensor, Any], wanted: tuple[Tensor, Any], tolerance: float = 1e-10
) -> None:
    """Equal output and equal state."""
    assert_close(named(got), named(wanted), tolerance)


def assert_same_bits(got: Any, wanted: Any) -> None:
    """Of tensors, tuples and tables of them; None is the same as None."""
    if got is None:
        assert wanted is None
        return
    got, wanted = named(got), named(wanted)
    assert got
    assert got.keys() == wanted.keys()
    for name, x in got.items():
        assert torch.equal(x, wanted[name]), name


def state_row(state: MemoryState, index: int) -> MemoryState:
    return convert(state, lambda x: x[index : index + 1])


def in_pieces(problem: Problem, cuts: list[int]) -> tuple[Tensor, MemoryState]:
    """Output and state of a stream fed piece by piece."""
    state, outputs = problem.state, []
    for first, last in zip([0, *cuts], [*cuts, problem.q.shape[1]], strict=True):
        y, state = problem.tokens(first, last, state).run()
        outputs.append(y)
    return torch.cat(outputs, 1), state
