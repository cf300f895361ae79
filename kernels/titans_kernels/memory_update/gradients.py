"""Collects the gradients of a walk's tensors, chunk by chunk from the last to the first.

R rows times heads, C tokens in a chunk, D width of a head.
"""

import torch
from torch import Tensor

from titans_kernels.memory_update.call import Call, State
from titans_kernels.memory_update.chunk import Layers, query, token_memories, write
from titans_kernels.memory_update.chunk_backward import chunk_backward
from titans_kernels.memory_update.coefficients import Coefficients

GradientState = tuple[Layers | None, ...]
"""Gradients by a State; None for parts of it that nothing after has used."""


class Gradients:
    """The sums so far. A chunk of the paper's rule goes back by hand, any other by autograd."""

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
        """Gradients by the state before chunk n, from those by its output and by the state after."""
        rule = self.call.rule
        if rule.inner_steps > 1 or rule.channel_forget:
            return self.by_autograd(n, state, dy, d_state)
        return self.by_hand(n, state, dy, d_state)

    def by_hand(self, n: int, state: State, dy: Tensor, d_state: GradientState) -> GradientState:
        call = self.call
        memory, held, surprise = call.enter(n, state)
        chunk = call.inputs(n)
        weights = chunk.weights(held)
        keys = write(chunk, weights)
        memories = token_memories(chunk, (memory, surprise), keys.inputs, keys.updates)
        _, queries = query(chunk, memories, slopes=True)
        d_memory, d_chunk, d_surprise = d_state
        assert d_memory is not None
        assert d_surprise is not None
        gates = Coefficients(*(x[n] for x in self.gates))
        self.q[n], self.k[n], self.v[n], d_held = chunk_backward(
            chunk, memory, surprise, keys, queries, weights,
            dy, d_memory, d_surprise, gates, self.base, self.affine,
        )  # fmt: skip
        if d_chunk is not None:
            for d, part in zip(d_held, d_chunk, strict=True):
                d += part
        opens = None if call.layout.all_open[n] else call.layout.opens[:, n]
        for d, part in zip(d_memory, d_held, strict=True):
            d += part if opens is None else part * opens
        d_chunk = None if opens is None else [d * ~opens for d in d_held]
        if call.layout.resets is not None and call.layout.any_reset[n]:
            fresh = call.layout.resets[:, n]
            for start, after in zip(self.start, (d_memory, d_surprise), strict=True):
                for d, w in zip(start, after, strict=True):
                    d += w * fresh
                    w *= ~fresh
        return d_memory, d_chunk, d_surprise

    def by_autograd(
        self, n: int, state: State, dy: Tensor, d_state: GradientState
    ) -> GradientState:
        """A call of this chunk alone, from this state, is differentiated."""
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
