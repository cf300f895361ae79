"""The state and the settings of the memory update.

B batch, T time, H memory heads, D width of a head, E hidden width of the memory MLP, L its layers.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Weights = tuple[Float[Tensor, "B H _out _in"], ...]
"""One matrix per layer of the memory MLP, for every row and head."""

InitialWeights = tuple[Float[Tensor, "H _out _in"], ...]
"""M_{-1}: one matrix per layer and head, shared by the batch, learned by the outer optimiser."""

Norm = tuple[Float[Tensor, "H D"], Float[Tensor, "H D"]]
"""Gain and bias of the layer norm that ends the memory MLP."""


class MemoryState(NamedTuple):
    """What a memory carries from one call to the next.

    The weights are kept as what was added to the value that forgetting returns to: with
    `forget_toward="initial"` the memory itself is `M_{-1} + memory`, so that a carried state is
    small, exact, and lets M_{-1} go on learning; with `"zero"` it is `memory`. A row whose position
    is a multiple of the chunk size has `chunk_memory` equal to `memory`, and so has every pass.
    """

    memory: Weights
    chunk_memory: Weights
    surprise: Weights
    position: Int[
        Tensor, " B"
    ]  # tokens written since the row's start, on the device of the weights
    passes: tuple[
        tuple[Weights, Weights], ...
    ] = ()  # memory, surprise of all but the last inner step


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """The settings of the inner update; part of a trained model, never changed afterwards."""

    chunk_size: int = 16
    residual: bool = True
    activation: Literal["gelu", "silu"] = "gelu"
    objective: Literal["l2", "dot"] = "l2"
    forget_toward: Literal["initial", "zero"] = "initial"
    max_surprise: float | None = None
    inner_steps: int = 1  # gradients per token, each at the memory that the one before has left
    channel_forget: bool = False  # `forget` per channel [B, T, H, D], not per head or layer

    def __post_init__(self) -> None:
        for name in ("chunk_size", "inner_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be an integer: got {value!r}.")
        if self.chunk_size < 1:
            raise ValueError(
                f"chunk_size must be a positive number of tokens: got {self.chunk_size}."
            )
        # What float32 rounds to 0 would be no clamp.
        smallest = torch.finfo(torch.float32).tiny
        if self.max_surprise is not None and not self.max_surprise >= smallest:
            raise ValueError(
                f"max_surprise must be a norm of at least {smallest:.1e}, or None for no clamp: got "
                f"{self.max_surprise}."
            )
        if self.inner_steps not in (1, 2, 3):
            raise ValueError(f"inner_steps must be 1, 2 or 3: got {self.inner_steps}.")
        for name, allowed in (
            ("activation", ("gelu", "silu")),
            ("objective", ("l2", "dot")),
            ("forget_toward", ("initial", "zero")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}: got {getattr(self, name)!r}.")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state and accumulation: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fresh_state(
    initial: InitialWeights, batch: int, *, rule: UpdateRule, start: MemoryState | None = None
) -> MemoryState:
    """The state before the first token: M_{-1} with no surprise, or a copy of `start` for each row."""
    if start is not None:
        memory = tuple(w.expand(batch, *w.shape[1:]) for w in start.memory)
        surprise = tuple(w.expand(batch, *w.shape[1:]) for w in start.surprise)
    else:
        dtype = state_dtype(initial[0].dtype)
        zero = tuple(w.new_zeros((batch, *w.shape), dtype=dtype) for w in initial)
        surprise = zero
        memory = (
            zero
            if rule.forget_toward == "initial"
            else tuple(w.to(dtype).expand(batch, *w.shape) for w in initial)
        )
    position = torch.zeros(batch, dtype=torch.long, device=initial[0].device)
    passes = ((memory, surprise),) * (rule.inner_steps - 1)
    return MemoryState(memory, memory, surprise, position, passes)


def begin_document(rows: Bool[Tensor, " B"], start: MemoryState, state: MemoryState) -> MemoryState:
    """The state with a document begun at its start, in the rows that say so."""
    return state._replace(
        memory=rows_where(rows, start.memory, state.memory),
        surprise=rows_where(rows, start.surprise, state.surprise),
        position=torch.where(rows, 0, state.position),
    )


def begin_chunk(rows: Bool[Tensor, " B"], state: MemoryState) -> MemoryState:
    """The state with a chunk begun at its memory, in the rows that say so."""
    memory, surprise = state.memory, state.surprise
    passes = tuple(
        (rows_where(rows, memory, m), rows_where(rows, surprise, s)) for m, s in state.passes
    )
    return state._replace(chunk_memory=rows_where(rows, memory, state.chunk_memory), passes=passes)


def rows_where(
    condition: Bool[Tensor, " B"],
    chosen: tuple[Float[Tensor, "#B H _out _in"], ...],
    other: Weights,
) -> Weights:
    """Per row of the batch: `chosen`, perhaps one row for all, where the condition holds, else `other`."""
    keep = condition[:, None, None, None]
    return tuple(torch.where(keep, a, b) for a, b in zip(chosen, other, strict=True))


def first_phase(
    position: Tensor, mask: Tensor | None, reset: Tensor | None, size: int
) -> Int[Tensor, " B"]:
    """Where in its chunk of `size` tokens each row's first token stands.

    A row that begins in the gap behind a document stands where the next document needs it: the
    state counts what was written, and does not know how much of the gap has passed.
    """
    phase = position % size
    if reset is None:
        return phase
    anchored = reset[:, 0] if mask is None else reset[:, 0] | (reset.any(1) & ~mask[:, 0])
    return torch.where(anchored, -reset.int().argmax(1) % size, phase)
