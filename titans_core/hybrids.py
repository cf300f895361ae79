"""Memory beside attention (MAG) and memory before it (MAL): eq. 26-31 of arXiv 2501.00663.

B batch, T time, N persistent tokens.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from titans_core.attention import Attention, AttentionConfig, AttentionCore, AttentionState
from titans_core.checks import (
    check_call,
    check_kind,
    check_numbers,
    check_settings,
    check_state,
    fingerprint,
    pattern_of,
)
from titans_core.memory import (
    MemoryConfig,
    NeuralMemory,
    NeuralMemoryState,
    Recall,
    persistent_tokens,
)


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """How memory and attention stand together; the defaults are the paper's."""

    num_persistent: int = 128  # learned tokens that do not depend on the input
    window: int = 2048  # MAG, MAL: tokens that a token attends to, itself among them
    segment_len: int = 512  # MAC: tokens that attend to each other
    # MAC: token i's retrieval is seen from token i on, or a segment is given the last retrievals
    # that the segment before it asked for.
    retrieve: Literal["aligned", "previous"] = "aligned"
    num_retrieved: int = 256  # MAC, retrieve=previous: retrievals that a segment is given
    num_previous: int = 0  # MAC: tokens of the segment before that attention sees too

    def __post_init__(self) -> None:
        check_numbers(self, "hybrid.")
        for name in ("window", "segment_len", "num_retrieved"):
            if getattr(self, name) < 1:
                raise ValueError(f"hybrid.{name} must be at least 1: got {getattr(self, name)}.")
        for name in ("num_persistent", "num_previous"):
            if getattr(self, name) < 0:
                raise ValueError(f"hybrid.{name} must be 0 or more: got {getattr(self, name)}.")
        if self.retrieve not in ("aligned", "previous"):
            raise ValueError(
                f"hybrid.retrieve must be 'aligned' or 'previous': got {self.retrieve!r}."
            )
        if self.num_previous > self.segment_len:
            raise ValueError(
                f"hybrid.num_previous must be at most hybrid.segment_len = {self.segment_len}: "
                f"got {self.num_previous}."
            )
        if self.retrieve == "previous" and self.num_retrieved > self.segment_len:
            raise ValueError(
                f"hybrid.num_retrieved must be at most hybrid.segment_len = {self.segment_len}, "
                f"since it counts queries of one segment: got {self.num_retrieved}."
            )


def check_segment(memory: MemoryConfig, hybrid: HybridConfig) -> None:
    """MAC's segments are made of whole chunks."""
    if hybrid.segment_len % memory.chunk_size:
        raise ValueError(
            f"hybrid.segment_len must be a multiple of memory.chunk_size = {memory.chunk_size}: "
            f"got {hybrid.segment_len}."
        )


def check_window(window: int, *conv_sizes: int) -> None:
    """MAG's and MAL's attention sees no less than their convolutions do."""
    if window < max(conv_sizes):
        raise ValueError(
            f"hybrid.window must be at least the convolution's size = {max(conv_sizes)}: "
            f"got {window}."
        )


def windowed(attention: AttentionConfig, hybrid: HybridConfig) -> AttentionConfig:
    return replace(attention, window=hybrid.window)


