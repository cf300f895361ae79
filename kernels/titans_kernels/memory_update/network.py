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


def activate_into(out: Tensor, z: Tensor, activation: str) -> Tensor:
    """`out`, filled with the activation of z."""
    if activation == "gelu":
        return torch.ops.aten.gelu.out(z, out=out)
    return torch.ops.aten.silu.out(z, out=out)


def activate_backward(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """`grad` times the slope of the activation at z; can be differentiated."""
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, z)
    gate = torch.sigmoid(z)
    return grad * (gate + z * gate * (1 - gate))


def activate_backward_into(out: Tensor, grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """`out`, filled with `grad` times the slope of the activation at z."""
    if activation == "gelu":
        return torch.ops.aten.gelu_backward.grad_input(grad, z, grad_input=out)
    return torch.ops.aten.silu_backward.grad_input(grad, z, grad_input=out)


def slope_into(out: Tensor, z: Tensor, activation: str) -> Tensor:
    """`out`, filled with the activation's first derivative."""
    return activate_backward_into(out, torch.ones_like(z), z, activation)


def curve_into(out: Tensor, z: Tensor, activation: str) -> Tensor:
    """`out`, filled with the activation's second derivative."""
    if activation == "gelu":
        # The normal density times 2 - z^2.
        torch.addcmul(z.new_tensor(-0.5 * math.log(2 * math.pi)), z, z, value=-0.5, out=out)
        return out.exp_().mul_(torch.addcmul(z.new_tensor(2.0), z, z, value=-1))
    return out.copy_(activate_derivatives(z, activation)[2])


def layer_norm(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`normalize` in one pass: the normed sum, the mean and the reciprocal deviation."""
    return torch.native_layer_norm(z, z.shape[-1:], None, None, EPSILON)


def layer_norm_backward(grad: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """`normalize_backward` in one pass, from the sum and its moments."""
    return torch.ops.aten.native_layer_norm_backward(
        grad, z, z.shape[-1:], mean, rstd, None, None, [True, False, False]
    )[0]
