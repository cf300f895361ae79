"""The systems that are compared, each a configuration of one backbone with as many parameters.

What differs is the mixer; the width of the feed-forward layers makes up for its parameters. A mixer has
convolutions where its authors have them, and attention stands there a second time with the memory's.
"""

import functools
from dataclasses import dataclass, replace

from titans_core import PRESETS, BackboneConfig, build_backbone, count_parameters
from titans_core.presets import LAPTOP
from titans_domains.config import override

WITHIN = 0.02
"""Parameters may differ by this share."""


@dataclass(frozen=True, kw_only=True)
class System:
    mixer: str
    settings: tuple[str, ...] = ()
    convolutions: bool = True
    layers: float = 1  # in proportion: MAC+MAL has two memories in a layer
    growing: bool = False  # its state grows with what was read
    retrieves: bool = False  # trained as it is, and asked through EventMemory
    titans: bool = False


STEP = ("memory.max_step_size=0.3",)
"""A head of 32 channels holds two pairs with the default, 0.1, and nineteen with 0.25 (docs/capacity.md)."""
WINDOW = ("hybrid.window=16", "hybrid.segment_len=16")
"""Less than lies between an answer and what it answers: in a row of 64 tokens, or a needle's, a window of 64
does without the memory, which then learns nothing (docs/log.md)."""
HYBRID = (*STEP, *WINDOW, "attention.conv_size=4")
"""The paper has convolutions after queries, keys and values: read here as those of attention too."""

SYSTEMS: dict[str, System] = {
    "transformer++": System(mixer="attention", convolutions=False, growing=True),
    "transformer++conv": System(
        mixer="attention", settings=("attention.conv_size=4",), growing=True
    ),
    "linear": System(mixer="linear", convolutions=False),
    "retnet": System(mixer="retnet", convolutions=False),
    "gla": System(mixer="gla", convolutions=False),
    "mamba": System(mixer="mamba"),
    "mamba2": System(mixer="mamba2"),
    "deltanet": System(mixer="deltanet"),
    "gated-deltanet": System(mixer="gated-deltanet"),
    "longhorn": System(mixer="longhorn"),
    "gsa": System(mixer="gsa", convolutions=False),
    "ttt-linear": System(mixer="ttt-linear"),
    "ttt-mlp": System(mixer="ttt-mlp"),
    "samba": System(mixer="samba", settings=WINDOW),
    "gated-deltanet-h2": System(mixer="gated-deltanet-h2", settings=WINDOW, layers=1.5),
    "rmt": System(mixer="rmt", convolutions=False),
    "armt": System(mixer="armt", convolutions=False),
    "em-llm": System(mixer="attention", convolutions=False, growing=True, retrieves=True),
    "lmm": System(mixer="lmm", settings=STEP, titans=True),
    "mac": System(mixer="mac", settings=HYBRID, titans=True),
    "mag": System(mixer="mag", settings=HYBRID, titans=True),
    "mal": System(mixer="mal", settings=HYBRID, titans=True),
    "mac+mal": System(mixer="mac+mal", settings=HYBRID, layers=0.5, titans=True),
}

MAIN = (
    "transformer++", "transformer++conv", "mamba2", "gated-deltanet", "ttt-mlp", "lmm", "mac", "mag", "mal",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size:
    base: BackboneConfig
    parameters: int  # of the backbone, without what a task adds: embeddings and the like


SIZES: dict[str, Size] = {
    "tiny": Size(base=PRESETS["tiny"], parameters=190_000),
    "small": Size(base=PRESETS["small"], parameters=1_400_000),
    "10m": Size(
        base=replace(PRESETS["small"], dim=320, num_layers=8, hybrid=LAPTOP), parameters=11_000_000
    ),
}


@functools.cache
def backbone(name: str, size: str) -> BackboneConfig:
    """A system's configuration, with the feed-forward width that gives it the size's parameters."""
    for kind, given, known in (("system", name, SYSTEMS), ("size", size, SIZES)):
        if given not in known:
            raise ValueError(f"There is no {kind} {given!r}: there are {', '.join(known)}.")
    system, wanted = SYSTEMS[name], SIZES[size]
    layers = round(wanted.base.num_layers * system.layers)
    base = replace(wanted.base, num_layers=layers, mixer=system.mixer)
    config: BackboneConfig = override(base, list(system.settings))

    def size_of(width: int) -> int:
        return count_parameters(build_backbone(replace(config, ffn_dim=width)))

    one, two = size_of(1), size_of(2)
    width = 1 + round((wanted.parameters - one) / (two - one))
    if width < 1:
        raise ValueError(
            f"{name} has {one:,} parameters without feed-forward layers, more than the "
            f"{wanted.parameters:,} of size {size}."
        )
    assert abs(size_of(width) - wanted.parameters) <= WITHIN * wanted.parameters
    return replace(config, ffn_dim=width)
