"""One layer's memory at every token of a chunk, which is multiplied by and never made.

R rows times heads, C tokens in a chunk, J times as many updates, D width of a head.
"""

from typing import Literal, NamedTuple

from torch import Tensor

from titans_kernels.memory_update.coefficients import Coefficients

Axis = Literal["left", "right"]
OTHER: dict[Axis | None, Axis | None] = {"left": "right", "right": "left", None: None}


class TokenMemory(NamedTuple):
    """M_t of one layer for every token t of a chunk, from what the chunk began with and its updates.

    `x @ m` and `x @ m.mT` are what they are for one matrix, with row t multiplied by M_t.
    """

    memory: Tensor  # [R, out, in] at the chunk's start, as `surprise`
    surprise: Tensor
    left: Tensor  # U_l [R, J C, out]: a token's updates are outer products of its rows here
    right: Tensor  # X_{l-1} [R, J C, in]: and here
    gate: Coefficients  # the layer's
    base: Tensor | None  # M_{-1} where forgetting goes toward it
    channels: Axis | None  # the axis on which forgetting is per channel

    @property
    def mT(self) -> "TokenMemory":  # noqa: N802, the name it has for a matrix
        return TokenMemory(
            self.memory.mT,
            self.surprise.mT,
            self.right,
            self.left,
            self.gate,
            None if self.base is None else self.base.mT,
            OTHER[self.channels],
        )

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """x @ M_t for every row x of [R, C, out]."""
        gate = self.gate
        if self.channels == "right":
            mixed = gate.mix * self.right[:, None]  # [R, C, J C, in]
            z = ((x @ self.left.mT)[:, :, None] @ mixed)[:, :, 0]
            z = z + gate.retain * (x @ self.memory) + gate.past * (x @ self.surprise)
        else:
            if self.channels == "left":
                mixed = gate.mix * self.left[:, None]  # [R, C, J C, out]
                z = (mixed @ x[..., None])[..., 0] @ self.right
            else:
                z = (gate.mix * (x @ self.left.mT)) @ self.right
            z.baddbmm_(gate.retain * x, self.memory).baddbmm_(gate.past * x, self.surprise)
        return z if self.base is None else z.baddbmm_(x, self.base)

    def last(self) -> tuple[Tensor, Tensor]:
        """Memory and surprise after the chunk's last token."""
        gate, left, right = self.gate, self.left, self.right
        retain, past, mix = gate.retain[:, -1:], gate.past[:, -1:], gate.mix[:, -1]
        if self.channels == "right":
            right = mix * right
        elif self.channels == "left":
            left, retain, past = mix * left, retain.mT, past.mT
        else:
            left = mix[..., None] * left
        memory = (self.memory * retain).addcmul_(self.surprise, past).baddbmm_(left.mT, right)
        surprise = self.surprise * gate.momentum
        return memory, surprise.baddbmm_((gate.last * self.left).mT, self.right)
