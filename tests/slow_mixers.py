"""The mixers once more, one token at a time, from the equations of arXiv 2501.00663 alone.

Slow on purpose and of another make than `titans_core`, of which only the parameters are used: lists of
what was read so far, explicit scores, rotary positions by complex numbers, the kernels' reference.
One row; every method takes a token [dim] and gives back one.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from small_mixers import Setting
from torch import Tensor, nn

from titans_core.attention import Heads
from titans_core.memory import Recall
from titans_kernels import MemoryState, fresh_state, memory_update


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


class Convolved:
    """The last values of a stream, weighted; or the stream itself without a convolution."""

    def __init__(self, convolution: nn.Module | None) -> None:
        self.weight: Any = None if convolution is None else convolution.weight
        self.past: list[Tensor] = []

    def token(self, x: Tensor) -> Tensor:
        self.past.append(x)
        if self.weight is None:
            return x
        size = self.weight.shape[1]
        terms = [
            self.weight[:, size - 1 - i] * y for i, y in enumerate(self.past[: -size - 1 : -1])
        ]
        return sum(terms, torch.zeros_like(x))


class SlowMemory:
    """Writes a token into the memory and reads it (eq. 12-15)."""

    def __init__(self, recall: Recall, persistent: Tensor | None = None) -> None:
        self.recall, self.conv = recall, Convolved(recall.conv)
        self.state: MemoryState = fresh_state(tuple(recall.initial), 1, rule=recall.rule)
        for p in () if persistent is None else persistent:
            self.token(p)
        # The text's grid begins with the text.
        self.state = self.state._replace(
            chunk_memory=self.state.memory, position=torch.zeros(1, dtype=torch.long)
        )

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        recall, config = self.recall, self.recall.config
        heads, width = recall.shape
        q, k, v = F.silu(self.conv.token(recall.qkv.weight @ x)).view(3, heads, width)
        gates = torch.sigmoid(recall.gates.weight @ x + recall.gates.bias)
        each = config.depth if config.gates == "layer" else 1
        count = heads * each
        step_size = gates[:count].view(heads, each) * config.max_step_size
        momentum = forget = torch.zeros_like(step_size)
        if config.momentum:
            momentum = gates[count : 2 * count].view(heads, each)
        if config.forget != "none":
            size = width if config.forget_per == "channel" else each
            forget = gates[-heads * size :].view(heads, size)
        if not write:
            return self.read(unit(q), self.state.memory)
        streams = (part[None, None] for part in (unit(q), unit(k), v, step_size, momentum, forget))
        y, self.state = memory_update(
            *streams, tuple(recall.initial), rule=recall.rule,
            norm=(recall.norm_gain, recall.norm_bias), state=self.state, backend="reference",
        )  # fmt: skip
        return y.flatten()

    def read(self, q: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        """f(M; q) of one query [H, D]."""
        x = q
        for layer, (w, base) in enumerate(zip(memory, self.recall.initial, strict=True)):
            whole = w[0] if self.recall.config.forget == "zero" else base + w[0]
            x = torch.einsum("hoi,hi->ho", whole, F.gelu(x) if layer else x)
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return (q + x * self.recall.norm_gain + self.recall.norm_bias).flatten()


class SlowMemoryLayer:
    """The memory as a layer of its own."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.memory = SlowMemory(self.layer.recall, self.layer.persistent)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        y = self.memory.token(x, write).view(self.layer.recall.shape)
        y = rms(y, self.layer.out_norm).flatten()
        return self.layer.out.weight @ (y * F.silu(self.layer.out_gate.weight @ x))


def turned(x: Tensor, place: int, base: float) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers, times e^(i place angle)."""
    a, b = x.chunk(2, -1)
    angles = place * base ** (-2 * torch.arange(a.shape[-1], dtype=x.dtype) / x.shape[-1])
    z = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def softmax_over(
    heads: Heads, q: Tensor, at: int, seen: list[tuple[Tensor, Tensor, int | None]]
) -> Tensor:
    """One softmax for each head over keys that stand at a place, or at none and are not turned."""
    outputs = []
    for head in range(heads.count):
        group = head // (heads.count // heads.kv_count)
        scores = []
        for k, _, place in seen:
            plain = place is None
            query = q[head] if plain else turned(q[head], at, heads.rope_base)
            key = k[group] if plain else turned(k[group], place or 0, heads.rope_base)
            scores.append(query @ key / math.sqrt(heads.width))
        weights = torch.stack(scores).softmax(0)
        outputs.append(sum(w * v[group] for w, (_, v, _) in zip(weights, seen, strict=True)))
    return torch.cat(outputs)  # type: ignore[arg-type]


class Projected:
    """Queries, keys and values of a stream."""

    def __init__(self, heads: Heads) -> None:
        self.heads, self.conv = heads, Convolved(heads.conv)

    def token(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.heads
        parts = self.conv.token(heads.qkv.weight @ x).view(-1, heads.width)
        q, k, v = parts.split([heads.count, heads.kv_count, heads.kv_count])
        return q, k, v

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of what is no part of the text."""
        heads = self.heads
        parts = (heads.qkv.weight @ x).view(-1, heads.width)[heads.count :]
        return parts[: heads.kv_count], parts[heads.kv_count :]


