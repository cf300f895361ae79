"""What the memories of a model meet while it reads: keys, values, gates and surprise of every token.

B batch, T time, H memory heads, D width of a head, L layers of the memory MLP, C channels that forget
by themselves (1, or D with forgetting per channel).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titans_core.memory import NeuralMemoryState, Recall
from titans_kernels import MemoryState, momentary_surprise


class Heard(NamedTuple):
    """Tokens in a row that one memory has read."""

    k: Float[Tensor, "B T H D"]
    v: Float[Tensor, "B T H D"]
    surprise: Float[Tensor, "B T H L"]  # norm of the gradient, before `max_surprise` clamps it
    before: Float[Tensor, "B T H L"]  # the same of the memory as it was before its first token
    step_size: Float[Tensor, "B T H L"]
    momentum: Float[Tensor, "B T H L"]
    forget: Float[Tensor, "B T H L"]  # per channel: the mean over channels
    channels: Float[Tensor, "B T H L C"]  # forget of each


def memories_of(model: nn.Module) -> dict[str, Recall]:
    """The neural memories of a model by the places where they stand, as `block 0`, from below."""
    return {
        _place(name): module for name, module in model.named_modules() if isinstance(module, Recall)
    }


def _place(name: str) -> str:
    """`backbone.blocks.0.mixer.memory.recall` is block 0 memory."""
    parts = name.split(".")
    if "blocks" not in parts:
        return name
    at = parts.index("blocks")
    return " ".join(["block", *parts[at + 1 : -1]]).replace(" mixer", "")


def memory_states(state: Any) -> list[NeuralMemoryState]:
    """The states of a model's neural memories, in the order of `memories_of`."""
    if isinstance(state, NeuralMemoryState):
        return [state]
    if not isinstance(state, tuple):
        return []
    return [found for part in state for found in memory_states(part)]


class Listener:
    """Hears a model read, each call going on where the one before has ended."""

    def __init__(self, memories: dict[str, Recall]) -> None:
        self.memories = memories
        self.after: dict[str, MemoryState] = {}  # each memory as the last call has left it
        self._heard: dict[str, list[Heard]] = {name: [] for name in memories}

    def take(self) -> dict[str, Heard]:
        """What was heard since it was taken last; a memory that read nothing is left out."""
        found = {
            name: Heard(*(torch.cat(parts, 1) for parts in zip(*calls, strict=True)))
            for name, calls in self._heard.items()
            if calls
        }
        self._heard = {name: [] for name in self.memories}
        return found

    def hear(self, name: str, x: Float[Tensor, "B T dim"], state: NeuralMemoryState) -> None:
        self._heard[name].append(heard(self.memories[name], x, state))

    def leave(self, name: str, state: NeuralMemoryState) -> None:
        self.after[name] = state.memory


@contextmanager
def listening(model: nn.Module) -> Iterator[Listener]:
    """Hears all that the model reads inside of it, without mask and resets, and writing."""
    listener = Listener(memories_of(model))
    with overhearing(model, listener.hear, listener.leave):
        yield listener


@contextmanager
def overhearing(
    model: nn.Module,
    hear: Callable[[str, Tensor, NeuralMemoryState], None],
    leave: Callable[[str, NeuralMemoryState], None] = lambda name, state: None,
) -> Iterator[None]:
    """Tells of each call of a memory inside of it: what it is to read, and its state before and after."""

    def hooks(name: str, recall: Recall) -> list[Any]:
        return [
            recall.register_forward_pre_hook(lambda _, inputs: hear(name, *inputs[:2])),
            recall.register_forward_hook(lambda _, inputs, outputs: leave(name, outputs[1])),
        ]

    handles = [handle for one in memories_of(model).items() for handle in hooks(*one)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def heard(recall: Recall, x: Float[Tensor, "B T dim"], state: NeuralMemoryState) -> Heard:
    """What the memory meets as it reads tokens on from a state; all rows stand at one place of a chunk."""
    _, k, v, _ = recall._project(x, state.conv_tail)
    surprise = recall.surprise_from(x, state)
    return Heard(k, v, surprise, _before(recall, k, v), *gates_of(recall, x))


def gates_of(
    recall: Recall, x: Float[Tensor, "B T dim"]
) -> tuple[Tensor, Tensor, Float[Tensor, "B T H L"], Float[Tensor, "B T H L C"]]:
    """Step size, momentum and forgetting of each token, for every layer of the memory MLP.

    Forgetting twice: its mean over channels, and of each channel.
    """
    depth = recall.config.depth
    step_size, momentum, forget = recall._gates(x)
    forget = forget[..., None, :] if recall.config.forget_per == "channel" else forget[..., None]
    channels = forget.expand(*forget.shape[:3], depth, -1)
    step_size, momentum = (gate.expand(*gate.shape[:3], depth) for gate in (step_size, momentum))
    return step_size, momentum, channels.mean(-1), channels


def _before(recall: Recall, k: Tensor, v: Tensor) -> Float[Tensor, "B T H L"]:
    return momentary_surprise(
        k, v, recall.fresh_memory(len(k)), tuple(recall.initial),
        rule=recall.rule, norm=(recall.norm_gain, recall.norm_bias),
    )  # fmt: skip