class Norm(nn.RMSNorm):
    """RMS norm in its gain's precision or better: under autocast torch's own warns of two of them."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class MemoryAsGateState(NamedTuple):
    attention: AttentionState
    memory: NeuralMemoryState


class MemoryAsGate(nn.Module):
    """MAG: sliding-window attention and the memory side by side, one gating the other.

    Persistent tokens are seen by every token's attention, and read by the memory before every
    document.
    """

    no_decay = ("persistent",)

    def __init__(
        self, dim: int, memory: MemoryConfig, attention: AttentionConfig, hybrid: HybridConfig
    ) -> None:
        super().__init__()
        check_window(hybrid.window, memory.conv_size, attention.conv_size)
        settings = fingerprint(memory, attention, hybrid)
        self.persistent = persistent_tokens(hybrid.num_persistent, dim)
        self.attention = AttentionCore(dim, windowed(attention, hybrid), settings)
        self.recall = Recall(dim, memory, settings)
        self.attention_norm = Norm(dim)
        self.recall_norm = Norm(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        self._pattern = pattern_of(
            MemoryAsGateState(self.attention.fresh_state(1), self.recall.fresh_state(1))
        )

    def _start(self) -> NeuralMemoryState | None:
        return None if self.persistent is None else self.recall.read_first(self.persistent)

    def fresh_state(self, batch: int) -> MemoryAsGateState:
        memory = self.recall.fresh_state(batch, self._start())
        return MemoryAsGateState(self.attention.fresh_state(batch), memory)

    def restart_memory(self, state: MemoryAsGateState) -> MemoryAsGateState:
        """The state with memory, surprise and write position as before the first token."""
        batch = len(state.attention.position)
        fresh = self.recall.fresh_memory(batch, self._start())
        return state._replace(memory=state.memory._replace(memory=fresh))

    def restart_caches(self, state: MemoryAsGateState) -> MemoryAsGateState:
        """The state with convolutions and attention as before the first token; the memory goes on."""
        fresh = self.recall.fresh_state(len(state.attention.position), self._start())
        return MemoryAsGateState(
            self.attention.restart_caches(state.attention),
            state.memory._replace(conv_tail=fresh.conv_tail),
        )

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: MemoryAsGateState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], MemoryAsGateState]:
        check_call(x, self.out.weight, mask, reset)
        if state is not None:
            check_state(state, self._pattern, x, self.attention.most_cached)
        start = self._start() if state is None or reset is not None else None
        if state is None:
            state = MemoryAsGateState(
                self.attention.fresh_state(len(x)), self.recall.fresh_state(len(x), start)
            )
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        y, attention = self.attention(
            x, state.attention, mask=mask, reset=reset, persistent=self.persistent
        )
        m, memory = self.recall(x, state.memory, mask=mask, reset=reset, write=write, start=start)
        y = self.attention_norm(y) * F.silu(self.recall_norm(m))
        return self.out(y), MemoryAsGateState(attention, memory)


class MemoryAsLayerState(NamedTuple):
    memory: NeuralMemoryState
    then: Any
    settings: str  # of the layer itself; each part has its own


class MemoryAsLayer(nn.Module):
    """MAL: the memory layer, and another mixer over what it gives out.

    In the paper that mixer is sliding-window attention. Persistent tokens are read by the memory
    before every document. With `residual` the two are sublayers: what comes in is added to what
    the second reads, and what the first gives out to the result.
    """

    def __init__(
        self, dim: int, memory: NeuralMemory, then: nn.Module, *, residual: bool = False
    ) -> None:
        super().__init__()
        if isinstance(then, Attention) and then.config.window is not None:
            check_window(then.config.window, memory.config.conv_size)
        self.memory = memory
        self.norm = Norm(dim)
        self.then = then
        self.residual = residual
        self.settings = fingerprint({"residual": residual})

    def fresh_state(self, batch: int) -> MemoryAsLayerState:
        memory, then = self.memory.fresh_state(batch), self._then.fresh_state(batch)
        return MemoryAsLayerState(memory, then, self.settings)

    def restart_memory(self, state: MemoryAsLayerState) -> MemoryAsLayerState:
        """The state with every memory as before the first token."""
        return state._replace(
            memory=self.memory.restart_memory(state.memory),
            then=self._then.restart_memory(state.then),
        )

    def restart_caches(self, state: MemoryAsLayerState) -> MemoryAsLayerState:
        """The state with convolutions and attention as before the first token; memories go on."""
        return state._replace(
            memory=self.memory.restart_caches(state.memory),
            then=self._then.restart_caches(state.then),
        )

    @property
    def _then(self) -> Any:
        return self.then

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: MemoryAsLayerState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], MemoryAsLayerState]:
        check_call(x, self.norm.weight, mask, reset)
        memory, then = None, None
        if state is not None:
            check_kind(state, MemoryAsLayerState)
            check_settings(state.settings, self.settings)
            memory, then = state.memory, state.then
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        m, memory = self.memory(x, memory, mask=mask, reset=reset, write=write)
        between = self.norm(x + m if self.residual else m)
        y, then = self.then(between, then, mask=mask, reset=reset, write=write)
        y = m + y if self.residual else y
        return y, MemoryAsLayerState(memory, then, self.settings)
