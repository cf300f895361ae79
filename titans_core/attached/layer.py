"""What is added before a layer of the host: x + scale * mixer(norm(x)).

B batch, T time, dim width of the host.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core.attached.cached import memories_in
from titans_core.attached.host import Host
from titans_core.hybrids import Norm
from titans_core.mixers import MIXERS, BackboneConfig


class Padding(NamedTuple):
    """Where a row's tokens go so that padding stands on their right, as mixers have it."""

    order: Int[Tensor, "B T 1"]
    back: Int[Tensor, "B T 1"]
    mask: Bool[Tensor, "B T"]  # in the new order

    @classmethod
    def of(cls, mask: Bool[Tensor, "B T"]) -> "Padding":
        order = (~mask).int().sort(dim=1, stable=True).indices
        return cls(order[..., None], order.argsort(1)[..., None], mask.gather(1, order))


class AttachedMemory(nn.Module):
    """Maps [B, T, dim] to [B, T, dim]. The scale begins at zero, so that the host begins as it was."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = Norm(config.dim)
        self.mixer = MIXERS[config.mixer](config)
        self.scale = nn.Parameter(torch.zeros(config.dim))

    def forward(
        self, x: Float[Tensor, "B T dim"], state: Any = None, padding: Padding | None = None
    ) -> tuple[Float[Tensor, "B T dim"], Any]:
        inner, mask = x.to(self.scale.dtype), None
        if padding is not None:
            inner, mask = inner.take_along_dim(padding.order, 1), padding.mask
        y, state = self.mixer(self.norm(inner), state, mask=mask)
        y = self.scale * y
        if padding is not None:
            y = y.take_along_dim(padding.back, 1)
        return x + y.to(x.dtype), state


class Call(NamedTuple):
    """What the layers share in one call of the host."""

    cache: Any
    padding: Padding | None


@dataclass(eq=False)
class Attachment:
    """All that was added to a model."""

    host: Host
    config: BackboneConfig
    layers: tuple[int, ...]
    memories: list[AttachedMemory]
    trained: list[str]  # the host's parameters that were trained before
    handles: list[Any] = field(default_factory=list)
    call: Call | None = None

    def begin(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the host's stack: keeps what its layers are not given."""
        given = inspect.signature(stack.forward).bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"][..., 0] if tokens is None else tokens
        cache = given.get("cache")
        if cache is not None:
            memories_in(cache, self.host, self.layers, begun=False)
        mask = given.get("attention_mask")
        if mask is None:
            _check_one_document(given.get("position_ids"))
        self.call = Call(cache, _padding(mask, tokens.shape[1]))

    def end(self, *_: Any) -> None:
        """A hook after the host's stack."""
        self.call = None


class Hook:
    """Runs one memory before its layer, with the state that it finds in the cache."""

    def __init__(self, attachment: Attachment, index: int) -> None:
        self.attachment, self.index = attachment, index

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ours, call = self.attachment, self.attachment.call
        # Under gradient checkpointing a host does not hand its cache down; one that it makes itself is
        # seen only here.
        cache = call.cache if call and call.cache is not None else _cache_of(layer, args, kwargs)
        states: dict[int, Any] = {}
        if cache is not None:
            states = memories_in(cache, ours.host, ours.layers, begun=True).states
        memory = ours.memories[ours.layers.index(self.index)]
        x = args[0] if args else kwargs["hidden_states"]
        x, states[self.index] = memory(x, states.get(self.index), call and call.padding)
        # The others as they came: what stands in args and what in kwargs matters to checkpointing.
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})


def _cache_of(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return inspect.signature(layer.forward).bind_partial(*args, **kwargs).arguments.get("cache")


def _padding(mask: Any, time: int) -> Padding | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] < time:
        got = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            "attention_mask must be [B, T] with a flag for each token of this call and of the cache, "
            f"where a memory is attached: got {got}."
        )
    seen = mask[:, mask.shape[1] - time :].bool()
    return None if bool(seen.all()) else Padding.of(seen)


def _check_one_document(position_ids: Tensor | None) -> None:
    """Several documents in a row, which transformers tells by positions that begin again, are refused."""
    if position_ids is not None and bool((position_ids.diff(dim=-1) < 0).any()):
        raise ValueError(
            "position_ids must not begin again within a row where a memory is attached: got packed "
            "documents. Give each a row of its own, with an attention_mask."
        )
