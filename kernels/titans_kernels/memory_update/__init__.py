"""Writes tokens into a memory MLP by gradient steps with momentum and forgetting, and reads it.

B batch, T time, H memory heads, D width of a head, L layers of the memory MLP. `README.md` beside this
file derives the fast form; `reference.py` is the definition that every backend is tested against.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update import chunked, native, reference, triton_update
from titans_kernels.memory_update.checks import (
    check_initial,
    check_inputs,
    check_layout,
    check_state,
    check_tokens,
)
from titans_kernels.memory_update.chunk import Inputs, write
from titans_kernels.memory_update.coefficients import Coefficients
from titans_kernels.memory_update.network import activate, normalize
from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    Weights,
    fresh_state,
    state_dtype,
)

BACKENDS = {
    "reference": reference.memory_update,
    "chunked": chunked.memory_update,
    "native": native.memory_update,
    "triton": triton_update.memory_update,
}

__all__ = [
    "BACKENDS",
    "InitialWeights",
    "MemoryState",
    "Norm",
    "UpdateRule",
    "Weights",
    "available_backends",
    "fresh_state",
    "memory_read",
    "memory_update",
    "momentary_surprise",
    "state_dtype",
]


def available_backends() -> dict[str, str | None]:
    """Every backend's name, with None where it can run here and the reason where it cannot."""
    why = {"native": native.missing(), "triton": triton_update.missing()}
    return {**dict.fromkeys(BACKENDS), **why}


