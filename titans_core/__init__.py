"""Neural long-term memory that learns while it reads, and the blocks and backbones built on it."""

from titans_core.attached import (
    Reading,
    added_parameters,
    attach,
    carried,
    detach_memory,
    load_attached,
    read,
    save_attached,
)
from titans_core.attention import Attention, AttentionConfig
from titans_core.backbone import Backbone, count_parameters, decay_groups
from titans_core.context import MemoryAsContext
from titans_core.hybrids import HybridConfig, MemoryAsGate, MemoryAsLayer
from titans_core.memory import MemoryConfig, NeuralMemory, NeuralMemoryState
from titans_core.memory_file import load_memory, save_memory
from titans_core.memory_store import MemoryStore
from titans_core.mixers import MIXERS, PATTERNS, BackboneConfig, Mixer
from titans_core.presets import PRESETS
from titans_core.segment_memory import SegmentConfig
from titans_core.segments import build_backbone
from titans_core.state import detach, join, map_state, split, state_bytes
from titans_core.systems import SystemConfig

__version__ = "0.1.0"

__all__ = [
    "MIXERS",
    "PATTERNS",
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
    "MemoryStore",
    "Mixer",
    "NeuralMemory",
    "NeuralMemoryState",
    "Reading",
    "SegmentConfig",
    "SystemConfig",
    "added_parameters",
    "attach",
    "build_backbone",
    "carried",
    "count_parameters",
    "decay_groups",
    "detach",
    "detach_memory",
    "join",
    "load_attached",
    "load_memory",
    "map_state",
    "read",
    "save_attached",
    "save_memory",
    "split",
    "state_bytes",
]
