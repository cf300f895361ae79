"""Small mixers of every kind and setting, their streams, and the comparison of their states.

B batch, T time, dim width of the model.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from memory_problems import convert, named
from torch import Tensor, nn

from titans_core import (
    MIXERS,
    AttentionConfig,
    BackboneConfig,
    HybridConfig,
    MemoryConfig,
    SystemConfig,
)
from titans_core.attend import EMPTY
from titans_core.systems import SYSTEMS

DIM = 16
LENGTHS = (1, 15, 16, 17, 63, 100)
WINDOWS = (1, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Setting:
    mixer: str
    memory: dict[str, Any] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)
    hybrid: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)

    def config(self) -> BackboneConfig:
        memory = {"num_heads": 2, "expansion": 2, "chunk_size": 4, **self.memory}
        hybrid = {"num_persistent": 3, "window": 5, "segment_len": 8, "num_retrieved": 5}
        return BackboneConfig(
            dim=DIM,
            num_layers=1,
            mixer=self.mixer,
            memory=MemoryConfig(**memory),
            attention=AttentionConfig(**{"num_heads": 2, **self.attention}),
            hybrid=HybridConfig(**{**hybrid, **self.hybrid}),
            system=SystemConfig(**{"state_size": 6, **self.system}),
        )

    @property
    def grid(self) -> int:
        return self.config().grid

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The mixer with every parameter moved off its start, so that none is without effect."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mixer = MIXERS[self.mixer](self.config()).double()
            with torch.no_grad():
                for name, p in mixer.named_parameters():
                    p.add_(0.2 * torch.randn_like(p))
                    if name.endswith("gates.weight"):
                        p.mul_(3)
        return mixer.to(dtype)

    @property
    def bounded(self) -> bool:
        """The state does not grow with what was fed."""
        return self.config().bounded

    @property
    def remembers(self) -> bool:
        """There is a memory, and not a cache alone."""
        return self.config().remembers


SAMPLE = ("lmm", "mac", "mag", "mal", "mac+mal", "attention", "gated-deltanet", "mamba")
"""Mixers for what a domain adds to them, which is the same for all of their states."""

PLAIN: dict[str, Any] = {"momentum": False, "forget": "none", "conv_size": 0, "gates": "shared"}
GROUPED: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "conv_size": 3}
PREVIOUS: dict[str, Any] = {"retrieve": "previous", "num_previous": 3}

SETTINGS: dict[str, Setting] = {
    "lmm": Setting(mixer="lmm"),
    "lmm plain": Setting(mixer="lmm", memory={"depth": 1, "chunk_size": 1, **PLAIN}),
    "lmm deep": Setting(
        mixer="lmm",
        memory={
            "depth": 3,
            "chunk_size": 16,
            "forget": "zero",
            "max_surprise": None,
            "max_step_size": 0.01,
        },
    ),
    "lmm by channels": Setting(
        mixer="lmm", memory={"forget_per": "channel", "inner_steps": 2, "gates": "shared"}
    ),
    "mac": Setting(mixer="mac"),
    "mac plain": Setting(
        mixer="mac",
        memory={"depth": 1, **PLAIN},
        hybrid={"num_persistent": 0, "num_previous": 8},
    ),
    "mac aligned and previous": Setting(
        mixer="mac", attention=GROUPED, hybrid={"num_previous": 3, "segment_len": 12}
    ),
    "mac previous": Setting(mixer="mac", memory={"depth": 3}, attention=GROUPED, hybrid=PREVIOUS),
    "mac previous, whole": Setting(
        mixer="mac",
        memory={"forget": "zero", "max_step_size": 0.03, "chunk_size": 8, "conv_size": 0},
        hybrid={"retrieve": "previous", "num_retrieved": 8, "num_previous": 8, "num_persistent": 0},
    ),
    "mag": Setting(mixer="mag"),
    "mag grouped": Setting(
        mixer="mag",
        memory={"gates": "shared", "forget": "zero", "max_surprise": None, "max_step_size": 0.01},
        attention=GROUPED,
        hybrid={"num_persistent": 0},
    ),
    "mag both": Setting(
        mixer="mag", memory={"depth": 1}, attention=GROUPED, hybrid={"num_persistent": 6}
    ),
    "mal": Setting(mixer="mal", hybrid={"window": 7}),
    "mal plain": Setting(mixer="mal", memory={"depth": 3, **PLAIN}, hybrid={"num_persistent": 0}),
    "mac+mal": Setting(mixer="mac+mal", attention={"conv_size": 2}),
    "mac+mal previous": Setting(mixer="mac+mal", memory={"momentum": False}, hybrid=PREVIOUS),
    "attention": Setting(mixer="attention"),
    "attention grouped": Setting(mixer="attention", attention={**GROUPED, "window": 7}),
    "attention in a window": Setting(mixer="attention", attention={"window": 5}),
    "attention to itself": Setting(mixer="attention", attention={"window": 1}),
    "swa": Setting(mixer="swa", attention=GROUPED),
    **{name: Setting(mixer=name) for name in (*SYSTEMS, "ttt-linear", "ttt-mlp")},
    "gla wide": Setting(
        mixer="gla", system={"conv_size": 3, "key_expansion": 2.0, "value_expansion": 0.5}
    ),
    "gated-deltanet bare": Setting(
        mixer="gated-deltanet", system={"conv_size": 0, "num_heads": 4, "key_expansion": 1.0}
    ),
    "gsa of three slots": Setting(mixer="gsa", system={"num_slots": 3, "conv_size": 4}),
    "mamba bare": Setting(mixer="mamba", system={"conv_size": 0, "value_expansion": 1.0}),
}

FEW = {
    name: SETTINGS[name]
    for name in (
        "lmm deep",
        "mac",
        "mac previous",
        "mag both",
        "mal",
        "mac+mal",
        "attention grouped",
        "retnet",
        "gated-deltanet",
        "mamba",
        "gsa",
    )
}
"""For what takes long and does not hang on single settings."""


def inputs(batch: int, time: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, DIM, generator=generator, dtype=torch.float64)


def cuts_of(time: int, most: int = 6) -> st.SearchStrategy[list[int]]:
    """Places to cut, with empty pieces and single tokens among them."""
    cuts = st.lists(st.integers(0, time), max_size=most)
    # A prefill, then token by token.
    singles = st.integers(0, time).map(lambda n: list(range(n, min(n + 20, time))))
    return st.one_of(cuts, singles).map(sorted)


def in_pieces(
    mixer: nn.Module,
    x: Tensor,
    cuts: list[int],
    state: Any = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    **context: Any,
) -> tuple[Tensor, Any]:
    """Output and state of a stream fed piece by piece."""
    outputs = []
    for first, last in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        flags = {
            name: None if part is None else part[:, first:last]
            for name, part in (("mask", mask), ("reset", reset))
        }
        y, state = mixer(x[:, first:last], state, **flags, **context)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def right_padding(lengths: list[int], time: int) -> Tensor:
    return torch.arange(time) < torch.tensor(lengths)[:, None]


def middle(mixer: nn.Module, lengths: list[int], seed: int = 9) -> Any:
    """A state whose rows have read so many tokens each."""
    time = max(lengths)
    x = inputs(len(lengths), time, seed)
    return mixer(x, mask=right_padding(lengths, time))[1]


def row_of(state: Any, row: int) -> Any:
    return convert(state, lambda x: x[row : row + 1])


def held(state: Any) -> Any:
    """A state of one row without the empty places of its caches, of which rows beside it make more."""
    if not isinstance(state, tuple):
        return state
    if hasattr(state, "at"):
        full = state.at[0] != EMPTY
        places = {
            name: part[:, full]
            for name, part in state._asdict().items()
            if name in ("at", "keys", "values")
            or (name.startswith("retrieved") and state.asked is None)
        }
        state = state._replace(**places)
    children = [held(child) for child in state]
    return type(state)(*children) if hasattr(state, "_fields") else tuple(children)


def copied(node: Any) -> Any:
    return convert(node, lambda x: x.detach().clone())


def other_contents(state: Any, row: int, seed: int = 5) -> Any:
    """The state with all that rows other than `row` remember changed, and no position."""
    generator = torch.Generator().manual_seed(seed)

    def changed(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        noise[row] = 0
        return x + noise

    return convert(state, changed)


def memories(state: Any) -> dict[str, Tensor]:
    """Memory, surprise and write position of every memory in a state, and MAC's at its segment's start."""
    parts = (".memory.", ".segment_memory.")
    return {
        name: x
        for name, x in named(state).items()
        if any(part in name for part in parts) and "conv_tail" not in name
    }


def memory_states(state: Any) -> list[Any]:
    """Every `MemoryState` and every `RecurrentMemory` in a state."""
    if not isinstance(state, tuple):
        return []
    if hasattr(state, "chunk_memory") or hasattr(state, "parts"):
        return [state]
    return [found for child in state for found in memory_states(child)]


@dataclass(frozen=True)
class Packed:
    """Rows of documents, each of which begins on the grid."""

    x: Tensor
    mask: Tensor
    reset: Tensor
    places: list[list[tuple[int, int]]]  # first token and end of each row's documents


def packed(grid: int, seed: int = 0) -> Packed:
    """Three rows of documents of several lengths; the last row's does not begin with the row."""
    lengths = [[grid + 3, 2 * grid, 2], [1, 2 * grid + 1, grid], [3 * grid + 2]]
    time = 6 * grid + 1
    mask, reset = torch.zeros(2, 3, time, dtype=torch.bool).unbind()
    places = []
    for row, documents in enumerate(lengths):
        at, spans = (grid if row == 2 else 0), []
        for length in documents:
            spans.append((at, at + length))
            reset[row, at], mask[row, at : at + length] = True, True
            at += -(-length // grid) * grid
        places.append(spans)
    return Packed(inputs(3, time, seed), mask, reset, places)