def memory_update(
    q: Float[Tensor, "B T H D"],
    k: Float[Tensor, "B T H D"],
    v: Float[Tensor, "B T H D"],
    step_size: Float[Tensor, "B T H"] | Float[Tensor, "B T H L"],
    momentum: Float[Tensor, "B T H"] | Float[Tensor, "B T H L"],
    forget: Float[Tensor, "B T H"] | Float[Tensor, "B T H L"] | Float[Tensor, "B T H D"],
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None = None,
    mask: Bool[Tensor, "B T"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    state: MemoryState | None = None,
    start: MemoryState | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T H D"], MemoryState]:
    """Writes each token (k, v) into the memory, then reads it at q: outputs and the state after them.

    `initial` is M_{-1}. `mask` is False on padding, which writes nothing and does not advance the
    chunk grid; `reset` is True at the first token of a document, and gives the row its start state
    back: `start` (a state of batch 1) or, without one, M_{-1} and no surprise. State and accumulation
    are float32, or float64 for float64 inputs; the output has q's dtype.

    `backend="auto"` takes "native" on a CPU where there is a C compiler and "triton" on a CUDA device with
    the shared memory of compute capability 9.0, for one inner step and forgetting per head, at a depth of 1
    or 2 on the latter, else "chunked"; a backend asked for by name runs or raises. Forward-mode derivatives
    are those of "reference" alone.
    Raises ValueError or TypeError for shapes, dtypes, devices and layouts that do not fit.
    """
    if torch.compiler.is_compiling():
        # The walk is one step to a graph, with a backward of its own: nothing in it to be traced.
        return torch.compiler.disable(memory_update)(
            q, k, v, step_size, momentum, forget, initial, rule=rule, norm=norm, mask=mask,
            reset=reset, state=state, start=start, backend=backend,
        )  # fmt: skip
    run = choose_backend(backend, q, initial, rule)
    gates = {"step_size": step_size, "momentum": momentum, "forget": forget}
    check_inputs(q, k, v, gates, len(initial), rule)
    check_initial(initial, norm, q)
    # Under autocast the products would silently run in lower precision than the state is kept in.
    with torch.autocast(q.device.type, enabled=False):
        dtype = state_dtype(q.dtype)
        initial = tuple(w.to(dtype) for w in initial)
        if start is not None:
            check_state(start, initial, 1, "start", rule)
        if state is None or reset is not None:
            start = fresh_state(initial, 1, rule=rule, start=start)
        if state is None:
            state = fresh_state(initial, q.shape[0], rule=rule, start=start)
        else:
            check_state(state, initial, q.shape[0], "state", rule)
        check_layout(mask, reset, q, state.position, rule)
        per_layer = (gate if gate.ndim == 4 else gate[..., None] for gate in gates.values())
        inputs = [x.to(dtype) for x in (q, k, v, *per_layer)]
        if mask is None:
            mask = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
        else:
            # What stands under the mask may be anything, and 0 times NaN is NaN.
            inputs = [x.masked_fill(~mask[..., None, None], 0) for x in inputs]
        y, state = run(
            *inputs,
            initial,
            rule=rule,
            norm=None if norm is None else (norm[0].to(dtype), norm[1].to(dtype)),
            mask=mask,
            reset=reset,
            state=state,
            start=start,
        )
    return y.to(q.dtype), state


def memory_read(
    q: Float[Tensor, "B T H D"],
    state: MemoryState,
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None = None,
) -> Float[Tensor, "B T H D"]:
    """f(M; q) at the state's running memory, for every token; nothing is written."""
    check_tokens(q=q)
    check_initial(initial, norm, q)
    with torch.autocast(q.device.type, enabled=False):
        dtype = state_dtype(q.dtype)
        check_state(state, tuple(w.to(dtype) for w in initial), q.shape[0], "state", rule)
        x = u = q.to(dtype).movedim(2, 1)  # [B, H, T, D]
        for layer, (w, base) in enumerate(zip(state.memory, initial, strict=True)):
            z = x @ (w if rule.forget_toward == "zero" else base.to(dtype) + w).mT
            x = activate(z, rule.activation) if layer < len(initial) - 1 else z
        if norm is not None:
            x = normalize(x)[0] * norm[0].to(dtype)[:, None] + norm[1].to(dtype)[:, None]
        return (u + x if rule.residual else x).movedim(1, 2).to(q.dtype)


def momentary_surprise(
    k: Float[Tensor, "B T H D"],
    v: Float[Tensor, "B T H D"],
    state: MemoryState,
    initial: InitialWeights,
    *,
    rule: UpdateRule,
    norm: Norm | None = None,
) -> Float[Tensor, "B T H L"]:
    """Norm of each token's gradient (eq. 12), unclamped, for tokens of the chunk that the state is in.

    With several inner steps it is the first one's. Float32, or float64 for float64 inputs.
    """
    check_tokens(k=k, v=v)
    check_initial(initial, norm, k)
    with torch.autocast(k.device.type, enabled=False):
        dtype = state_dtype(k.dtype)
        initial = tuple(w.to(dtype) for w in initial)
        # Later steps are not asked for, nor what the state holds of them.
        rule, state = replace(rule, max_surprise=None, inner_steps=1), state._replace(passes=())
        check_state(state, initial, k.shape[0], "state", rule)
        k, v = (x.to(dtype).movedim(2, 1).flatten(0, 1) for x in (k, v))  # [R, T, D]
        rows = len(k)

        def per_row(x: Tensor) -> Tensor:
            return x.expand(rows // len(x), *x.shape).flatten(0, 1)

        ones = k.new_ones(rows, 1, k.shape[1], 1)
        affine = None
        if norm is not None:
            gain, bias = (per_row(part.to(dtype)[:, None]) for part in norm)
            affine = (gain, bias)
        chunk = Inputs(
            k, k, v,
            Coefficients(*[ones] * 6),
            None if rule.forget_toward == "zero" else [per_row(w) for w in initial],
            affine,
            rule,
        )  # fmt: skip
        keys = write(chunk, chunk.weights([w.flatten(0, 1) for w in state.chunk_memory]))
        both = zip(keys.errors, keys.inputs, strict=True)
        norms = torch.stack([e.norm(dim=-1) * x.norm(dim=-1) for e, x in both], -1)
        return norms.unflatten(0, state.memory[0].shape[:2]).movedim(1, 2)


def choose_backend(name: str, q: Tensor, initial: InitialWeights, rule: UpdateRule):  # type: ignore[no-untyped-def]
    if name == "auto":
        if q.is_cuda and triton_update.refusal(q, initial, rule) is None:
            return BACKENDS["triton"]
        return BACKENDS["native" if native.takes(q, len(initial), rule) else "chunked"]
    if name not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}: got {name!r}.")
    refusal = triton_update.refusal(q, initial, rule) if name == "triton" else None
    if refusal is not None:
        raise ValueError(f"backend 'triton' cannot take this call: {refusal}.")
    return BACKENDS[name]
