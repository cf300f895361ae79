"""A state carried from one training sequence to the next: same numbers, and the start goes on learning."""

import dataclasses

import pytest
import torch

from titans_core import Backbone, BackboneConfig, HybridConfig, MemoryConfig
from titans_core.state import named_tensors

CONFIG = BackboneConfig(
    dim=16,
    num_layers=2,
    memory=MemoryConfig(num_heads=2),
    hybrid=HybridConfig(num_persistent=3, window=8, segment_len=32, num_retrieved=4),
)
MIXERS = ("lmm", "mac", "mag", "mal", "mac+mal")


def model_of(mixer: str, forget: str) -> Backbone:
    memory = dataclasses.replace(CONFIG.memory, forget=forget)
    return Backbone(dataclasses.replace(CONFIG, mixer=mixer, memory=memory)).double()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("forget", ["initial", "zero"])
def test_what_was_put_down_is_taken_up_again(mixer: str, forget: str) -> None:
    model = model_of(mixer, forget)
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    _, state = model(x[:, :40])
    held = model.put_down(state)
    assert not any(t.requires_grad for t in named_tensors(held).values())
    again, wanted = named_tensors(model.take_up(held)), named_tensors(state)
    for name, tensor in wanted.items():
        assert torch.allclose(again[name], tensor, rtol=0, atol=1e-12), name
    y, _ = model(x[:, 40:], model.take_up(held))
    assert torch.allclose(y, model(x[:, 40:], state)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("forget", ["initial", "zero"])
def test_the_start_learns_in_a_sequence_in_which_no_document_begins(
    mixer: str, forget: str
) -> None:
    model = model_of(mixer, forget)
    x = torch.randn(2, 72, 16, dtype=torch.float64)
    _, state = model(x[:, :40])
    y, _ = model(x[:, 40:], model.take_up(model.put_down(state)))
    y.square().sum().backward()
    for name, p in model.named_parameters():
        if ".initial." in name or name.endswith("persistent"):
            assert p.grad is not None, name
            assert p.grad.any(), name
