"""Mamba's selective scan: every number of the state decays and is written to by itself.

B batch, T time, E channels, N numbers of state for each channel. `README.md` beside this file says how
the fast form goes; `reference.py` is the definition.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.linear_recurrence.checks import check_beside, check_state_kind
from titans_kernels.memory_update.checks import check_flags
from titans_kernels.memory_update.types import state_dtype
from titans_kernels.selective_scan import chunked, reference

BACKENDS = {"reference": reference.selective_scan, "chunked": chunked.selective_scan}

__all__ = ["selective_scan"]


def selective_scan(
    x: Float[Tensor, "B T E"],
    step: Float[Tensor, "B T E"],
    rate: Float[Tensor, "E N"],
    writer: Float[Tensor, "B T N"],
    reader: Float[Tensor, "B T N"],
    *,
    mask: Bool[Tensor, "B T"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    state: Float[Tensor, "B E N"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """h_t = exp(step_t rate) h_{t-1} + step_t x_t writer_t', y_t = h_t reader_t: outputs and the last state.

    `step` (Mamba's Delta) is positive, `rate` (its A) negative; `writer` and `reader` are its B and C.
    `mask` is False on padding, which changes nothing; `reset` is True where a document begins, at any
    token, with an empty state. State and accumulation are float32, or float64 for float64 inputs; the
    output has x's dtype. `backend="auto"` takes "reference" for a single token, else "chunked".
    """
    check_inputs(x, step, rate, writer, reader)
    check_flags(mask, reset, x, "x")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}: got {backend!r}.")
    if backend == "auto":
        backend = "reference" if x.shape[1] == 1 else "chunked"
    # Under autocast the reading would silently run in lower precision than the state is kept in.
    with torch.autocast(x.device.type, enabled=False):
        dtype = state_dtype(x.dtype)
        if state is None:
            state = x.new_zeros(x.shape[0], *rate.shape, dtype=dtype)
        else:
            expected = [x.shape[0], *rate.shape]
            if list(state.shape) != expected:
                raise ValueError(
                    f"state must have shape [B, E, N] = {expected}: got {list(state.shape)}. It "
                    "belongs to another layer or batch size."
                )
            check_state_kind(state, x)
        streams = [s.to(dtype) for s in (x, step, writer, reader)]
        if mask is not None:
            # A step of 0 neither decays nor writes; and what stands under the mask may be NaN.
            streams = [s.masked_fill(~mask[..., None], 0) for s in streams]
        inputs = (*streams[:2], rate.to(dtype), *streams[2:])
        y, state = BACKENDS[backend](*inputs, reset=reset, state=state)
    return y.to(x.dtype), state


def check_inputs(x: Tensor, step: Tensor, rate: Tensor, writer: Tensor, reader: Tensor) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point, of shape [B, T, E]: got {x.dtype} {list(x.shape)}."
        )
    if rate.ndim != 2 or rate.shape[0] != x.shape[2]:
        raise ValueError(
            f"rate must have shape [E, N] = [{x.shape[2]}, N]: got {list(rate.shape)}."
        )
    narrow = [*x.shape[:2], rate.shape[1]]
    for name, part, shape in (
        ("step", step, list(x.shape)),
        ("rate", rate, list(rate.shape)),
        ("writer", writer, narrow),
        ("reader", reader, narrow),
    ):
        if list(part.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}: got {list(part.shape)}.")
        check_beside(name, part, x)
