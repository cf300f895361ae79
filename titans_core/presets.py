"""Named sizes: tiny and small for a laptop, the others the paper's (NeurIPS 2025 version, appendix).

Memory heads are 64 wide where the paper's 16 or 8 heads would be 48, 64, 96 or 256: a width that
kernels take whole.
"""

from titans_core.attention import AttentionConfig
from titans_core.hybrids import HybridConfig
from titans_core.memory import MemoryConfig
from titans_core.mixers import BackboneConfig


def _paper(num_layers: int, dim: int, num_heads: int) -> BackboneConfig:
    return BackboneConfig(
        dim=dim,
        num_layers=num_layers,
        memory=MemoryConfig(num_heads=dim // 64),
        attention=AttentionConfig(num_heads=num_heads),
    )


LAPTOP = HybridConfig(num_persistent=4, window=64, segment_len=64, num_retrieved=32)
"""An eighth of the paper's segment, for sequences an eighth as long."""

PRESETS: dict[str, BackboneConfig] = {
    "tiny": BackboneConfig(
        dim=64,
        num_layers=2,
        memory=MemoryConfig(num_heads=2),
        attention=AttentionConfig(num_heads=2),
        hybrid=LAPTOP,
    ),
    "small": BackboneConfig(dim=128, num_layers=4, hybrid=LAPTOP),
    "170m": _paper(12, 768, 16),
    "340m": _paper(24, 1024, 16),
    "760m": _paper(24, 1536, 16),
    "1.3b": _paper(18, 2048, 8),
}
