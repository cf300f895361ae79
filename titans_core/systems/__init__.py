"""The systems that the paper compares with, as mixers: fixed-state recurrences in one pass.

`recurrent.py` is what they share; `linear.py`, `delta.py`, `mamba.py` and `slots.py` are the systems.
"""

from collections.abc import Callable

from torch import nn

from titans_core.systems.config import SystemConfig
from titans_core.systems.delta import DeltaNet, GatedDeltaNet, Longhorn
from titans_core.systems.linear import GatedLinearAttention, LinearAttention, RetNet
from titans_core.systems.mamba import Mamba, Mamba2
from titans_core.systems.recurrent import RecurrentMemory, RecurrentState
from titans_core.systems.slots import GatedSlotAttention

__all__ = ["SYSTEMS", "RecurrentMemory", "RecurrentState", "SystemConfig"]

SYSTEMS: dict[str, Callable[[int, SystemConfig], nn.Module]] = {
    "linear": LinearAttention,
    "retnet": RetNet,
    "gla": GatedLinearAttention,
    "mamba2": Mamba2,
    "deltanet": DeltaNet,
    "gated-deltanet": GatedDeltaNet,
    "longhorn": Longhorn,
    "mamba": Mamba,
    "gsa": GatedSlotAttention,
}
"""By name, of a width and settings whose `num_heads` is given."""
