"""The walk in C as one autograd function.

B batch, T time, H memory heads, D width of a head, L layers, G gates per head: one for each layer, or one
for all.
"""

from collections.abc import Sequence
from ctypes import CDLL
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titans_kernels.memory_update.native import bindings
from titans_kernels.memory_update.types import MemoryState, UpdateRule

Layers = list[Tensor]

ENDS = ("memory", "held", "surprise")

KEPT_TOKENS = 512
"""For the backward the state before about so many tokens is kept, and walked on from again."""

KEPT_BYTES = 256 * 2**20
"""States take up to about so much; of a sequence for which that is too little, fewer are kept."""


class Place(NamedTuple):
    """Where the rows stand on their grids, and which tokens are written or begin a document."""

    phase: list[int]
    mask: Tensor
    reset: Tensor | None


class Given(NamedTuple):
    """The walk's tensors by name."""

    q: Tensor  # [B, T, H, D]
    k: Tensor
    v: Tensor
    step: Tensor  # [B, T, H, G]
    momentum: Tensor
    forget: Tensor
    memory: Layers  # [B, H, out, in]
    held: Layers
    surprise: Layers
    start_memory: Layers  # [1, H, out, in]; empty where no document begins
    start_surprise: Layers
    base: Layers  # M_{-1} [1, H, out, in]; empty where forgetting goes toward zero
    affine: Layers  # gain and bias [H, D], or nothing

    @classmethod
    def of(cls, tensors: Sequence[Tensor], layers: int, rule: UpdateRule, place: Place) -> "Given":
        """From the tensors in this order, without gaps."""
        starts = layers if place.reset is not None else 0
        bases = layers if rule.forget_toward == "initial" else 0
        q, k, v, step, momentum, forget, *rest = tensors
        parts = []
        for count in (layers, layers, layers, starts, starts, bases, len(rest)):
            parts.append(rest[:count])
            del rest[:count]
        return cls(q, k, v, step, momentum, forget, *parts)

    def flat(self) -> list[Tensor]:
        return [*self[:6], *(tensor for part in self[6:] for tensor in part)]


def native_walk(
    run: CDLL, given: Given, rule: UpdateRule, place: Place, position: Tensor
) -> tuple[Tensor, MemoryState]:
    """Outputs [B, T, H, D], and the state at the end but for its position."""
    tensors = given.flat()
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        y, *ends = NativeWalk.apply(run, rule, len(given.memory), place, *tensors)
    else:
        made = forward(run, given, rule, place, keep=False)
        y, *ends = made.y, *made.memory, *made.held, *made.surprise
    layers = len(given.memory)
    memory, held, surprise = (tuple(ends[i : i + layers]) for i in range(0, 3 * layers, layers))
    return y, MemoryState(memory, held, surprise, position)


def forward(run: CDLL, given: Given, rule: UpdateRule, place: Place, *, keep: bool) -> "Made":
    """Walks forward, and keeps what a backward needs or nothing."""
    made = Made.of(given, rule, place, keep)
    call, kept = call_of(given, rule, place, made)
    bindings.run("forward", run, call, call.threads)
    del kept
    return made


class NativeWalk(torch.autograd.Function):
    """What the backward needs besides the tensors is the last layer's sums, and states at intervals."""

    @staticmethod
    def forward(
        ctx: Any, run: CDLL, rule: UpdateRule, layers: int, place: Place, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        given = Given.of([x.detach() for x in tensors], layers, rule, place)
        made = forward(run, given, rule, place, keep=True)
        ctx.call = (run, rule, layers, place, made.every, len(tensors))
        ctx.save_for_backward(*tensors, *made.kept)
        return made.y, *made.memory, *made.held, *made.surprise

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *d_ends: Tensor) -> tuple[Tensor | None, ...]:
        run, rule, layers, place, every, count = ctx.call
        saved = ctx.saved_tensors
        given = Given.of(saved[:count], layers, rule, place)
        ends = [list(d_ends[i : i + layers]) for i in range(0, 3 * layers, layers)]
        made = Made(dy, ends[0], ends[1], ends[2], every, list(saved[count:]))
        call, kept = call_of(given, rule, place, made)
        total = add_gradients(call, given, dy, ends, kept)
        bindings.run("backward", run, call, call.threads)
        del kept
        # What rows share has a gradient by each of them.
        pairs = zip(total.flat(), given.flat(), strict=True)
        return None, None, None, None, *(d.sum_to_size(x.shape) for d, x in pairs)


