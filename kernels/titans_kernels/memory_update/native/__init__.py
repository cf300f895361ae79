"""The memory update in C, compiled for the processor when it is first asked for.

One inner step, forgetting per head or layer, tensors on the CPU.
"""

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from ctypes import CDLL

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad

from titans_kernels.memory_update.checks import refuse_tangents
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
    return unsupported(q, layers, rule) is None and compiles(state_dtype(q.dtype))


@functools.cache
def compiles(dtype: torch.dtype) -> bool:
    """Whether the library is there or could be made; warns, once, where it could not.

    Nobody is told of a compiler that is missing and was not asked for.
    """
    try:
        library(dtype)
    except ValueError as error:
        if os.environ.get("CC") or not missing():
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
    if 0 in q.shape[:2]:
        return q, state
    everything = [*tensors_of(q, k, v, step_size, momentum, forget, initial, norm, state, start)]
    refuse_tangents("native", everything)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in everything)
    if q.shape[1] == 1 and not learns:
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


def decodes(x: Tensor, weights: Sequence[Tensor], layers: int, *, rule: UpdateRule) -> bool:
    """Whether `layer_token` takes tokens of a layer with these weights and a memory of so many layers.

    `weights` are all that it reads, or that make what it reads.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or in_forward_mode():
        return False
    dtypes = {x.dtype, *(w.dtype for w in weights)}
    return dtypes in ({torch.float32}, {torch.float64}) and takes(x, layers, rule)


def in_forward_mode() -> bool:
    """Whether tensors may have tangents."""
    return forward_ad._current_level >= 0


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
    Where `decodes` says so; what comes is read as raw memory, so all of it is checked.
    """
    tail = tail.to(projected.dtype)
    check_token(projected, tail, taps, logits, gates, initial, norm, out, state)
    position = state.position.tolist()
    state = begin_chunks([p % rule.chunk_size == 0 for p in position], state)
    if out is not None:
        out = (out[0].contiguous(), out[1].contiguous())
    parts = (projected.contiguous(), tail.contiguous(), taps.contiguous(), logits.contiguous())
    y, tail, state = projected_token(
        library(projected.dtype), *parts, gates, max_step, out, initial, rule, norm, state
    )
    closed = [(p + 1) % rule.chunk_size == 0 for p in position]
    return y, tail, begin_chunks(closed, state._replace(position=state.position + 1))


def check_token(
    projected: Tensor,
    tail: Tensor,
    taps: Tensor,
    logits: Tensor,
    gates: dict[str, int],
    initial: InitialWeights,
    norm: Norm,
    out: tuple[Tensor, Tensor] | None,
    state: MemoryState,
) -> None:
    """Shapes, dtypes and devices, in few steps where all is well."""
    layers, (heads, _, width), (gain, bias) = len(initial), initial[0].shape, norm
    (batch, _, channels), dtype, taps_count = projected.shape, projected.dtype, taps.shape[1]
    sides = [width, *[w.shape[1] for w in initial[:-1]], width]
    matrices = [(heads, sides[i + 1], sides[i]) for i in range(layers)]
    of_state = [(batch, *shape) for shape in matrices]
    memory, held, surprise, position, _ = state
    tensors = [
        projected, tail, taps, logits, gain, bias, *(out or ()), *initial, *memory, *held, *surprise,
    ]  # fmt: skip
    shapes = [
        (batch, 1, 3 * heads * width), (batch, taps_count - 1, channels), (channels, taps_count),
        (batch, 1, heads * sum(gates.values())), (heads, width), (heads, width),
        *([(heads, width), (batch, 1, heads * width)] if out else ()), *matrices, *of_state * 3,
    ]  # fmt: skip
    if any(count not in (1, layers) for count in gates.values()):
        raise ValueError(f"gates must have 1 or {layers} logits per head: got {gates}.")
    if position.shape != (batch,):
        raise ValueError(f"state.position must have shape [{batch}]: got {list(position.shape)}.")
    kinds = {(x.dtype, x.is_cpu) for x in tensors}
    if kinds == {(dtype, True)} and [x.shape for x in tensors] == shapes:
        return
    names = ["projected", "tail", "taps", "logits", "gain", "bias"]
    names += ["out[0]", "out[1]"] if out else []
    for part in ("initial", "state.memory", "state.chunk_memory", "state.surprise"):
        names += [f"{part}[{i}]" for i in range(layers)]
    for name, x, shape in zip(names, tensors, shapes, strict=True):
        if x.shape != shape or x.dtype != dtype or not x.is_cpu:
            raise ValueError(
                f"{name} must be {dtype} of shape {list(shape)} on the CPU: got {x.dtype} "
                f"{list(x.shape)} on {x.device}. Give what a layer's own projections, weights and state are."
            )


def tensors_of(*parts: object) -> Iterator[Tensor]:
    """The tensors among these and in tuples of them."""
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from tensors_of(*part)
