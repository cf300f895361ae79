"""Functions on states: nested tuples of tensors that go into a model and come out of it.

A state is a value: nothing changes it in place. So a fork is the same state used twice, a state kept
is a way back, and rows can be taken out of a batch and put into another. A frozen read is `write=False`
of the model; its `restart_memory` and `restart_caches` make either half of a state anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from titans_core.attend import EMPTY, pad_time

StateT = TypeVar("StateT")


def map_state(function: Callable[[Tensor], Tensor], state: StateT) -> StateT:
    """The same nested tuples with `function` applied to every tensor."""

    def visit(node: Any) -> Any:
        if isinstance(node, Tensor):
            return function(node)
        return _rebuilt(node, map(visit, node)) if isinstance(node, tuple) else node

    return visit(state)


def detach(state: StateT) -> StateT:
    """The state cut off from the graph that made it, so that gradients stop there."""
    return map_state(lambda x: x.detach(), state)


def state_bytes(state: Any) -> int:
    """Bytes of all tensors of a state."""
    return sum(x.numel() * x.element_size() for x in named_tensors(state).values())


def named_tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a state by its place: fields by their names, parts of plain tuples by number."""
    if isinstance(state, Tensor):
        return {name: state}
    return {
        inner: x
        for key, child in _children(state)
        for inner, x in named_tensors(child, f"{name}.{key}" if name else key).items()
    }


def replace_tensors(state: StateT, tensors: Mapping[str, Tensor]) -> StateT:
    """The state with the tensors that `tensors` has by the same name; the others stay."""

    def visit(node: Any, name: str) -> Any:
        if isinstance(node, Tensor):
            return tensors.get(name, node)
        parts = (visit(child, f"{name}.{key}" if name else key) for key, child in _children(node))
        return _rebuilt(node, parts) if isinstance(node, tuple) else node

    return visit(state, "")


def cache_names(state: Any, name: str = "") -> set[str]:
    """The names of tensors that hold a place for each cached token along axis 1."""
    found = {f"{name}.{key}" if name else key for key in getattr(state, "cached", ())}
    for key, child in _children(state):
        found |= cache_names(child, f"{name}.{key}" if name else key)
    return found


def settings_of(state: Any, name: str = "") -> dict[str, str]:
    """The fingerprints that parts of a state carry, as `settings`, of what made them, by their places."""
    ours = getattr(state, "settings", None)
    found = {name: ours} if isinstance(ours, str) else {}
    for key, child in _children(state):
        found |= settings_of(child, f"{name}.{key}" if name else key)
    return found


def join(states: Sequence[StateT]) -> StateT:
    """The rows of several states in one batch, in their order. Each goes on as it would alone.

    Shorter caches are padded in front with empty places; rows may stand anywhere in their documents.
    What was cached under autocast and what is fresh meet in the wider of their dtypes.
    """
    if not states:
        raise ValueError("join needs at least one state: got none.")
    named = [named_tensors(state) for state in states]
    caches = cache_names(states[0])
    for other in named[1:]:
        _check_alike(named[0], other, caches)
    if any(settings_of(state) != settings_of(states[0]) for state in states):
        raise ValueError(
            "states must be of models with the same settings to be joined: these differ in chunk "
            "size, window or the like. Join what one model gave back."
        )
    joined = {
        name: _joined([tensors[name] for tensors in named], name in caches) for name in named[0]
    }
    return replace_tensors(states[0], joined)


def split(state: StateT) -> list[StateT]:
    """One state for each row: what `join` has joined, without the empty places in front.

    Each holds its own numbers alone, so that a row that is kept does not keep the batch.
    """
    return [take_row(state, row) for row in range(rows_of(state))]


def rows_of(state: Any) -> int:
    """How many rows a state has; ValueError where its tensors differ in that."""
    rows = sorted({len(x) for x in named_tensors(state).values()})
    if len(rows) != 1:
        raise ValueError(f"state must have one number of rows in all its tensors: got {rows}.")
    return rows[0]


def take_row(state: StateT, row: int) -> StateT:
    """One of the states that `split` gives."""
    at = slice(row, row + 1)

    def take(node: Any, empty: int = 0) -> Any:
        if isinstance(node, Tensor):
            return (node[at, empty:] if empty else node[at]).clone()
        if not isinstance(node, tuple):
            return node
        cached = getattr(node, "cached", ())
        empty = int(_empty_places(node)[row]) if cached else 0
        return _rebuilt(
            node, (take(child, empty if key in cached else 0) for key, child in _children(node))
        )

    return take(state)


def trim(state: StateT) -> StateT:
    """The state without the places in front that are empty in every row."""
    if isinstance(state, Tensor) or not isinstance(state, tuple):
        return state
    cached: tuple[str, ...] = getattr(state, "cached", ())
    empty = int(_empty_places(state).min()) if cached else 0
    return _rebuilt(
        state,
        (x[:, empty:] if key in cached else trim(x) for key, x in _children(state)),
    )


def _empty_places(node: Any) -> Tensor:
    """How many places in front of each row's cache are empty [B]."""
    return (node.at == EMPTY).int().cumprod(1).sum(1)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, tuple):
        names = getattr(node, "_fields", None) or map(str, range(len(node)))
        yield from zip(names, node, strict=True)


def _rebuilt(node: tuple[Any, ...], children: Any) -> Any:
    return type(node)(*children) if hasattr(node, "_fields") else tuple(children)


def _check_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], caches: set[str]) -> None:
    """ValueError for two states that no one model has made."""

    def kind(tensors: dict[str, Tensor], name: str) -> str:
        if (x := tensors.get(name)) is None:
            return "nothing"
        shape = ["B", *(["S"] if name in caches else []), *x.shape[1 + (name in caches) :]]
        # Under autocast what is cached has the dtype of the layers, and not of the weights.
        narrow = x.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float32 if narrow else x.dtype
        return f"[{', '.join(map(str, shape))}] {dtype} on {x.device}"

    for name in {**ours, **theirs}:
        if kind(ours, name) != kind(theirs, name):
            raise ValueError(
                f"states must be of one model, dtype and device to be joined: {name} is "
                f"{kind(ours, name)} in the first, {kind(theirs, name)} in another."
            )


def _joined(parts: list[Tensor], cached: bool) -> Tensor:
    if cached:
        longest = max(x.shape[1] for x in parts)
        fill = 0 if parts[0].is_floating_point() else EMPTY
        parts = [pad_time(x, longest - x.shape[1], 0, fill) for x in parts]
    # The wider of two dtypes is what torch.cat gives out.
    return torch.cat(parts)
