"""Dot-product memories: linear attention, RetNet and gated linear attention, as in fla's layers.

B batch, T time, H heads, K, V widths of keys and values. arXiv 2006.16236, 2307.08621, 2312.06635.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from titans_core.attend import rotary_angles, rotate
from titans_core.systems.config import Sizes, SystemConfig, authors_or, sizes_of
from titans_core.systems.recurrent import (
    Context,
    Recurrent,
    RecurrentState,
    gated_norm,
    in_full_precision,
    recur,
    unflattened,
)

ROPE_BASE = 10_000.0

GATE_RANK, GATE_DIVISOR = 16, 16
"""GLA: its decays come of so few numbers; and a sixteenth of their logarithm, so that it starts slow."""


class HeadMemory(Recurrent):
    """One matrix per head, with queries, keys and values by projections, and a norm of what is read.

    `activated` says that q, k, v pass SiLU with or without a convolution.
    """

    no_decay: tuple[str, ...] = ("out_norm",)

    def __init__(
        self,
        dim: int,
        sizes: Sizes,
        *,
        name: str,
        conv_size: int,
        gated: bool = False,
        activated: bool = False,
    ) -> None:
        heads, key, value = self.sizes = sizes
        channels = heads * (2 * key + value)
        super().__init__(
            dim, heads * value, name=name, shapes=((heads, value, key),), channels=channels,
            conv_size=conv_size,
        )  # fmt: skip
        self.activated = activated or conv_size > 0
        self.qkv = nn.Linear(dim, channels, bias=False)
        self.out_gate = nn.Linear(dim, heads * value, bias=False) if gated else None
        self.out_norm = nn.Parameter(torch.ones(value))

    def mix(
        self, x: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        qkv, tail = self.convolved(self.qkv(x), state, context)
        qkv = F.silu(qkv) if self.activated else qkv
        heads, key, value = self.sizes
        q, k, v = unflattened(qkv, (heads, key), (heads, key), (heads, value))
        q, k = self.turned(q, k, context)
        gates = self.gates_of(x, k)
        y, part = recur(key**-0.5 * q, k, v, state.memory.parts[0], context, **gates)
        gate = None if self.out_gate is None else self.out_gate(x)
        return gated_norm(y, self.out_norm, gate).flatten(2), (part,), tail

    def turned(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Queries and keys as they meet."""
        return q, k

    def gates_of(self, x: Tensor, k: Float[Tensor, "B T H K"]) -> dict[str, Tensor]:
        """`log_decay` and `beta` of the recurrence, those that it has."""
        return {}


class LinearAttention(HeadMemory):
    """Features elu + 1; the output is normed instead of divided by the sum of the weights."""

    def __init__(self, dim: int, config: SystemConfig) -> None:
        sizes = sizes_of(dim, config, 1, 1)
        super().__init__(dim, sizes, name="linear", conv_size=authors_or(config.conv_size, 0))

    def turned(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return F.elu(q) + 1, F.elu(k) + 1


class RetNet(HeadMemory):
    """Rotary queries and keys, and a decay of its own for each head that nothing changes."""

    def __init__(self, dim: int, config: SystemConfig) -> None:
        sizes = sizes_of(dim, config, 1, 2)
        if sizes.key % 2:
            raise ValueError(
                "The width of a key must be even in retnet, since rotary positions turn pairs: got "
                f"{sizes.key}. Choose another system.num_heads or system.key_expansion."
            )
        super().__init__(
            dim, sizes, name="retnet", conv_size=authors_or(config.conv_size, 0), gated=True
        )

    def turned(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        angles = rotary_angles(context.at, q.shape[-1], ROPE_BASE)
        return rotate(q, angles), rotate(k, angles)

    def gates_of(self, x: Tensor, k: Float[Tensor, "B T H K"]) -> dict[str, Tensor]:
        heads = torch.arange(k.shape[2], dtype=torch.float64, device=k.device)
        log_decay = torch.log1p(-(2 ** (-5 - heads)))
        dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
        return {"log_decay": log_decay.to(dtype).expand(k.shape[:3])}


class GatedLinearAttention(HeadMemory):
    """GLA: a decay for every channel of the keys."""

    no_decay = ("out_norm", "gates")

    def __init__(self, dim: int, config: SystemConfig) -> None:
        sizes = sizes_of(dim, config, 0.5, 1)
        super().__init__(
            dim, sizes, name="gla", conv_size=authors_or(config.conv_size, 0), gated=True
        )
        self.gates_in = nn.Linear(dim, GATE_RANK, bias=False)
        self.gates = nn.Linear(GATE_RANK, sizes.heads * sizes.key)

    def gates_of(self, x: Tensor, k: Float[Tensor, "B T H K"]) -> dict[str, Tensor]:
        gates = in_full_precision(self.gates, in_full_precision(self.gates_in, x))
        return {"log_decay": F.logsigmoid(gates).div(GATE_DIVISOR).view(k.shape)}
