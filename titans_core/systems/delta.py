"""Memories that write errors: DeltaNet, Gated DeltaNet and Longhorn.

B batch, T time, H heads, K, V widths of keys and values. arXiv 2406.06484, 2412.06464 (as in fla's layers)
and 2407.14207.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from titans_core.memory import unit_length
from titans_core.systems.config import SystemConfig, authors_or, sizes_of, width_of
from titans_core.systems.linear import HeadMemory
from titans_core.systems.recurrent import (
    Context,
    Recurrent,
    RecurrentState,
    in_full_precision,
    recur,
    unflattened,
)
from titans_core.systems.starts import log_of_uniform, step_bias


class DeltaNet(HeadMemory):
    """Keys of length 1, and a step from 0 to 1 toward each token's value."""

    no_decay = ("out_norm", "gates")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        sizes = sizes_of(dim, config, 1, 1)
        conv_size = authors_or(config.conv_size, 4)
        super().__init__(dim, sizes, name="deltanet", conv_size=conv_size, activated=True)
        self.gates = nn.Linear(dim, sizes.heads, bias=False)

    def turned(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return unit_length(q), unit_length(k)

    def gates_of(self, x: Tensor, k: Float[Tensor, "B T H K"]) -> dict[str, Tensor]:
        return {"beta": in_full_precision(self.gates, x).sigmoid()}


class GatedDeltaNet(HeadMemory):
    """The same with a decay per head before each step, and a gate on what is read."""

    no_decay = ("out_norm", "gates", "rate_log", "step_bias")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        sizes = sizes_of(dim, config, 0.75, 1.5)
        conv_size = authors_or(config.conv_size, 4)
        super().__init__(
            dim, sizes, name="gated-deltanet", conv_size=conv_size, gated=True, activated=True
        )
        self.gates = nn.Linear(dim, 2 * sizes.heads, bias=False)
        self.rate_log = nn.Parameter(log_of_uniform(sizes.heads, 0.0, 16.0))
        self.step_bias = nn.Parameter(step_bias(sizes.heads))

    def turned(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return unit_length(q), unit_length(k)

    def gates_of(self, x: Tensor, k: Float[Tensor, "B T H K"]) -> dict[str, Tensor]:
        beta, step = in_full_precision(self.gates, x).chunk(2, -1)
        log_decay = -self.rate_log.exp() * F.softplus(step + self.step_bias)
        return {"log_decay": log_decay, "beta": beta.sigmoid()}


class Longhorn(Recurrent):
    """The exact minimum of each token's loss, in Mamba's block: a step beta / (1 + beta |k|^2).

    beta is one per head, and the matrix form of the paper's theorem is kept. The released code has one
    per channel and keeps the diagonal of k k' alone, for which the exact form would need a matrix
    [K, K] of every channel.
    """

    no_decay = ("gates", "skip")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        heads = config.num_heads
        assert heads is not None
        self.heads = heads
        self.value = width_of(dim, config.value_expansion, 2, heads, "value_expansion")
        self.key = authors_or(config.state_size, 16)
        inner = heads * self.value
        super().__init__(
            dim, inner, name="longhorn", shapes=((heads, self.value, self.key),),
            channels=inner, conv_size=authors_or(config.conv_size, 4),
        )  # fmt: skip
        self.value_gate = nn.Linear(dim, 2 * inner, bias=False)
        self.conv_bias = None if self.conv is None else nn.Parameter(torch.zeros(inner))
        self.keys_queries = nn.Linear(inner, 2 * self.key, bias=False)
        self.gates = nn.Linear(inner, heads)
        self.skip = nn.Parameter(torch.ones(inner))

    def mix(
        self, x: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        value, gate = self.value_gate(x).chunk(2, -1)
        value, tail = self.convolved(value, state, context)
        value = F.silu(value if self.conv_bias is None else value + self.conv_bias)
        k, q = unflattened(self.keys_queries(value), (1, self.key), (1, self.key))
        beta = in_full_precision(self.gates, value).sigmoid()
        step = beta / (1 + beta * k.to(beta.dtype).square().sum(-1))
        v = value.unflatten(-1, (self.heads, self.value))
        y, part = recur(q, k, v, state.memory.parts[0], context, beta=step)
        y = y.flatten(2) + self.skip * value
        return y * F.silu(gate), (part,), tail
