"""Smaller layers that are like larger ones: fewer heads of the same width, and what a length must reach."""

import math
from dataclasses import replace

from titans_core.backbone import ffn_dim_of
from titans_core.mixers import CACHES, RECURRENCES, BackboneConfig
from titans_core.systems import SYSTEMS


def narrower(config: BackboneConfig, times: int) -> BackboneConfig:
    """The configuration with as few heads as there can be, times a number, of the same width."""
    memory, attention, system = config.memory, config.attention, config.system
    kv_heads = attention.num_kv_heads
    counts = {
        "memory": memory.num_heads,
        "attention": kv_heads or attention.num_heads,
        "system": system.num_heads or memory.num_heads,
    }
    # The narrowest in which every kind of head that the layer has is whole.
    parts = math.gcd(config.dim, *(counts[kind] for kind in heads_of(config.mixer)))

    def share(count: int) -> int:
        return max(1, count * times // parts)

    return replace(
        config,
        dim=share(config.dim),
        ffn_dim=max(1, round(ffn_dim_of(config) * times / parts)),
        memory=replace(memory, num_heads=share(memory.num_heads)),
        attention=replace(
            attention,
            num_heads=share(attention.num_heads),
            num_kv_heads=None if kv_heads is None else share(kv_heads),
        ),
        system=replace(
            system, num_heads=None if system.num_heads is None else share(system.num_heads)
        ),
    )


def heads_of(mixer: str) -> tuple[str, ...]:
    """Whose heads a layer has."""
    if mixer in ("lmm", "ttt-linear", "ttt-mlp"):
        return ("memory",)
    if mixer in (*CACHES, *RECURRENCES):
        return ("attention",)
    return ("system",) if mixer in SYSTEMS else ("memory", "attention")


def reach_of(config: BackboneConfig) -> int:
    """Tokens of a window or a segment: within it what is kept goes with the square of the length."""
    name, hybrid = config.mixer, config.hybrid
    if name in ("mag", "mal", "swa"):
        return hybrid.window
    if "mac" in name or name in RECURRENCES:
        return hybrid.segment_len + hybrid.num_previous
    return config.attention.window or 0 if name == "attention" else 0
