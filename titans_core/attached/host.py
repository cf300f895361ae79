"""The models that a memory can be attached to, and where their layers are."""

import inspect
from typing import Any, NamedTuple

from torch import nn

ARCHITECTURES = {
    "gpt2": ("transformer", "h"),
    "llama": ("model", "layers"),
    "qwen2": ("model", "layers"),
    "qwen3": ("model", "layers"),
}
"""By the model_type of the configuration: the stack inside a causal language model, and its layers."""


class Host(NamedTuple):
    kind: str
    stack: nn.Module
    layers: nn.ModuleList
    dim: int
    num_heads: int
    window: int  # tokens that its positions reach
    config: Any


def host_of(model: Any) -> Host:
    """The parts of a causal language model that is known; TypeError or ValueError for any other."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if not isinstance(model, nn.Module) or kind not in ARCHITECTURES:
        got = type(model).__name__ if kind is None else f"{type(model).__name__} of type {kind!r}"
        raise TypeError(
            f"model must be a causal language model of transformers, {', '.join(ARCHITECTURES)}: got "
            f"{got}. Load one with AutoModelForCausalLM."
        )
    stack, layers = ARCHITECTURES[kind]
    inner: Any = getattr(model, stack, None)
    if not hasattr(inner, layers) or not hasattr(model, "lm_head"):
        raise TypeError(
            f"model must be a causal language model: got {type(model).__name__}, which has no "
            f"{stack}.{layers} and lm_head. Load it with AutoModelForCausalLM."
        )
    found = getattr(inner, layers)
    _check_layer(found[0], config)
    return Host(
        kind, inner, found, config.hidden_size, config.num_attention_heads,
        config.max_position_embeddings, config,
    )  # fmt: skip


def _check_layer(layer: nn.Module, config: Any) -> None:
    if "cache" not in inspect.signature(layer.forward).parameters:
        raise TypeError(
            "model must be of a transformers whose layers take a `cache`, 5.24 or newer: got a "
            f"{type(layer).__name__} without. Install a newer transformers."
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError(
            "model must be a decoder alone: got a configuration with add_cross_attention=True. Attach "
            "a memory to a model without cross-attention."
        )
