"""A pair that is written into every memory of a model, and what the memories recall of it later."""

from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_core import map_state
from titans_core.memory import NeuralMemoryState, Recall
from titans_domains.language.model import LanguageModel
from titans_kernels import MemoryState, memory_read, memory_update

CHUNKS_WRITTEN = 4
Pair = tuple[Tensor, Tensor]  # key and value, each [1, 1, H, D]


def each_memory(state: Any, change: Callable[[MemoryState], MemoryState]) -> Any:
    """The state with every memory in it changed, in the order of the model's `Recall` modules."""
    if isinstance(state, MemoryState):
        return change(state)
    if not isinstance(state, tuple):
        return state
    parts = [each_memory(part, change) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def memories_of(state: Any) -> list[MemoryState]:
    found: list[MemoryState] = []
    each_memory(state, lambda memory: found.append(memory) or memory)
    return found


def recalls_of(model: LanguageModel) -> list[Recall]:
    return [module for module in model.modules() if isinstance(module, Recall)]


def pair_of(recall: Recall, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, 1, *recall.shape, generator=generator)
    return F.normalize(k, dim=-1), v


def store(recall: Recall, memory: MemoryState, pair: Pair) -> MemoryState:
    """The memory with the pair written into the first of its two rows."""
    size = CHUNKS_WRITTEN * recall.rule.chunk_size
    k, v = (x.expand(2, size, -1, -1) for x in pair)
    step, off = k.new_full(k.shape[:3], recall.config.max_step_size), k.new_zeros(k.shape[:3])
    forget = k.new_zeros(k.shape) if recall.rule.channel_forget else off
    after = memory_update(
        k, k, v, step, off, forget, tuple(recall.initial),
        rule=recall.rule, norm=(recall.norm_gain, recall.norm_bias), state=memory,
        mask=torch.tensor([[True], [False]]).expand(2, size),
    )[1]  # fmt: skip
    # The text begins a chunk of its own, with nothing under way.
    return after._replace(position=memory.position, surprise=memory.surprise)


def recalled(recall: Recall, memory: MemoryState, pair: Pair) -> Tensor:
    """What both rows answer at the key, [2, H, D]."""
    return memory_read(
        pair[0].expand(2, -1, -1, -1), memory, tuple(recall.initial),
        rule=recall.rule, norm=(recall.norm_gain, recall.norm_bias),
    )[:, 0]  # fmt: skip


def drift(recalls: list[Recall], pairs: list[Pair], began: Any, state: Any) -> dict[str, float]:
    """Means over memories and heads."""
    error, without, left = [], [], []
    for recall, pair, first, memory in zip(
        recalls, pairs, memories_of(began), memories_of(state), strict=True
    ):
        y, value = recalled(recall, memory, pair), pair[1][0, 0]
        errors = (y - value).norm(dim=-1) / value.norm(dim=-1)  # [2, H]
        error.append(errors[0].mean().item())
        without.append(errors[1].mean().item())
        written = recalled(recall, first, pair).diff(dim=0)
        share = (y.diff(dim=0) * written).sum(-1) / written.square().sum(-1)
        left.append(share.mean().item())
    return {"error": mean(error), "error without": mean(without), "left": mean(left)}


class Listener:
    """Keeps what the memories read, and from which state on, while it is asked to."""

    def __init__(self, recalls: list[Recall]) -> None:
        self.calls: list[tuple[Recall, Tensor, NeuralMemoryState]] = []
        self.on = False
        for recall in recalls:
            recall.register_forward_pre_hook(self.hear)

    def hear(self, recall: Any, inputs: tuple[Any, ...]) -> None:
        if self.on:
            self.calls.append((recall, *inputs[:2]))

    def surprise(self) -> float:
        """Mean momentary surprise of the second row in what was heard."""
        calls, self.calls, self.on = self.calls, [], False  # what follows is read again
        return mean(
            recall.surprise(x[1:], map_state(lambda part: part[1:], state)).mean().item()
            for recall, x, state in calls
        )
