"""Collects the gradients of a walk's tensors, chunk by chunk from the last to the first.

R rows times heads, C tokens in a chunk, D width of a head.
"""

import torch
from torch import Tensor

from titans_kernels.memory_update.call import Call, State
from titans_kernels.memory_update.chunk import Layers

GradientState = tuple[Layers | None, ...]
"""Gradients by a State; None for parts of it that nothing after has used."""


class Gradients:
    """The sums so far."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.q, self.k, self.v = (torch.empty_like(x) for x in (call.q, call.k, call.v))
        self.gates = [torch.zeros_like(x) for x in call.gates]
        self.base = None if call.base is None else [torch.zeros_like(w) for w in call.base]
        self.start: tuple[Layers, Layers] = (
            [torch.zeros_like(w) for w in call.start_memory],
            [torch.zeros_like(w) for w in call.start_surprise],
        )
        self.affine = [torch.zeros_like(x) for x in call.affine or ()]

    def step(self, n: int, state: State, dy: Tensor, d_state: GradientState) -> GradientState:
        """Gradients by the state before chunk n, from those by its output and by the state after.

        A call of this chunk alone, from this state, is differentiated.
        """
        call, layers = self.call, self.call.layers
        streams = [x[n : n + 1] for x in (call.q, call.k, call.v, *call.gates)]
        shared = [
            *call.start_memory,
            *call.start_surprise,
            *(call.base or ()),
            *(call.affine or ()),
        ]
        carried = [w for part in state for w in part]
        leaves = [x.detach().requires_grad_() for x in (*streams, *carried, *shared)]
        with torch.enable_grad():
            one = Call(call.rule, layers, call.layout.chunk(n), leaves)
            y, after = one.step(0, one.state)
        outputs, given = [y], [dy]
        for part, d_part in zip(after, d_state, strict=True):
            if d_part is not None:
                outputs.extend(part)
                given.extend(d_part)
        found = list(torch.autograd.grad(outputs, leaves, given, allow_unused=True))
        for total, d in zip((self.q, self.k, self.v, *self.gates), found, strict=False):
            total[n] = d[0]
        d_shared = found[len(streams) + len(carried) :]
        totals = (*self.start[0], *self.start[1], *(self.base or ()), *self.affine)
        for total, grad in zip(totals, d_shared, strict=True):
            if grad is not None:
                total += grad
        d_carried = found[len(streams) :]
        parts = (d_carried[i * layers :][:layers] for i in range(len(state)))
        return tuple(None if part[0] is None else part for part in parts)

    def result(self, d_state: GradientState) -> list[Tensor]:
        memory = d_state[0]
        assert memory is not None
        states = [
            d
            for part in (*d_state, *self.start)
            for d in (part if part is not None else map(torch.zeros_like, memory))
        ]
        return [self.q, self.k, self.v, *self.gates, *states, *(self.base or []), *self.affine]
