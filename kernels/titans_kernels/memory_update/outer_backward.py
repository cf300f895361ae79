"""Back through D_L, the gradient of the loss by the last layer's sum: a derivative of a gradient.

N chunks of a group, R rows times heads, C tokens in a chunk, D width of a head.
"""

import torch
from torch import Tensor

from titans_kernels.memory_update.given import Given
from titans_kernels.memory_update.keys import Keys, KeyWalk
from titans_kernels.memory_update.network import layer_norm, layer_norm_backward


class OuterBackward:
    """With the norm N, D_L = J F for F the derivative by N and J the norm's own, which is symmetric.

    So a gradient V by D_L is J V by F; and as J depends on the sum through N and the deviation, it is
    -rstd (mean(F N) J V + mean(V N) D_L + mean(V D_L) N) by the sum, the means over a token's row.
    """

    def __init__(self, walk: KeyWalk, keys: Keys) -> None:
        self.walk, self.affine = walk, walk.given.affine
        self.by_given = torch.empty_like(keys.errors[-1])
        if not self.affine:
            return
        self.sum, error = keys.sums[-1], keys.errors[-1]
        self.normed, self.mean, self.rstd = layer_norm(self.sum)
        given = self.loss()
        minus = self.rstd.neg() / error.shape[-1]
        self.along = (given * self.normed).sum(-1, keepdim=True).mul_(minus)
        self.pair = torch.stack((error, self.normed), -2)  # [N, R, C, 2, D]
        self.weighted = self.pair.flip(-2) * minus[..., None]

    def loss(self) -> Tensor:
        """The loss's derivative by the normed sum."""
        loss = self.walk.whole_loss
        if loss.slope is None:
            return loss.constant
        return torch.addcmul(loss.constant, self.normed, loss.slope)

    def step(self, n: int, d_error: Tensor) -> Tensor:
        """Gradient by the last sum of chunk n, from that by D_L."""
        slope = self.walk.whole_loss.slope
        if not self.affine:
            self.by_given[n] = d_error
            return torch.zeros_like(d_error) if slope is None else d_error * slope
        moments = (self.sum[n], self.mean[n], self.rstd[n])
        by_given = layer_norm_backward(d_error, *moments)
        self.by_given[n] = by_given
        shares = (self.weighted[n] * d_error[..., None, :]).sum(-1, keepdim=True)
        d_sum = (self.pair[n] * shares).sum(-2).addcmul_(by_given, self.along[n])
        if slope is not None:
            d_sum += layer_norm_backward(by_given * slope, *moments)
        return d_sum

    def finish(self, total: Given) -> None:
        """Gradients by k, v, gain and bias, of the whole group at once."""
        rule = self.walk.rule
        d_normed = self.by_given
        if self.affine:
            gain, bias = self.affine
            outer = self.outer(gain, bias)
            total.affine[0] += (self.by_given * outer).sum((0, 2))[:, None]
            d_normed = self.by_given * gain
        if rule.objective == "dot":
            torch.neg(d_normed, out=total.v)
            return
        torch.mul(d_normed, -2, out=total.v)
        if rule.residual:
            total.k.sub_(total.v)
        if self.affine:
            total.affine[0] -= (total.v * self.normed).sum((0, 2))[:, None]
            total.affine[1] -= total.v.sum((0, 2))[:, None]

    def outer(self, gain: Tensor, bias: Tensor) -> Tensor:
        """The loss's derivative by the MLP's output."""
        rule, given = self.walk.rule, self.walk.given
        if rule.objective == "dot":
            return -given.v
        out = torch.addcmul(bias - given.v, self.normed, gain)
        return out.add_(given.k).mul_(2) if rule.residual else out.mul_(2)
