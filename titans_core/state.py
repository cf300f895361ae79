"""Functions on states: nested tuples of tensors that go into a model and come out of it."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

StateT = TypeVar("StateT")


def map_state(function: Callable[[Tensor], Tensor], state: StateT) -> StateT:
    """The same nested tuples with `function` applied to every tensor."""

    def visit(node: Any) -> Any:
        if isinstance(node, Tensor):
            return function(node)
        if isinstance(node, tuple):
            children = [visit(child) for child in node]
            return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
        return node

    return visit(state)


def detach(state: StateT) -> StateT:
    """The state cut off from the graph that made it, so that gradients stop there."""
    return map_state(lambda x: x.detach(), state)


def state_bytes(state: Any) -> int:
    """Bytes of all tensors of a state."""
    total = 0

    def add(x: Tensor) -> Tensor:
        nonlocal total
        total += x.numel() * x.element_size()
        return x

    map_state(add, state)
    return total
