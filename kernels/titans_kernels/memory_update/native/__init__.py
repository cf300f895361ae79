"""The memory update in C, compiled for the processor when it is first asked for.

One inner step, forgetting per head or layer, tensors on the CPU.
"""

import functools
import warnings
from collections.abc import Sequence
from ctypes import CDLL

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update.chunked import begin_chunks, final_position
from titans_kernels.memory_update.native.build import library, missing
from titans_kernels.memory_update.native.token import one_token, projected_token
from titans_kernels.memory_update.native.walk import Given, Place, native_walk
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    begin_document,
    first_phase,
    state_dtype,
)

MOST_LAYERS = 16
"""As in `chunk.h`."""

__all__ = ["decodes", "layer_token", "memory_update", "missing", "takes"]


def unsupported(q: Tensor, layers: int, rule: UpdateRule) -> str | None:
    """What of a call this backend does not do, and what came instead; None where it does all."""
    if q.device.type != "cpu":
        return f"tensors on the CPU: got {q.device}"
    if rule.inner_steps > 1:
        return f"inner_steps = 1: got {rule.inner_steps}"
    if rule.channel_forget:
        return "channel_forget = False: got True"
    if layers > MOST_LAYERS:
        return f"at most {MOST_LAYERS} layers: got {layers}"
    return None


def takes(q: Tensor, layers: int, rule: UpdateRule) -> bool:
    """Whether "auto" may choose this backend for a call."""
    return unsupported(q, layers, rule) is None and not missing() and compiles(state_dtype(q.dtype))


@functools.cache
def compiles(dtype: torch.dtype) -> bool:
    """Whether the library is there or could be made; warns, once, where it could not."""
    try:
        library(dtype)
    except ValueError as error:
        warnings.warn(f"{error} backend 'auto' takes 'chunked' for now.", stacklevel=2)
        return False
    return True


def memory_update(
    q: Float[Tensor, "B T H D"],
    k: Float[Tensor, "B T H D"],
    v: Float[Tensor, "B T H D"],
    step_size: Float[Tensor, "B T H _"],
    momentum: Float[Tensor, "B T H _"],
    forget: Float[Tensor, "B T H _"],
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None,
    mask: Bool[Tensor, "B T"],
    reset: Bool[Tensor, "B T"] | None,
    state: MemoryState,
    start: MemoryState | None,
) -> tuple[Float[Tensor, "B T H D"], MemoryState]:
    """Writes every token into the memory and reads it after, a row and head after another."""
    if why := unsupported(q, len(initial), rule):
        raise ValueError(f"backend 'native' takes {why}. Take 'auto' or 'chunked'.")
    run = library(q.dtype)
    if q.shape[1] == 0:
        return q, state
    everything = (q, k, v, step_size, momentum, forget, initial, norm, state)
    if q.shape[1] == 1 and not differentiable(*everything):
        tokens = (q, k, v, step_size, momentum, forget)
        return single(run, tokens, initial, rule, norm, mask[:, 0], reset, state, start)
    phase = first_phase(state.position, mask, reset, rule.chunk_size).tolist()
    begun = start if reset is not None else None
    given = Given(
        q, k, v, step_size, momentum, forget,
        memory=list(state.memory), held=list(state.chunk_memory), surprise=list(state.surprise),
        start_memory=[] if begun is None else list(begun.memory),
        start_surprise=[] if begun is None else list(begun.surprise),
        base=[w[None] for w in initial] if rule.forget_toward == "initial" else [],
        affine=list(norm or ()),
    )  # fmt: skip
    position = final_position(state.position, mask, reset)
    y, after = native_walk(run, given, rule, Place(phase, mask, reset), position)
    return y, begin_chunks((position % rule.chunk_size == 0).tolist(), after)


def single(
    run: CDLL,
    tokens: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    initial: InitialWeights,
    rule: UpdateRule,
    norm: Norm | None,
    mask: Bool[Tensor, " B"],
    reset: Bool[Tensor, "B 1"] | None,
    state: MemoryState,
    start: MemoryState | None,
) -> tuple[Tensor, MemoryState]:
    """`memory_update` of one token, without gradients."""
    if reset is not None and start is not None:
        state = begin_document(reset[:, 0], start, state)
    written, position = mask.tolist(), state.position.tolist()
    opens = [w and p % rule.chunk_size == 0 for w, p in zip(written, position, strict=True)]
    state = begin_chunks(opens, state)
    y, state = one_token(run, tokens, initial, rule, norm, mask, state)
    closed = [(p + w) % rule.chunk_size == 0 for w, p in zip(written, position, strict=True)]
    return y, begin_chunks(closed, state._replace(position=state.position + mask))


def decodes(x: Tensor, weights: Sequence[Tensor], *, rule: UpdateRule) -> bool:
    """Whether `layer_token` takes tokens of a layer with these weights, M_{-1} among them."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    dtypes = {x.dtype, *(w.dtype for w in weights)}
    return dtypes in ({torch.float32}, {torch.float64}) and takes(x, len(weights), rule)


def layer_token(
    projected: Float[Tensor, "B 1 C"],
    tail: Float[Tensor, "B S C"],
    taps: Float[Tensor, "C K"],
    logits: Float[Tensor, "B 1 _"],
    gates: dict[str, int],
    max_step: float,
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm,
    state: MemoryState,
    out: tuple[Float[Tensor, "H D"], Float[Tensor, "B 1 H*D"]] | None = None,
) -> tuple[Float[Tensor, "B 1 H D"], Float[Tensor, "B S C"], MemoryState]:
    """One token from a layer's projections on: outputs, convolution tail and state after it.

    q, k and v of all heads stand side by side, and are yet to be convolved, activated (SiLU) and, q and
    k, brought to length 1. `gates` says how many of step_size, momentum and forget the logits hold per
    head, in this order. With `out` the outputs are normed (RMS), times a gain, and gated (SiLU).
    """
    position = state.position.tolist()
    state = begin_chunks([p % rule.chunk_size == 0 for p in position], state)
    parts = (projected, tail.to(projected.dtype).contiguous(), taps.contiguous(), logits)
    y, tail, state = projected_token(
        library(projected.dtype), *parts, gates, max_step, out, initial, rule, norm, state
    )
    closed = [(p + 1) % rule.chunk_size == 0 for p in position]
    return y, tail, begin_chunks(closed, state._replace(position=state.position + 1))


def differentiable(*parts: object) -> bool:
    """Whether a tensor among these, or in tuples of them, asks for a gradient."""
    if not torch.is_grad_enabled():
        return False
    tensors = (part for part in parts if isinstance(part, Tensor))
    return any(x.requires_grad for x in tensors) or any(
        differentiable(*part) for part in parts if isinstance(part, tuple)
    )