class SlowAttention:
    """Attention to persistent tokens, and to the last `window` ones."""

    def __init__(self, heads: Heads, window: int | None, persistent: Tensor | None = None) -> None:
        self.projected, self.window = Projected(heads), window
        tokens = () if persistent is None else persistent
        self.before = [(*self.projected.plain(p), None) for p in tokens]
        self.past: list[tuple[Tensor, Tensor, int]] = []

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        at = len(self.past)
        q, k, v = self.projected.token(x)
        self.past.append((k, v, at))
        recent = self.past if self.window is None else self.past[-self.window :]
        return softmax_over(self.projected.heads, q, at, [*self.before, *recent])


class SlowContext:
    """MAC, eq. 21-25."""

    def __init__(self, mixer: nn.Module) -> None:
        self.mixer: Any = mixer
        self.config = self.mixer.config
        self.projected = Projected(self.mixer.heads)
        self.memory = SlowMemory(self.mixer.recall)
        self.queries = Convolved(self.mixer.query_conv)
        tokens = () if self.mixer.persistent is None else self.mixer.persistent
        self.before = [(*self.projected.plain(p), None) for p in tokens]
        self.segment: list[tuple[Tensor, Tensor]] = []
        self.previous: list[tuple[Tensor, Tensor]] = []
        self.recalled: list[tuple[Tensor, Tensor, int]] = []
        self.asked: list[Tensor] = []
        if self.config.retrieve == "previous":
            self.asked = list(unit(self.mixer.first_asked))

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        mixer, config = self.mixer, self.config
        if len(self.segment) in (0, config.segment_len):
            self.begin_segment()
        i = len(self.segment)
        q, k, v = self.projected.token(x)
        self.segment.append((k, v))
        query = self.queries.token(mixer.query.weight @ x)
        self.asked.append(unit(F.silu(query).view(mixer.recall.shape)))  # eq. 21
        if config.retrieve == "aligned":
            self.recalled.append(self.recall(self.asked[-1], i))
        behind = self.previous[len(self.previous) - config.num_previous :]
        places = range(-len(behind), i + 1)
        near = [(k, v, at) for (k, v), at in zip([*behind, *self.segment], places, strict=True)]
        y = softmax_over(mixer.heads, q, i, [*self.before, *self.recalled, *near])  # eq. 22-23
        y = rms(y, mixer.attention_norm.weight)
        f = self.memory.token(y, write)  # eq. 24
        return mixer.out.weight @ (y * rms(f, mixer.recall_norm.weight))  # eq. 25

    def begin_segment(self) -> None:
        self.previous, self.segment, self.recalled = self.segment, [], []
        self.start = self.memory.state.memory
        if self.config.retrieve == "previous":
            count = self.config.num_retrieved
            last = self.asked[len(self.asked) - count :]
            self.recalled = [self.recall(query, n - count) for n, query in enumerate(last)]

    def recall(self, query: Tensor, at: int) -> tuple[Tensor, Tensor, int]:
        h = rms(self.memory.read(query, self.start), self.mixer.retrieved_norm.weight)
        return (*self.projected.plain(h), at)


class SlowGate:
    """MAG, eq. 26-28."""

    def __init__(self, mixer: nn.Module, window: int) -> None:
        self.mixer: Any = mixer
        self.attention = SlowAttention(self.mixer.attention.heads, window, self.mixer.persistent)
        self.memory = SlowMemory(self.mixer.recall, self.mixer.persistent)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        y = rms(self.attention.token(x), self.mixer.attention_norm.weight)
        m = rms(self.memory.token(x, write), self.mixer.recall_norm.weight)
        return self.mixer.out.weight @ (y * F.silu(m))


class SlowLayers:
    """MAL, eq. 29-31: the memory, then attention; or, as sublayers, the memory, then MAC."""

    def __init__(self, mixer: nn.Module, window: int) -> None:
        self.mixer: Any = mixer
        self.first = SlowMemoryLayer(self.mixer.memory)
        self.residual = not hasattr(self.mixer.then, "core")
        self.then: Any = (
            SlowContext(self.mixer.then) if self.residual else SlowWindow(self.mixer.then, window)
        )

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        m = self.first.token(x, write)
        between = rms(x + m if self.residual else m, self.mixer.norm.weight)
        y = self.then.token(between, write)
        return m + y if self.residual else y


class SlowWindow:
    """Attention as a layer of its own."""

    def __init__(self, mixer: nn.Module, window: int | None) -> None:
        self.mixer: Any = mixer
        self.attention = SlowAttention(self.mixer.core.heads, window)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        return self.mixer.out.weight @ self.attention.token(x)


def slow(setting: Setting, mixer: nn.Module) -> Any:
    window = setting.config().hybrid.window
    return {
        "lmm": lambda: SlowMemoryLayer(mixer),
        "mac": lambda: SlowContext(mixer),
        "mag": lambda: SlowGate(mixer, window),
        "mal": lambda: SlowLayers(mixer, window),
        "mac+mal": lambda: SlowLayers(mixer, window),
        "attention": lambda: SlowWindow(mixer, setting.config().attention.window),
        "swa": lambda: SlowWindow(mixer, window),
        "ttt-linear": lambda: SlowMemoryLayer(mixer),
        "ttt-mlp": lambda: SlowMemoryLayer(mixer),
    }[setting.mixer]()
