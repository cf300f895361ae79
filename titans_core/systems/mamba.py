"""State spaces: Mamba's selective scan (S6) and Mamba-2's memory with one decay per head (SSD).

B batch, T time, E channels, N numbers of state for each, H heads, V width of one. arXiv 2312.00752 and
2405.21060; layouts as the authors', with one group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.systems.config import SystemConfig, authors_or, width_of
from titans_core.systems.recurrent import (
    Context,
    Recurrent,
    RecurrentState,
    gated_norm,
    in_full_precision,
    recur,
    scanned,
    unflattened,
)
from titans_core.systems.starts import log_of_uniform, step_bias


class Mamba(Recurrent):
    """Every channel has a state of its own, whose numbers decay at rates of their own."""

    no_decay = ("rate_log", "skip", "gates")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        inner = width_of(dim, config.value_expansion, 2, 1, "value_expansion")
        self.size, self.rank = authors_or(config.state_size, 16), -(-dim // 16)
        super().__init__(
            dim, inner, name="mamba", shapes=((inner, self.size),), channels=inner,
            conv_size=authors_or(config.conv_size, 4),
        )  # fmt: skip
        self.value_gate = nn.Linear(dim, 2 * inner, bias=False)
        self.conv_bias = None if self.conv is None else nn.Parameter(torch.zeros(inner))
        self.selection = nn.Linear(inner, self.rank + 2 * self.size, bias=False)
        self.gates = nn.Linear(self.rank, inner)
        nn.init.uniform_(self.gates.weight, -(self.rank**-0.5), self.rank**-0.5)
        self.gates.bias.data.copy_(step_bias(inner))
        rates = torch.arange(1, self.size + 1, dtype=self.out.weight.dtype)
        self.rate_log = nn.Parameter(rates.log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))

    def mix(
        self, x: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        value, gate = self.value_gate(x).chunk(2, -1)
        value, tail = self.convolved(value, state, context)
        value = F.silu(value if self.conv_bias is None else value + self.conv_bias)
        low, writer, reader = self.selection(value).split([self.rank, self.size, self.size], -1)
        step = F.softplus(in_full_precision(self.gates, low))
        y, part = scanned(
            value, step, -self.rate_log.exp(), writer, reader, state.memory.parts[0], context
        )
        return (y + self.skip * value) * F.silu(gate), (part,), tail


class Mamba2(Recurrent):
    """One matrix per head with one decay; keys and queries (B and C) are shared by the heads.

    `value_expansion` makes more heads of the other systems' width, as the authors' are.
    """

    no_decay = ("rate_log", "skip", "gates", "step_bias", "out_norm")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        assert config.num_heads is not None
        self.value = width_of(dim, 1, 1, config.num_heads, "value_expansion")
        inner = width_of(dim, config.value_expansion, 2, 1, "value_expansion")
        if inner % self.value:
            raise ValueError(
                f"system.value_expansion must make whole heads of {self.value} channels in mamba2: "
                f"got {inner} channels."
            )
        self.heads = inner // self.value
        self.key = authors_or(config.state_size, 128)
        channels = inner + 2 * self.key
        super().__init__(
            dim, inner, name="mamba2", shapes=((self.heads, self.value, self.key),),
            channels=channels, conv_size=authors_or(config.conv_size, 4),
        )  # fmt: skip
        self.qkv = nn.Linear(dim, channels, bias=False)
        self.conv_bias = None if self.conv is None else nn.Parameter(torch.zeros(channels))
        self.gates = nn.Linear(dim, self.heads, bias=False)
        self.step_bias = nn.Parameter(step_bias(self.heads))
        self.rate_log = nn.Parameter(log_of_uniform(self.heads, 1.0, 16.0))
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.out_gate = nn.Linear(dim, inner, bias=False)
        self.out_norm = nn.Parameter(torch.ones(inner))

    def mix(
        self, x: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        qkv, tail = self.convolved(self.qkv(x), state, context)
        qkv = F.silu(qkv if self.conv_bias is None else qkv + self.conv_bias)
        v, k, q = unflattened(qkv, (self.heads, self.value), (1, self.key), (1, self.key))
        step = F.softplus(in_full_precision(self.gates, x) + self.step_bias)
        y, part = recur(
            q, k, step[..., None] * v, state.memory.parts[0], context,
            log_decay=-self.rate_log.exp() * step,
        )  # fmt: skip
        y = (y + self.skip[:, None] * v).flatten(2) * F.silu(self.out_gate(x))
        return gated_norm(y, self.out_norm), (part,), tail
