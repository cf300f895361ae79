"""What RMT and ARMT carry from segment to segment, and the associative memory of ARMT.

B batch, T time, N memory tokens, dim width of the model, F features of a key.
Source: Rodkin et al., "Associative Recurrent Memory Transformer", arXiv 2407.04841, section 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from titans_core.checks import check_numbers

SHIFTS = 3
"""DPFP-3: each feature is multiplied with those that stand 1, 2 and 3 places before it."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """The memory of RMT and ARMT; a segment has `hybrid.segment_len` tokens."""

    num_tokens: int = 16  # memory tokens of a segment
    key_dim: int = 64  # ARMT: width of a key before its features are made

    def __post_init__(self) -> None:
        check_numbers(self, "segments.")
        for name in ("num_tokens", "key_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"segments.{name} must be at least 1: got {getattr(self, name)}.")


class AssociationState(NamedTuple):
    matrix: Float[Tensor, "B F dim"]
    normaliser: Float[Tensor, "B F"]


def features(x: Float[Tensor, "*B key"]) -> Float[Tensor, "*B F"]:
    """Deterministic parameter-free projection of width 6 key, of length 1; 0 stays 0."""
    x = torch.cat([x.relu(), (-x).relu()], -1)
    products = [x * x.roll(shift, -1) for shift in range(1, SHIFTS + 1)]
    return F.normalize(torch.cat(products, -1), dim=-1)


class Association(nn.Module):
    """Keys and values of memory tokens, written with the delta rule and read by every token."""

    no_decay = ("gates",)

    def __init__(self, dim: int, key_dim: int) -> None:
        super().__init__()
        self.queries = nn.Linear(dim, key_dim, bias=False)
        self.keys = nn.Linear(dim, key_dim, bias=False)
        self.values = nn.Linear(dim, dim, bias=False)
        self.gates = nn.Linear(dim, 1)
        # The model begins as one without memory.
        nn.init.zeros_(self.values.weight)

    def fresh_state(self, batch: int) -> AssociationState:
        weight = self.values.weight
        # What is summed up over many segments has no less than float32.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        size = 2 * SHIFTS * self.keys.out_features
        matrix = weight.new_zeros(batch, size, len(weight), dtype=dtype)
        return AssociationState(matrix, matrix[..., 0].clone())

    def recall(
        self, x: Float[Tensor, "B T dim"], state: AssociationState
    ) -> Float[Tensor, "B T dim"]:
        """What the memory answers to each token: A' phi(q) / z' phi(q), 0 where it is empty."""
        q = features(self.queries(x).to(state.matrix.dtype))
        with torch.autocast(x.device.type, enabled=False):
            return recalled(q, state).to(x.dtype)

    def write(self, x: Float[Tensor, "B N dim"], state: AssociationState) -> AssociationState:
        """The memory after the memory tokens of a segment, which all meet it as it was before."""
        dtype = state.matrix.dtype
        k = features(self.keys(x).to(dtype))
        v, gate = self.values(x).to(dtype), self.gates(x).sigmoid().to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            change = gate * (v - recalled(k, state))
            # How much of a key is new. No gradient passes it, as in the authors' code.
            fresh = (1 - k @ state.normaliser[..., None]).clamp(0, 1).detach()
            matrix = state.matrix + k.mT @ change
            return AssociationState(matrix, state.normaliser + (fresh * k).sum(1))


def recalled(k: Float[Tensor, "B T F"], state: AssociationState) -> Float[Tensor, "B T dim"]:
    return (k @ state.matrix) / (k @ state.normaliser[..., None] + 1e-5)
