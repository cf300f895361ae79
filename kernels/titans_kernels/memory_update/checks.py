"""What a caller of the memory update may pass, checked once; errors say what came and what to do."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from titans_kernels.memory_update.types import (
    InitialWeights,
    MemoryState,
    Norm,
    UpdateRule,
    first_phase,
    state_dtype,
)


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor], layers: int, rule: UpdateRule
) -> None:
    check_tokens(q=q, k=k, v=v)
    for name, x in gates.items():
        check_beside(name, x, "q", q)
    for name, gate in gates.items():
        if name == "forget" and rule.channel_forget:
            if gate.shape != q.shape:
                raise ValueError(
                    f"forget must have one value per head and channel, shape [B, T, H, D] = "
                    f"{list(q.shape)}: got {list(gate.shape)}."
                )
            continue
        per_layer = gate.shape[3:]
        if gate.shape[:3] != q.shape[:3] or per_layer not in ((), (1,), (layers,)):
            raise ValueError(
                f"{name} must have one value per head, shape [B, T, H] = {list(q.shape[:3])}, or one "
                f"per head and memory layer, [B, T, H, {layers}]: got {list(gate.shape)}."
            )


def check_tokens(**streams: Tensor) -> None:
    """Every stream by its name; the first is what the others stand beside."""
    (first, x), *others = streams.items()
    if x.ndim != 4:
        raise ValueError(f"{first} must have shape [B, T, H, D]: got {list(x.shape)}.")
    if 0 in x.shape[2:]:
        raise ValueError(
            f"{first} must have at least one head and one channel, [B, T, H, D]: got {list(x.shape)}."
        )
    if not x.is_floating_point():
        raise TypeError(f"{first} must be floating point: got {x.dtype}.")
    for name, other in others:
        if other.shape != x.shape:
            raise ValueError(
                f"{name} must have {first}'s shape [B, T, H, D] = {list(x.shape)}: got "
                f"{list(other.shape)}."
            )
        check_beside(name, other, first, x)


def check_beside(name: str, x: Tensor, first: str, other: Tensor) -> None:
    """x goes with `other`, which is called `first`."""
    if x.device != other.device:
        raise ValueError(f"{name} must be on {first}'s device {other.device}: got {x.device}.")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point: got {x.dtype}.")
    if (x.dtype == torch.float64) != (other.dtype == torch.float64):
        raise TypeError(
            f"{name} must have {first}'s precision {other.dtype}: got {x.dtype}; convert one."
        )


def check_initial(initial: InitialWeights, norm: Norm | None, q: Tensor) -> None:
    heads, width = q.shape[2:]
    if not initial:
        raise ValueError("initial must hold at least one weight matrix [H, out, in]: got none.")
    inside = width
    for layer, w in enumerate(initial):
        hidden = (w.shape[1] if w.ndim == 3 else 0) or 4 * width
        outside = width if layer == len(initial) - 1 else hidden
        if w.shape != (heads, outside, inside):
            raise ValueError(
                f"initial[{layer}] must have shape [H, out, in] = [{heads}, {outside}, {inside}]: "
                f"got {list(w.shape)}."
            )
        if w.device != q.device:
            raise ValueError(f"initial[{layer}] must be on q's device {q.device}: got {w.device}.")
        inside = w.shape[1]
    if norm is None:
        return
    shapes = [list(part.shape) for part in norm]
    if shapes != [[heads, width]] * 2:
        raise ValueError(
            f"norm must be a gain and a bias of shape [H, D] = [{heads}, {width}]: got {shapes}."
        )
    for part in norm:
        if part.device != q.device:
            raise ValueError(f"norm must be on q's device {q.device}: got {part.device}.")


def check_state(
    state: MemoryState, initial: InitialWeights, batch: int, name: str, rule: UpdateRule
) -> None:
    if len(state.passes) != rule.inner_steps - 1:
        raise ValueError(
            f"{name} must hold {rule.inner_steps - 1} passes for inner_steps = {rule.inner_steps}: "
            f"got {len(state.passes)}. It belongs to another model."
        )
    dtype, device = state_dtype(initial[0].dtype), initial[0].device
    expected = [[batch, *w.shape] for w in initial]
    for part in (*state[:3], *(part for stream in state.passes for part in stream)):
        if [list(w.shape) for w in part] != expected:
            raise ValueError(
                f"{name} must hold weights of shape [B, H, out, in] = {expected}: got "
                f"{[list(w.shape) for w in part]}. It belongs to another model or batch size."
            )
        for w in part:
            if w.device != device or w.dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} on {device}: got {w.dtype} on {w.device}. "
                    "Convert the state or the model."
                )
    if state.position.shape != (batch,):
        raise ValueError(
            f"{name}.position must have shape [B] = [{batch}]: got {list(state.position.shape)}."
        )
    if state.position.dtype not in (torch.int32, torch.int64) or state.position.device != device:
        raise ValueError(
            f"{name}.position must be whole numbers, torch.int64, on {device}: got "
            f"{state.position.dtype} on {state.position.device}."
        )


def refuse_tangents(backend: str, tensors: Iterable[Tensor]) -> None:
    """A backend whose derivative goes backward alone would drop those of forward mode."""
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise ValueError(
            f"backend {backend!r} takes tensors without a tangent of forward-mode derivatives: got one "
            "with it. Take 'reference'."
        )


def check_flags(mask: Tensor | None, reset: Tensor | None, x: Tensor, name: str) -> None:
    """One flag for each token of x [B, T, ...], which is called `name`; padding on documents' right."""
    shape = list(x.shape[:2])
    for kind, flags in (("mask", mask), ("reset", reset)):
        if flags is None:
            continue
        if flags.dtype != torch.bool or list(flags.shape) != shape:
            raise ValueError(
                f"{kind} must be boolean, one flag for each token, [B, T] = {shape}: got "
                f"{flags.dtype} {list(flags.shape)}."
            )
        if flags.device != x.device:
            raise ValueError(f"{kind} must be on {name}'s device {x.device}: got {flags.device}.")
    if mask is None or x.shape[1] < 2:
        return
    resumed = mask[:, 1:] & ~mask[:, :-1]
    if reset is not None:
        resumed = resumed & ~reset[:, 1:]
    if resumed.any():
        row, t = resumed.nonzero()[0].tolist()
        raise ValueError(
            f"mask must be False only at the end of a document: row {row} goes on at token {t + 1} "
            "after masked tokens. Pad on the right, or set reset where the next begins."
        )


def check_layout(
    mask: Tensor | None, reset: Tensor | None, q: Tensor, position: Tensor, rule: UpdateRule
) -> None:
    """Padding stands on the right of a document, and a document starts on its row's chunk grid."""
    check_flags(mask, reset, q, "q")
    if q.shape[1] == 0:
        return
    if reset is not None:
        phase = first_phase(position, mask, reset, rule.chunk_size)
        grid = phase[:, None] + torch.arange(q.shape[1], device=q.device)
        off = reset & (grid % rule.chunk_size != 0)
        off[:, 0] = False
        if off.any():
            row, t = off.nonzero()[0].tolist()
            raise ValueError(
                f"reset must fall on a multiple of chunk_size = {rule.chunk_size} tokens of its row: "
                f"got row {row}, token {t}. Fill the gap before it with masked tokens, or begin a "
                "call with the document."
            )
