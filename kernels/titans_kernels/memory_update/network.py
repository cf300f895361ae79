"""The memory MLP's own pieces: activation and layer norm, with the derivatives that the update needs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5


def activate(z: Tensor, activation: str) -> Tensor:
    return F.gelu(z) if activation == "gelu" else F.silu(z)


def activate_derivatives(z: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """The activation of z with its first and second derivative."""
    if activation == "gelu":
        cdf = torch.erf(z * math.sqrt(0.5)).add(1).mul(0.5)
        square = z * z
        pdf = torch.exp(-0.5 * square) * (1 / math.sqrt(2 * math.pi))
        return z * cdf, torch.addcmul(cdf, z, pdf), pdf * (2 - square)
    gate = torch.sigmoid(z)
    slope = gate * (1 - gate)
    return z * gate, gate + z * slope, slope * (2 + z * (1 - 2 * gate))


def normalize(z: Tensor) -> tuple[Tensor, Tensor]:
    """`z` with mean 0 and variance 1 over its last axis, and the reciprocal deviation."""
    centred = z - z.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPSILON)
    return centred * rstd, rstd


def normalize_backward(grad: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """Gradient with respect to the input of `normalize`, from that of its output."""
    along = (grad * normed).mean(-1, keepdim=True)
    return rstd * (grad - grad.mean(-1, keepdim=True) - normed * along)
