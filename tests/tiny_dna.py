"""DNA models and data that are small enough for tests."""

import random

import numpy as np
import torch

from titans_core import AttentionConfig, BackboneConfig, HybridConfig, MemoryConfig
from titans_domains.dna.encoder import Direction, ModelConfig, Strands
from titans_domains.dna.heads import HeadConfig
from titans_domains.dna.model import SequenceNetwork
from titans_domains.dna.stem import StemConfig
from titans_domains.dna.tokenizers import NucleotideTokenizer

CPU = torch.device("cpu")
TOKENIZER = NucleotideTokenizer()


def tiny_model(
    mixer: str = "lmm",
    *,
    strands: Strands = "one",
    direction: Direction = "both",
    pool: int = 3,
    positions: int = 40,
    num_layers: int = 1,
    dropout: float = 0.0,
) -> ModelConfig:
    return ModelConfig(
        stem=StemConfig(size=5, depth=2, channels=8, pool=pool if direction == "both" else 1),
        backbone=BackboneConfig(
            dim=8,
            num_layers=num_layers,
            mixer=mixer,
            ffn_dim=16,
            memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=4),
            attention=AttentionConfig(num_heads=2),
            hybrid=HybridConfig(num_persistent=2, window=8, segment_len=8, num_retrieved=4),
        ),
        head=HeadConfig(positions=positions, slots=2, place_channels=4, hidden=8, kmers=3),
        strands=strands,
        direction=direction,
        dropout=dropout,
    )


def network(config: ModelConfig, outputs: int = 2) -> SequenceNetwork:
    """A network in float64 whose every part has some effect."""
    model = SequenceNetwork(config, TOKENIZER, outputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


def sequences(count: int, shortest: int = 1, longest: int = 40, seed: int = 0) -> list[str]:
    lots = random.Random(seed)
    return [
        "".join(lots.choices("ACGTN", [24, 24, 24, 24, 4], k=lots.randint(shortest, longest)))
        for _ in range(count)
    ]


def planted(count: int, seed: int = 0, length: int = 24) -> tuple[list[str], np.ndarray]:
    """TATAAT early in a sequence (class 1) or late (class 0): only its place tells them apart."""
    lots = random.Random(seed)
    found, labels = [], []
    for number in range(count):
        letters = lots.choices("ACGT", k=length)
        label = number % 2
        start = lots.randint(2, 5) if label else lots.randint(length - 11, length - 8)
        letters[start : start + 6] = "TATAAT"
        found.append("".join(letters))
        labels.append(label)
    return found, np.array(labels)
