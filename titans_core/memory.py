"""The neural memory as a layer: it trains an MLP on what it reads, and reads from it.

B batch, T time, H memory heads, D width of a head, E hidden width of the memory MLP, L its layers.
Source: arXiv 2501.00663, section 3, and its NeurIPS 2025 version; `docs/choices.md` lists what the
paper leaves open and what was chosen.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from titans_core.checks import (
    check_call,
    check_numbers,
    check_state,
    fingerprint,
    frozen_reset,
    pattern_of,
)
from titans_core.convolution import CausalConvolution
from titans_kernels import (
    MemoryState,
    UpdateRule,
    fresh_state,
    memory_read,
    memory_update,
    momentary_surprise,
)
from titans_kernels.memory_update.native import decodes, layer_token

MOST_DEPTH = 64
"""Far beyond what anybody trains: a file that asks for more is not one to build a memory from."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The neural memory. Its heads' width is the model's divided by `num_heads`."""

    num_heads: int = 4  # memories side by side
    depth: int = 2  # layers of the memory MLP
    expansion: int = 4  # hidden width of the memory MLP, by that of its head
    chunk_size: int = 16  # tokens whose gradients are taken at one memory; part of a trained model
    conv_size: int = 4  # tokens that the convolutions of q, k and v see; 0 for none
    max_step_size: float = 0.1  # largest inner learning rate, which starts at half of it
    gates: Literal["layer", "shared"] = "layer"  # one per memory layer, or one for all of them
    momentum: bool = True  # whether past surprise is carried on
    forget: Literal["initial", "zero", "none"] = "initial"  # what forgetting returns to
    forget_per: Literal["head", "channel"] = "head"  # "head" has layers of its own as `gates` says
    inner_steps: int = 1  # gradient steps per token
    max_surprise: float | None = 1.0  # norm that a token's gradient is cut to; None for no clamp

    def __post_init__(self) -> None:
        check_numbers(self, "memory.")
        for name in ("num_heads", "depth", "expansion", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"memory.{name} must be at least 1: got {getattr(self, name)}.")
        if self.depth > MOST_DEPTH:
            raise ValueError(f"memory.depth must be at most {MOST_DEPTH}: got {self.depth}.")
        if self.conv_size < 0 or self.conv_size == 1:
            raise ValueError(f"memory.conv_size must be 0 or at least 2: got {self.conv_size}.")
        largest = torch.finfo(torch.float32).max
        if not 0 < self.max_step_size <= largest:
            raise ValueError(
                "memory.max_step_size must be positive and finite in float32: got "
                f"{self.max_step_size}."
            )
        if self.max_surprise is not None and not 0 < self.max_surprise <= largest:
            raise ValueError(
                "memory.max_surprise must be positive and finite in float32, or none: got "
                f"{self.max_surprise}."
            )
        if self.forget not in ("initial", "zero", "none"):
            raise ValueError(
                f"memory.forget must be 'initial', 'zero' or 'none': got {self.forget!r}."
            )
        if self.gates not in ("layer", "shared"):
            raise ValueError(f"memory.gates must be 'layer' or 'shared': got {self.gates!r}.")
        if self.forget_per not in ("head", "channel"):
            raise ValueError(
                f"memory.forget_per must be 'head' or 'channel': got {self.forget_per!r}."
            )
        if self.forget_per == "channel" and self.forget == "none":
            raise ValueError(
                "memory.forget_per must be 'head' where memory.forget is 'none': got 'channel'."
            )
        if self.inner_steps not in (1, 2, 3):
            raise ValueError(f"memory.inner_steps must be 1, 2 or 3: got {self.inner_steps}.")

    def rule(self) -> UpdateRule:
        return UpdateRule(
            chunk_size=self.chunk_size,
            forget_toward="zero" if self.forget == "zero" else "initial",
            max_surprise=self.max_surprise,
            inner_steps=self.inner_steps,
            channel_forget=self.forget_per == "channel",
        )


