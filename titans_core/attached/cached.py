"""The states of attached memories in the host's cache, where `generate` carries them along.

A cache is a list of layers, and every operation on it goes through all of them. The states stand in
one more, behind those of the host.
"""

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor

from titans_core.attached.host import Host
from titans_core.state import detach as detached
from titans_core.state import map_state


class Memories:
    """The states of all attached memories of a model, in the form of a layer of a cache."""

    keys = values = None
    is_initialized = supports_early_init = False
    is_compileable = is_croppable = is_sliding = False

    def __init__(self, layers: tuple[int, ...], config: Any) -> None:
        self.layers, self.config = layers, config
        self.states: dict[int, Any] = {}

    def mapped(self, function: Any) -> "Memories":
        """Others, whose states went through a function of a state."""
        other = copy.copy(self)
        other.states = {index: function(state) for index, state in self.states.items()}
        return other

    def _pick(self, rows: Tensor) -> None:
        self.states = self.mapped(
            lambda state: map_state(lambda x: x.index_select(0, rows.to(x.device)), state)
        ).states

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._pick(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._pick(torch.as_tensor(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.states = self.mapped(
            lambda state: map_state(lambda x: x.repeat_interleave(repeats, 0), state)
        ).states

    def crop(self, tokens_to_remove: int) -> NoReturn:
        raise ValueError(
            "A cache with an attached memory cannot be cropped, since the memory has learned from the "
            "tokens: decode without an assistant, or keep a copy of the cache to go back to."
        )

    def reset(self) -> None:
        self.states = {}

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1  # no maximum

    def offload(self) -> None:
        """A state is small beside the keys and values, and stays on its device."""

    def prefetch(self) -> None:
        """See `offload`."""


def memories_in(cache: Any, host: Host, layers: tuple[int, ...], *, begun: bool) -> Memories:
    """The states in a cache; new ones where it is empty, which it is not `begun` by this very call."""
    count = len(host.layers)
    _check_kind(cache, count)
    if len(cache.layers) > count:
        found = cache.layers[count]
        if not isinstance(found, Memories) or found.layers != layers:
            raise ValueError(
                "cache must come from this model: got one with a memory at other layers. Begin with "
                "a cache of its own."
            )
        return found
    if not begun and cache.get_seq_length() > 0:
        raise ValueError(
            f"cache must hold what the memory has learned: got one of {cache.get_seq_length()} "
            "tokens that were read without it. Read them again with the memory attached."
        )
    if cache.layer_class_to_replicate is not None:
        # Layers that are made when they are first used would be looked for behind ours.
        while len(cache.layers) < count:
            cache.layers.append(cache.layer_class_to_replicate())
    found = Memories(layers, host.config)
    cache.layers.append(found)
    return found


def _check_kind(cache: Any, count: int) -> None:
    layers = getattr(cache, "layers", None)
    static = isinstance(layers, list) and any(layer.is_compileable for layer in layers[:count])
    if not isinstance(layers, list) or static:
        raise TypeError(
            "cache must be one that grows, a DynamicCache of transformers: got "
            f"{type(cache).__name__}. Leave it out, and cache_implementation too."
        )


def empty_cache(memories: Memories) -> Any:
    """A cache without tokens, with these states."""
    from transformers import DynamicCache

    cache = DynamicCache(config=memories.config)
    cache.layers.append(memories)
    return cache


def carried(cache: Any, *, detach: bool = False) -> Any:
    """A new cache with the memories alone: the host begins anew at position 0, and they go on.

    What the memories' own convolutions and attention hold goes on too. The given cache stays as it is.
    With `detach`, gradients stop there.
    """
    layers = getattr(cache, "layers", None) or [None]
    memories = layers[-1]
    if not isinstance(memories, Memories):
        raise ValueError(
            f"cache must be one that a model with an attached memory gave back: got "
            f"{type(cache).__name__} without memories."
        )
    return empty_cache(memories.mapped(detached if detach else lambda state: state))
