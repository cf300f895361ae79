"""What mixes over time in a block, by name: the memory and its hybrids, attention, and the rivals.

B batch, T time, dim width of the model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from titans_core.attention import Attention, AttentionConfig
from titans_core.checks import check_numbers
from titans_core.context import MemoryAsContext
from titans_core.hybrids import (
    HybridConfig,
    MemoryAsGate,
    MemoryAsLayer,
    check_segment,
    check_window,
    windowed,
)
from titans_core.memory import MemoryConfig, NeuralMemory
from titans_core.segment_memory import SegmentConfig
from titans_core.systems import SYSTEMS, SystemConfig


@runtime_checkable
class Mixer(Protocol):
    """What a block needs of the layer that mixes over time: (x, state) -> (y, state).

    `mask` is False on padding, which stands on the right of a document; `reset` is True at a
    document's first token, and nothing passes it; `write=False` leaves the memory as it is.

    A state is nested tuples of tensors [B, ...]. `restart_memory` makes memories as before the first
    token, `restart_caches` all the rest: what it lets go on, as the same tensors, is what a memory
    file keeps. Fields of a cache that may grow along axis 1 are named by the tuple's `cached`; a field
    `settings` is a fingerprint of the mixer's configuration, and states of different ones never mix.
    """

    def __call__(
        self,
        x: Float[Tensor, "B T dim"],
        state: Any = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], Any]: ...

    def fresh_state(self, batch: int) -> Any: ...

    def restart_memory(self, state: Any) -> Any: ...

    def restart_caches(self, state: Any) -> Any: ...


MOST_LAYERS = 1024
"""Far beyond what anybody trains: a file that asks for more is not one to build a model from."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    dim: int = 128  # width of the model
    num_layers: int = 4  # blocks of a mixer and SwiGLU
    mixer: str = "lmm"  # one for all layers, or several with / between, which take turns
    ffn_dim: int | None = None  # hidden width of SwiGLU; None for 8/3 dim, rounded up to 32
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    segments: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("dim", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        if self.num_layers > MOST_LAYERS:
            raise ValueError(f"num_layers must be at most {MOST_LAYERS}: got {self.num_layers}.")
        check_mixer(self.mixer)
        if self.num_layers < len(self.mixers):
            raise ValueError(
                f"num_layers must be at least {len(self.mixers)}, one for each mixer of "
                f"{'/'.join(self.mixers)}: got {self.num_layers}."
            )
        if self.ffn_dim is not None and self.ffn_dim < 1:
            raise ValueError(f"ffn_dim must be at least 1, or None: got {self.ffn_dim}.")
        for name in self.mixers:
            self._check_layer(name)

    def _check_layer(self, name: str) -> None:
        windows = "mac" in name or name in ("mag", "mal", "swa", *RECURRENCES)
        if self.attention.window is not None and windows:
            raise ValueError(
                f"attention.window must be None where mixer is {name}: got "
                f"{self.attention.window}. It is hybrid.window in mag, mal and swa, and mac, rmt and "
                "armt see their segment."
            )
        if "mac" in name:
            check_segment(self.memory, self.hybrid)
        if name in ("mag", "mal"):
            check_window(self.hybrid.window, self.memory.conv_size, self.attention.conv_size)
        if name == "swa":
            check_window(self.hybrid.window, self.attention.conv_size)

    @property
    def mixers(self) -> tuple[str, ...]:
        """The mixers that take turns from layer to layer."""
        return mixers_of(self.mixer)

    def layer(self, index: int) -> "BackboneConfig":
        """The configuration as the layer of this index has it: with the one mixer that is its own."""
        return replace(self, mixer=self.mixers[index % len(self.mixers)])

    @property
    def grid(self) -> int:
        """A document begins at a multiple of this many tokens of its row."""
        return math.lcm(*(self._grid(name) for name in self.mixers))

    def _grid(self, name: str) -> int:
        if "mac" in name or name in RECURRENCES:
            return self.hybrid.segment_len
        return 1 if name in (*SYSTEMS, *CACHES) else self.memory.chunk_size

    @property
    def remembers(self) -> bool:
        """Whether any layer has a memory, and not a cache alone."""
        return any(name not in CACHES for name in self.mixers)

    @property
    def bounded(self) -> bool:
        """Whether a state stays as large as it is, however much is read."""
        return "attention" not in self.mixers or self.attention.window is not None


RECURRENCES = ("rmt", "armt")
"""Memories over the whole stack of attention, and no layers: see `titans_core.segments`."""

CACHES = ("attention", "swa")
"""Mixers whose state is a cache of what was read, and no memory."""

PATTERNS = {
    "samba": "mamba/swa",
    "gated-deltanet-h2": "mamba2/gated-deltanet/swa",
}
"""Compositions by their authors' names. arXiv 2406.07522, 2412.06464."""


def _context(config: BackboneConfig) -> MemoryAsContext:
    return MemoryAsContext(config.dim, config.memory, config.attention, config.hybrid)


def _memory_first(config: BackboneConfig) -> NeuralMemory:
    return NeuralMemory(config.dim, config.memory, config.hybrid.num_persistent)


def _windowed(config: BackboneConfig) -> Attention:
    return Attention(config.dim, windowed(config.attention, config.hybrid))


def _test_time(config: BackboneConfig, depth: int, step_size: float) -> NeuralMemory:
    """TTT, arXiv 2407.04620: its loss and its mini-batches, by gradient steps alone.

    Its step is divided by the tokens of the mini-batch so far, here by all of it, and by the width of a
    head, for which keys of length 1 stand here; half of it, since its loss has a factor of one half. Its
    memory's biases, which learn too, are left out.
    """
    memory = replace(
        config.memory, depth=depth, max_step_size=step_size / 2 / config.memory.chunk_size,
        gates="shared", momentum=False, forget="none", forget_per="head", inner_steps=1,
        max_surprise=None,
    )  # fmt: skip
    return NeuralMemory(config.dim, memory)


def _system(name: str) -> Callable[[BackboneConfig], nn.Module]:
    def build(config: BackboneConfig) -> nn.Module:
        heads = config.system.num_heads or config.memory.num_heads
        return SYSTEMS[name](config.dim, replace(config.system, num_heads=heads))

    return build


MIXERS: dict[str, Callable[[BackboneConfig], nn.Module]] = {
    "lmm": lambda config: NeuralMemory(config.dim, config.memory),
    "mac": _context,
    "mag": lambda config: MemoryAsGate(config.dim, config.memory, config.attention, config.hybrid),
    "mal": lambda config: MemoryAsLayer(config.dim, _memory_first(config), _windowed(config)),
    "mac+mal": lambda config: MemoryAsLayer(
        config.dim, _memory_first(config), _context(config), residual=True
    ),
    "attention": lambda config: Attention(config.dim, config.attention),
    "swa": _windowed,
    **{name: _system(name) for name in SYSTEMS},
    "ttt-linear": lambda config: _test_time(config, 1, 1.0),
    "ttt-mlp": lambda config: _test_time(config, 2, 0.1),
}


def mixers_of(mixer: str) -> tuple[str, ...]:
    """The mixers that take turns: those of a pattern a/b/c, in which compositions go by their names."""
    parts = mixer.split("/")
    return tuple(name for part in parts for name in PATTERNS.get(part, part).split("/"))


def check_mixer(mixer: Any) -> None:
    if mixer in RECURRENCES:
        return
    odd = (
        [mixer] if not isinstance(mixer, str) else [m for m in mixers_of(mixer) if m not in MIXERS]
    )
    if odd:
        among = "" if odd[0] == mixer else f" in {mixer!r}"
        raise ValueError(
            f"mixer must be one of {', '.join([*MIXERS, *PATTERNS, *RECURRENCES])}, or several of layers "
            f"with / between: got {odd[0]!r}{among}."
        )
