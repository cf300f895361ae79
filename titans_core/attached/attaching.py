"""Adds memories to the layers of a model in place, and takes them away again."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from titans_core.attached.host import Host, host_of
from titans_core.attached.layer import AttachedMemory, Attachment, Hook
from titans_core.attention import AttentionConfig
from titans_core.hybrids import HybridConfig
from titans_core.memory import MemoryConfig
from titans_core.mixers import RECURRENCES, BackboneConfig

ModelT = TypeVar("ModelT")
Train = Literal["added", "all"]
NAME = "titans_memory"
"""Of the module inside a host's layer, and so in its state_dict."""

PLACE = "_titans_attachment"
HEAD_WIDTH = 64


def attach(
    model: ModelT,
    mixer: str = "mac+mal",
    layers: Sequence[int] | None = None,
    *,
    memory: MemoryConfig | None = None,
    attention: AttentionConfig | None = None,
    hybrid: HybridConfig | None = None,
    train: Train = "added",
) -> ModelT:
    """The model, with x + scale * mixer(norm(x)) before some of its layers (None: before all).

    At first the model computes what it did before. `train="added"` freezes the host's parameters. What
    is added is in float32 at least. Without `memory` and `attention`, heads of the memory are 64 wide
    where that divides the host's width, and attention has as many heads as the host's.
    """
    host = host_of(model)
    check_free(model)
    if train not in ("added", "all"):
        raise ValueError(f"train must be 'added' or 'all': got {train!r}.")
    chosen = check_layers(host, layers)
    if mixer in RECURRENCES:
        raise ValueError(
            f"mixer must be one that stands in a layer: got {mixer!r}, which is a memory over a whole "
            "stack. Take lmm, mac, mag, mal or mac+mal."
        )
    config = BackboneConfig(
        dim=host.dim,
        num_layers=len(chosen),
        mixer=mixer,
        memory=memory or _memory_for(host),
        attention=attention or _attention_for(host),
        hybrid=hybrid or HybridConfig(),
    )
    insert(model, host, config, chosen, build(host, config, chosen), train)
    return model


def check_layers(host: Host, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The indices of the layers, in order."""
    count = len(host.layers)
    if layers is None:
        return tuple(range(count))
    odd = [n for n in layers if type(n) is not int or not 0 <= n < count]
    if odd or not len(layers) or len(set(layers)) < len(layers):
        raise ValueError(
            f"layers must be one or more different numbers from 0 to {count - 1}, the layers of this "
            f"model: got {list(layers)}."
        )
    return tuple(sorted(layers))


def build(host: Host, config: BackboneConfig, layers: tuple[int, ...]) -> list[AttachedMemory]:
    """The memories of the chosen layers, each beside its layer's weights."""
    return [
        AttachedMemory(config.layer(n)).to(_place_of(host.layers[index]), _dtype_of(host))
        for n, index in enumerate(layers)
    ]


def insert(
    model: Any,
    host: Host,
    config: BackboneConfig,
    layers: tuple[int, ...],
    memories: list[AttachedMemory],
    train: Train,
) -> None:
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    ours = Attachment(host, config, layers, memories, trained)
    if train == "added":
        model.requires_grad_(False)
    ours.handles = [
        host.stack.register_forward_pre_hook(ours.begin, with_kwargs=True),
        host.stack.register_forward_hook(ours.end, always_call=True),
    ]
    for index, memory in zip(layers, memories, strict=True):
        layer = host.layers[index]
        layer.add_module(NAME, memory.train(layer.training))
        hook = Hook(ours, index)
        ours.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    setattr(model, PLACE, ours)


def detach_memory(model: ModelT) -> ModelT:
    """The model as it was before `attach`, but for what training has changed in its own weights."""
    ours = attachment_of(model)
    for handle in ours.handles:
        handle.remove()
    for index in ours.layers:
        delattr(ours.host.layers[index], NAME)
    delattr(model, PLACE)
    trained = set(ours.trained)
    assert isinstance(model, nn.Module)
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    return model


def added_parameters(model: Any) -> list[nn.Parameter]:
    """The parameters that `attach` has added."""
    return [p for memory in attachment_of(model).memories for p in memory.parameters()]


def attachment_of(model: Any) -> Attachment:
    ours = getattr(model, PLACE, None)
    if not isinstance(ours, Attachment):
        raise ValueError(
            f"model must have a memory attached: got a {type(model).__name__} without. Call attach or "
            "load_attached first."
        )
    return ours


def check_free(model: Any) -> None:
    if hasattr(model, PLACE):
        raise ValueError(
            "model must have no memory attached: this one has. Call detach_memory first."
        )


def _memory_for(host: Host) -> MemoryConfig:
    if host.dim % HEAD_WIDTH:
        return MemoryConfig()
    return MemoryConfig(num_heads=host.dim // HEAD_WIDTH)


def _attention_for(host: Host) -> AttentionConfig:
    return AttentionConfig(num_heads=host.num_heads)


def _place_of(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


def _dtype_of(host: Host) -> torch.dtype:
    kinds = [p.dtype for p in host.layers.parameters() if p.is_floating_point()]
    return torch.promote_types(kinds[0], torch.float32)
