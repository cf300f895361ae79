"""One token in C, without a backward: it is written, then the memory that this made is read.

B batch, H memory heads, D width of a head, C = 3 H D channels, K taps of a convolution, S = K - 1, G gates
per head.
"""

import ctypes
import struct
from collections.abc import Sequence
from ctypes import CDLL

import torch
from jaxtyping import Float
from torch import Tensor

from titans_kernels.memory_update.native import bindings
from titans_kernels.memory_update.types import InitialWeights, MemoryState, Norm, UpdateRule

Numbers = Sequence[int]


def one_token(
    run: CDLL,
    tokens: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    initial: InitialWeights,
    rule: UpdateRule,
    norm: Norm | None,
    written: Tensor,
    state: MemoryState,
) -> tuple[Tensor, MemoryState]:
    """The outputs, and the state but for its position, for q, k, v and gates [B, 1, H, ...]."""
    tokens = tuple(bindings.by_token(x) for x in tokens)  # type: ignore[assignment]
    y = torch.empty(tokens[0].shape, dtype=tokens[0].dtype)
    streams: list[int] = [0] * 8
    for x in tokens:
        batch, time, head, gate = x.stride()
        streams += (x.data_ptr(), batch, time, head, gate if x.shape[3] > 1 else 0)
    return y, step(run, streams, y, initial, rule, norm, written, state)


def projected_token(
    run: CDLL,
    projected: Float[Tensor, "B 1 C"],
    tail: Float[Tensor, "B S C"],
    taps: Float[Tensor, "C K"],
    logits: Float[Tensor, "B 1 _"],
    gates: dict[str, int],
    max_step: float,
    out: tuple[Tensor, Tensor] | None,
    initial: InitialWeights,
    rule: UpdateRule,
    norm: Norm | None,
    state: MemoryState,
) -> tuple[Tensor, Tensor, MemoryState]:
    """`one_token` of what a layer's projections gave: outputs, the tail and the state after.

    See `layer_token`, which has checked them; all are contiguous.
    """
    batch, heads, width = len(projected), initial[0].shape[0], initial[0].shape[2]
    last, written = torch.empty_like(tail), torch.ones(batch, dtype=torch.bool)
    y = torch.empty((batch, 1, heads, width), dtype=projected.dtype)
    size, row = projected.element_size(), projected.stride(0)
    streams = [taps.shape[1], bits(max_step), tail.data_ptr(), taps.data_ptr(), last.data_ptr()]
    if out is None:
        streams += (0, 0, 0)
    else:
        streams += (out[0].data_ptr(), out[1].data_ptr(), out[1].stride(0))
    for part in range(3):
        streams += (projected.data_ptr() + part * heads * width * size, row, 0, width, 0)
    at, row = logits.data_ptr(), logits.stride(0)
    for name in ("step_size", "momentum", "forget"):
        count = gates.get(name, 0)
        streams += (at if count else 0, row, 0, count, 1 if count > 1 else 0)
        at += heads * count * size
    return y, last, step(run, streams, y, initial, rule, norm, written, state)


def step(
    run: CDLL,
    streams: Numbers,
    y: Tensor,
    initial: InitialWeights,
    rule: UpdateRule,
    norm: Norm | None,
    written: Tensor,
    state: MemoryState,
) -> MemoryState:
    """Fills y, and returns the state but for its position; `streams` as in `token.h`."""
    batch, _, heads, width = y.shape
    memory, surprise = (
        tuple(torch.empty((batch, *w.shape), dtype=y.dtype) for w in initial) for _ in range(2)
    )
    # Whatever had to be copied lives until the call is over.
    written = written.contiguous()
    before = [[bindings.by_row(w) for w in part] for part in state[:3]]
    base, affine = ([w.contiguous() for w in part] for part in (initial, norm or ()))
    threads = min(torch.get_num_threads(), batch * heads)
    numbers = [
        batch, heads, width, len(initial), rule.residual, rule.activation == "silu",
        rule.objective == "dot", threads, bits(rule.max_surprise or 0.0), written.data_ptr(), *streams,
        *([x.data_ptr() for x in affine] or (0, 0)), y.data_ptr(),
    ]  # fmt: skip
    toward_initial = rule.forget_toward == "initial"
    for w, m, s, *parts in zip(base, memory, surprise, *before, strict=True):
        numbers += [x.data_ptr() for x in parts]
        numbers += [x.stride(0) if batch > 1 else 0 for x in parts]
        numbers += (w.data_ptr() if toward_initial else 0, m.data_ptr(), s.data_ptr())
        numbers += (w.shape[2], w.shape[1])
    bindings.run("token", run, (ctypes.c_int64 * len(numbers))(*numbers), threads)
    return state._replace(memory=memory, surprise=surprise)


def bits(x: float) -> int:
    """A floating-point number's, as those of an integer."""
    (found,) = struct.unpack("q", struct.pack("d", x))
    return int(found)
