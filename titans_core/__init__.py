"""Neural long-term memory that learns while it reads, and the blocks and backbones built on it."""

from titans_core.attention import Attention, AttentionConfig
from titans_core.backbone import (
    MIXERS,
    Backbone,
    BackboneConfig,
    Mixer,
    count_parameters,
    decay_groups,
)
from titans_core.context import MemoryAsContext
from titans_core.hybrids import HybridConfig, MemoryAsGate, MemoryAsLayer
from titans_core.memory import MemoryConfig, NeuralMemory, NeuralMemoryState
from titans_core.memory_file import load_memory, save_memory
from titans_core.presets import PRESETS
from titans_core.state import detach, join, map_state, split, state_bytes

__version__ = "0.1.0"

__all__ = [
    "MIXERS",
    "PRESETS",
    "Attention",
    "AttentionConfig",
    "Backbone",
    "BackboneConfig",
    "HybridConfig",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MemoryConfig",
    "Mixer",
    "NeuralMemory",
    "NeuralMemoryState",
    "count_parameters",
    "decay_groups",
    "detach",
    "join",
    "load_memory",
    "map_state",
    "save_memory",
    "split",
    "state_bytes",
]