class NeuralMemoryState(NamedTuple):
    memory: MemoryState
    conv_tail: Float[Tensor, "B S C"] | None
    settings: str  # fingerprint of the mixer's configuration


FORGET_BIAS = -4.6
"""Forget starts near 0.01 per token: sigmoid(0) would erase half of the memory at every token."""

MOMENTUM_BIAS = 1.0


class Recall(nn.Module):
    """The memory itself, [B, T, dim] to [B, T, dim]: every token is written, then the memory is read.

    `start` is a state of one row (see `read_first`) that stands before every document, instead of
    the learned initial memory alone. `settings` is the fingerprint of the mixer that it stands in.
    """

    no_decay = ("initial", "norm_gain", "norm_bias", "gates")

    def __init__(self, dim: int, config: MemoryConfig, settings: str) -> None:
        super().__init__()
        if dim % config.num_heads:
            raise ValueError(
                f"dim must be a multiple of memory.num_heads = {config.num_heads}: got {dim}."
            )
        self.config, self.rule, self.settings = config, config.rule(), settings
        heads, width = config.num_heads, dim // config.num_heads
        self.shape = (heads, width)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = CausalConvolution(3 * dim, config.conv_size) if config.conv_size else None
        per_head = config.depth if config.gates == "layer" else 1
        self.gate_sizes = {"step_size": per_head}
        if config.momentum:
            self.gate_sizes["momentum"] = per_head
        if config.forget != "none":
            self.gate_sizes["forget"] = width if config.forget_per == "channel" else per_head
        self.gates = nn.Linear(dim, heads * sum(self.gate_sizes.values()))
        sizes = [width, *[config.expansion * width] * (config.depth - 1), width]
        self.initial = nn.ParameterList(
            torch.empty(heads, outside, inside) for inside, outside in pairwise(sizes)
        )
        self.norm_gain = nn.Parameter(torch.ones(heads, width))
        self.norm_bias = nn.Parameter(torch.zeros(heads, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for w in self.initial:
            nn.init.normal_(w, std=1 / math.sqrt(w.shape[-1]))
        # Small weights: a gate starts at its bias, and learns to depend on the token.
        nn.init.normal_(self.gates.weight, std=0.1 / math.sqrt(self.gates.in_features))
        biases = {"step_size": 0.0, "momentum": MOMENTUM_BIAS, "forget": FORGET_BIAS}
        with torch.no_grad():
            for name, bias in self._split_gates(self.gates.bias).items():
                bias.fill_(biases[name])

    def fresh_memory(self, batch: int, start: NeuralMemoryState | None = None) -> MemoryState:
        """Memory, surprise and write position before the first token."""
        memory = None if start is None else start.memory
        return fresh_state(tuple(self.initial), batch, rule=self.rule, start=memory)

    def fresh_state(self, batch: int, start: NeuralMemoryState | None = None) -> NeuralMemoryState:
        """The state before the first token."""
        tail = None
        if start is not None and start.conv_tail is not None:
            tail = start.conv_tail.expand(batch, -1, -1)
        elif self.conv is not None:
            tail = self.conv.fresh_tail(batch, self.qkv.weight)
        return NeuralMemoryState(self.fresh_memory(batch, start), tail, self.settings)

    def read_first(self, persistent: Float[Tensor, "N dim"]) -> NeuralMemoryState:
        """The state of one row that has read tokens which stand before every document."""
        # Not by a call: those who listen to the memory hear of the text alone.
        state = self.forward(persistent[None], self.fresh_state(1))[1]
        # The text has a chunk grid of its own, which begins with its first token.
        return state._replace(memory=self.fresh_memory(1, state))

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: NeuralMemoryState,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
        start: NeuralMemoryState | None = None,
    ) -> tuple[Float[Tensor, "B T dim"], NeuralMemoryState]:
        if write and mask is None and reset is None and self.decodes(x):
            return self.one_token(x, state)
        before = None if start is None else start.conv_tail
        q, k, v, tail = self._project(x, state.conv_tail, mask, reset, before)
        norm = (self.norm_gain, self.norm_bias)
        initial = tuple(self.initial)
        if write:
            y, memory = memory_update(
                q, k, v, *self._gates(x), initial,
                rule=self.rule, norm=norm, mask=mask, reset=reset, state=state.memory,
                start=None if start is None else start.memory,
            )  # fmt: skip
        else:
            if reset is not None:
                raise frozen_reset()
            memory = state.memory
            y = memory_read(q, memory, initial, rule=self.rule, norm=norm)
        return y.flatten(2).to(x.dtype), NeuralMemoryState(memory, tail, self.settings)

    def decodes(self, x: Float[Tensor, "B T dim"], out: tuple[Tensor, ...] = ()) -> bool:
        """Whether `one_token` can do what `forward` would, without gradients, mask and reset.

        `out` are the weights behind its `out`. Those who listen to the memory are called at every token.
        """
        if x.shape[1] != 1 or self.conv is None or torch.is_autocast_enabled(x.device.type):
            return False
        if self._forward_pre_hooks:
            return False
        initial = tuple(self.initial)
        weights = (
            self.qkv.weight, self.conv.weight, self.gates.weight, self.norm_gain, self.norm_bias,
            *initial, *out,
        )  # fmt: skip
        return decodes(x, weights, len(initial), rule=self.rule)

    def one_token(
        self,
        x: Float[Tensor, "B 1 dim"],
        state: NeuralMemoryState,
        out: tuple[Float[Tensor, "H D"], Float[Tensor, "B 1 dim"]] | None = None,
    ) -> tuple[Float[Tensor, "B 1 dim"], NeuralMemoryState]:
        """`forward` in few steps, where `decodes` says so.

        With `out`, the outputs are normed, times the gain in it, and gated.
        """
        assert self.conv is not None
        assert state.conv_tail is not None
        y, tail, memory = layer_token(
            self.qkv(x), state.conv_tail, self.conv.weight, self.gates(x), self.gate_sizes,
            self.config.max_step_size, tuple(self.initial),
            rule=self.rule, norm=(self.norm_gain, self.norm_bias), state=state.memory, out=out,
        )  # fmt: skip
        return y.flatten(2), NeuralMemoryState(memory, tail, self.settings)

    @torch.no_grad()
    def surprise(
        self, x: Float[Tensor, "B T dim"], start: NeuralMemoryState | None = None
    ) -> Float[Tensor, "B T H L"]:
        """Momentary surprise of each token as the memory reads on from a fresh state."""
        return self.surprise_from(x, self.fresh_state(x.shape[0], start))

    @torch.no_grad()
    def surprise_from(
        self, x: Float[Tensor, "B T dim"], state: NeuralMemoryState
    ) -> Float[Tensor, "B T H L"]:
        """Momentary surprise of each token as the memory reads on from a state.

        All rows stand at the same place of a chunk.
        """
        size = self.config.chunk_size
        places = {int(p) % size for p in state.memory.position}
        if len(places) > 1:
            raise ValueError(
                f"state must have all rows at one place of a chunk: got {sorted(places)}. Take the "
                "rows one by one."
            )
        first = size - places.pop()
        rest = x[:, first:].split(size, 1) if x.shape[1] > first else ()
        norms = []
        for piece in (x[:, :first], *rest):
            _, k, v, _ = self._project(piece, state.conv_tail)
            norms.append(
                momentary_surprise(
                    k,
                    v,
                    state.memory,
                    tuple(self.initial),
                    rule=self.rule,
                    norm=(self.norm_gain, self.norm_bias),
                )  # fmt: skip
            )
            # Not by a call, of which those who listen to the memory would hear.
            _, state = self.forward(piece, state)
        return torch.cat(norms, 1)

    def _project(
        self,
        x: Tensor,
        tail: Tensor | None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v [B, T, H, D], with q and k of length 1."""
        qkv = self.qkv(x)
        if self.conv is not None and tail is not None:
            qkv, tail = self.conv(qkv, tail, mask=mask, reset=reset, start=start)
        q, k, v = F.silu(qkv).unflatten(-1, (3, *self.shape)).unbind(2)
        return unit_length(q), unit_length(k), v, tail

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """step_size, momentum, forget, each [B, T, H, L or 1], forget per channel [B, T, H, D]."""
        # A sigmoid near 1 has no precision left in bf16.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(self.gates.weight.dtype), self.gates.weight, self.gates.bias)
            gates = self._split_gates(torch.sigmoid(logits))
        step_size = gates["step_size"]
        off = torch.zeros_like(step_size)
        momentum, forget = gates.get("momentum", off), gates.get("forget", off)
        return step_size * self.config.max_step_size, momentum, forget

    def _split_gates(self, gates: Tensor) -> dict[str, Tensor]:
        """[..., H G] by kind, each [..., H, its size]."""
        heads = self.shape[0]
        parts = gates.split([heads * size for size in self.gate_sizes.values()], -1)
        return {
            name: part.unflatten(-1, (heads, -1))
            for name, part in zip(self.gate_sizes, parts, strict=True)
        }


def unit_length(x: Tensor) -> Tensor:
    # The epsilon stands inside the root, whose derivative at 0 is infinite.
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class NeuralMemory(nn.Module):
    """Maps [B, T, dim] to [B, T, dim]: what the memory recalls, normed, gated and projected.

    With `num_persistent`, the memory reads as many learned tokens before every document.
    """

    no_decay = ("out_norm", "persistent")

    def __init__(self, dim: int, config: MemoryConfig, num_persistent: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recall = Recall(dim, config, fingerprint(config, num_persistent))
        self.persistent = persistent_tokens(num_persistent, dim)
        self.out_gate = nn.Linear(dim, dim, bias=False)
        self.out_norm = nn.Parameter(torch.ones(self.recall.shape))
        self.out = nn.Linear(dim, dim, bias=False)
        self._pattern = pattern_of(self.recall.fresh_state(1))

    def fresh_state(self, batch: int) -> NeuralMemoryState:
        """The state before the first token."""
        return self.recall.fresh_state(batch, self._start())

    def restart_memory(self, state: NeuralMemoryState) -> NeuralMemoryState:
        """The state with memory, surprise and write position as before the first token."""
        batch = len(state.memory.position)
        return state._replace(memory=self.recall.fresh_memory(batch, self._start()))

    def restart_caches(self, state: NeuralMemoryState) -> NeuralMemoryState:
        """The state with the convolution as before the first token; the memory goes on."""
        fresh = self.fresh_state(len(state.memory.position))
        return state._replace(conv_tail=fresh.conv_tail)

    def _start(self) -> NeuralMemoryState | None:
        return None if self.persistent is None else self.recall.read_first(self.persistent)

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: NeuralMemoryState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], NeuralMemoryState]:
        """Outputs and the state after them. `write=False` reads the memory as it is (frozen)."""
        check_call(x, self.out.weight, mask, reset)
        if state is not None:
            check_state(state, self._pattern, x)
        start = self._start() if state is None or reset is not None else None
        if state is None:
            state = self.recall.fresh_state(x.shape[0], start)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        out = (self.out_norm, self.out_gate.weight)
        if write and mask is None and reset is None and self.recall.decodes(x, out):
            y, state = self.recall.one_token(x, state, (self.out_norm, self.out_gate(x)))
            return self.out(y), state
        y, state = self.recall(x, state, mask=mask, reset=reset, write=write, start=start)
        y = F.rms_norm(y.unflatten(-1, self.recall.shape), self.recall.shape[-1:], eps=1e-5)
        y = (y * self.out_norm).flatten(2) * F.silu(self.out_gate(x))
        return self.out(y), state

    def surprise(self, x: Float[Tensor, "B T dim"]) -> Float[Tensor, "B T H L"]:
        """Momentary surprise of each token as the memory reads on from a fresh state."""
        return self.recall.surprise(x, self._start())


def persistent_tokens(count: int, dim: int) -> nn.Parameter | None:
    """Learned tokens of the size that a norm gives to the text's, or None for none."""
    return nn.Parameter(torch.randn(count, dim)) if count else None
