"""Hosts that are small enough for tests, and memories in them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from titans_core import (
    AttentionConfig,
    HybridConfig,
    MemoryConfig,
    added_parameters,
    attach,
)

tf = pytest.importorskip("transformers", reason="needs transformers")

VOCAB = 50
KINDS = ("gpt2", "llama", "qwen2", "qwen3")
SMALL: dict[str, Any] = {
    "memory": MemoryConfig(num_heads=2, chunk_size=4, expansion=2),
    "attention": AttentionConfig(num_heads=2),
    "hybrid": HybridConfig(num_persistent=3, window=5, segment_len=8, num_retrieved=4),
}


def host(
    kind: str = "gpt2", dtype: torch.dtype = torch.float64, width: int = 32, layers: int = 3
) -> Any:
    torch.manual_seed(1)
    if kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=VOCAB, n_embd=width, n_layer=layers, n_head=4, n_positions=32,
            bos_token_id=0, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        return tf.GPT2LMHeadModel(config).to(dtype).eval()
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
    config = getattr(tf, f"{names[kind]}Config")(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return getattr(tf, f"{names[kind]}ForCausalLM")(config).to(dtype).eval()


def moved(model: Any) -> Any:
    """The model with every added parameter off its start, so that the memory has its effect."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in added_parameters(model):
            p.add_(0.2 * torch.randn_like(p))
    return model


def attached(kind: str = "gpt2", mixer: str = "mac+mal", **given: Any) -> Any:
    return moved(attach(host(kind), mixer, given.pop("layers", [0, 2]), **{**SMALL, **given}))


def tokens(rows: int, length: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randint(1, VOCAB, (rows, length))


def close(a: Tensor, b: Tensor, atol: float = 1e-11) -> None:
    assert torch.allclose(a, b, rtol=0, atol=atol), (a - b).abs().max()
