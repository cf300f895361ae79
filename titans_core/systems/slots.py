"""Gated slot attention: two memories of a few slots, and a softmax over the slots between them.

B batch, T time, H heads, M slots, K, V widths of keys and values. arXiv 2409.07146, as in fla's layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.systems.config import SystemConfig, authors_or, sizes_of
from titans_core.systems.recurrent import (
    Context,
    Recurrent,
    RecurrentState,
    gated_norm,
    in_full_precision,
    recur,
    unflattened,
)

GATE_DIVISOR = 8
"""An eighth of the decays' logarithm, so that slots forget slowly at the start."""


class GatedSlotAttention(Recurrent):
    """GSA: a slot forgets by its gate and takes what it lost of the token, key and value alike."""

    no_decay = ("gates", "out_norm")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        self.sizes = heads, key, value = sizes_of(dim, config, 1, 1)
        self.slots = authors_or(config.num_slots, key)
        channels = heads * (2 * key + value)
        super().__init__(
            dim, heads * value, name="gsa",
            shapes=((heads, self.slots, key), (heads, value, self.slots)),
            channels=channels, conv_size=authors_or(config.conv_size, 0),
        )  # fmt: skip
        self.qkv = nn.Linear(dim, channels, bias=False)
        self.gates = nn.Linear(dim, heads * self.slots, bias=False)
        self.out_norm = nn.Parameter(torch.ones(heads * value))

    def mix(
        self, x: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        qkv, tail = self.convolved(self.qkv(x), state, context)
        qkv = F.silu(F.silu(qkv) if self.conv is not None else qkv)
        heads, key, value = self.sizes
        q, k, v = unflattened(qkv, (heads, key), (heads, key), (heads, value))
        gates = in_full_precision(self.gates, x).unflatten(-1, (heads, self.slots))
        log_decay = F.logsigmoid(gates) / GATE_DIVISOR
        taken = -torch.expm1(log_decay)
        keys, values = state.memory.parts
        scores, keys = recur(q, k, taken, keys, context, log_decay=log_decay, channels="values")
        y, values = recur(
            scores.softmax(-1), taken, v, values, context, log_decay=log_decay, channels="keys"
        )
        return gated_norm(F.silu(y.flatten(2)), self.out_norm), (keys, values), tail