class Made(NamedTuple):
    """What a walk forward writes."""

    y: Tensor
    memory: Layers
    held: Layers
    surprise: Layers
    every: int  # a state is kept of so many pieces
    kept: Layers  # the last layer's sums, states; or nothing

    @classmethod
    def of(cls, given: Given, rule: UpdateRule, place: Place, keep: bool) -> "Made":
        batch, time, heads, width = given.q.shape
        memory, held, surprise = (
            [torch.empty(batch, *w.shape[1:], dtype=w.dtype) for w in given.memory]
            for _ in range(3)
        )
        size, rows, pieces = given.q.element_size(), batch * heads, pieces_of(place, time, rule)
        most, state = min(time, rule.chunk_size), sum(2 * filled(w) for w in given.memory)
        starts = min(-(-pieces * most // KEPT_TOKENS), KEPT_BYTES // (rows * state * size))
        every = -(-pieces // max(1, starts))
        kept = []
        if keep:
            most = -(-most * size // 64) * 64 // size
            shapes = (rows, pieces, 2, width * most), (rows, -(-pieces // every), state)
            kept = [torch.empty(shape, dtype=given.q.dtype) for shape in shapes]
        y = torch.empty(given.q.shape, dtype=given.q.dtype)
        return cls(y, memory, held, surprise, every, kept)


def pieces_of(place: Place, time: int, rule: UpdateRule) -> int:
    """Chunks, or parts of one, of the row that has most."""
    return -(-(max(place.phase) + time) // rule.chunk_size)


def filled(w: Tensor) -> int:
    """Numbers of a matrix whose narrow side is filled up to 64 bytes."""
    across = 64 // w.element_size()
    narrow, wide = sorted(w.shape[-2:])
    return wide * -(-narrow // across) * across


def call_of(
    given: Given, rule: UpdateRule, place: Place, made: Made
) -> tuple[bindings.Call, list[Any]]:
    """The structure, and what must live as long as it."""
    batch, time, heads, width = given.q.shape
    sizes = bindings.numbers([width, *(w.shape[2] for w in given.memory)])
    phase = bindings.numbers(place.phase)
    streams = [bindings.by_token(x) for x in given[:6]]
    kept: list[Any] = []
    parts = {name: bindings.weights(getattr(given, name), kept) for name in bindings.BEGINNINGS}
    ends = {f"last_{name}": bindings.weights(getattr(made, name), kept) for name in ENDS}
    flags = [None if x is None else x.contiguous() for x in (place.mask, place.reset)]
    affine = [x.contiguous() for x in given.affine]
    call = bindings.Call(
        rows=batch, heads=heads, time=time, width=width, layers=len(given.memory),
        chunk=rule.chunk_size, residual=rule.residual, silu=rule.activation == "silu",
        dot=rule.objective == "dot", toward_initial=rule.forget_toward == "initial",
        threads=min(torch.get_num_threads(), batch * heads), max_surprise=rule.max_surprise or 0,
        pieces=pieces_of(place, time, rule), every=made.every,
        sizes=bindings.address(sizes), phase=bindings.address(phase),
        mask=bindings.pointer(flags[0]), reset=bindings.pointer(flags[1]),
        **{name: bindings.view(x) for name, x in zip(bindings.STREAMS, streams, strict=True)},
        gain=bindings.pointer(affine[0]) if affine else None,
        bias=bindings.pointer(affine[1]) if affine else None,
        **parts, **ends, y=made.y.data_ptr(),
        sums=made.kept[0].data_ptr() if made.kept else None,
        states=made.kept[1].data_ptr() if made.kept else None,
    )  # fmt: skip
    return call, [*kept, sizes, phase, streams, flags, affine]


def add_gradients(
    call: bindings.Call, given: Given, dy: Tensor, ends: list[Layers], kept: list[Any]
) -> Given:
    """Completes the structure for the backward; gradients of what rows share are by row."""
    batch = len(given.q)

    def zeros(parts: Layers) -> Layers:
        return [torch.zeros(batch, *w.shape[1:], dtype=w.dtype) for w in parts]

    tokens = [torch.zeros(x.shape, dtype=x.dtype) for x in given[:6]]
    affine = [torch.zeros(batch, *x.shape, dtype=x.dtype) for x in given.affine]
    parts = {name: zeros(getattr(given, name)) for name in bindings.BEGINNINGS}
    dy = dy.contiguous()
    call.dy = dy.data_ptr()
    for name, x in zip(bindings.STREAMS, tokens, strict=True):
        setattr(call, f"d_{name}", bindings.view(x))
    for name, part in parts.items():
        setattr(call, f"d_{name}", bindings.weights(part, kept))
    for name, part in zip(ENDS, ends, strict=True):
        setattr(call, f"d_last_{name}", bindings.weights(part, kept))
    if affine:
        call.d_gain, call.d_bias = affine[0].data_ptr(), affine[1].data_ptr()
    kept.append(dy)
    q, k, v, step, momentum, forget = tokens
    return Given(q, k, v, step, momentum, forget, **parts, affine=affine)
