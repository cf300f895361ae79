"""Linear recurrences: a matrix that decays, is written to, and is read, S_t = decay_t S_{t-1} + write_t.

B batch, T time, H heads, G heads of queries and keys (H or 1), K, V widths of keys and values.
`README.md` beside this file derives the fast form; `reference.py` is the definition.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.linear_recurrence import chunked, reference
from titans_kernels.linear_recurrence.checks import check_gates, check_state, check_streams
from titans_kernels.memory_update.checks import check_flags
from titans_kernels.memory_update.types import state_dtype

BACKENDS = {
    "reference": reference.linear_recurrence,
    "chunked": chunked.linear_recurrence,
}

__all__ = ["linear_recurrence"]


def linear_recurrence(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H _"] | None = None,
    channels: Literal["keys", "values"] = "keys",
    beta: Float[Tensor, "B T H"] | None = None,
    mask: Bool[Tensor, "B T"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    state: Float[Tensor, "B H V K"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H V K"]]:
    """Decays the state, writes each token (k, v), then reads it at q: outputs and the state after them.

    S_t = decay_t S_{t-1} + u_t k_t' and y_t = S_t q_t. `log_decay` is at most 0, one value per head, or
    per channel of what `channels` says: of the keys, S diag(decay), or of the values, diag(decay) S; None
    for no decay. Without `beta` u_t = v_t, the dot product; with it the delta rule with a decay per head,
    u_t = beta_t (v_t - decay_t S_{t-1} k_t), whose gradient is taken at the decayed state. q and k of
    one head are shared by all.

    `mask` is False on padding, which changes nothing; `reset` is True where a document begins, at any
    token, with an empty state. State and accumulation are float32, or float64 for float64 inputs; the
    output has v's dtype. `backend="auto"` takes "reference" for a single token, else "chunked".
    """
    check_streams(q, k, v)
    check_gates(k, v, log_decay, channels, beta)
    check_flags(mask, reset, v, "v")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}: got {backend!r}.")
    if backend == "auto":
        backend = "reference" if v.shape[1] == 1 else "chunked"
    # Under autocast the products would silently run in lower precision than the state is kept in.
    with torch.autocast(v.device.type, enabled=False):
        kind, dtype = v.dtype, state_dtype(v.dtype)
        batch, _, heads, width = v.shape
        if state is None:
            state = v.new_zeros(batch, heads, width, k.shape[3], dtype=dtype)
        else:
            check_state(state, q, v)
        if log_decay is None:
            log_decay = v.new_zeros(*v.shape[:3])
        if log_decay.ndim == 3:
            log_decay = log_decay[..., None]
        # Beside a state of [H, V, K].
        log_decay = log_decay[..., None, :] if channels == "keys" else log_decay[..., None]
        q, k, v, log_decay = (x.to(dtype) for x in (q, k, v, log_decay))
        # Nothing is left of what has decayed by e^-1000, in any dtype; and 0 times infinity is NaN.
        log_decay = log_decay.clamp_min(-1000)
        beta = None if beta is None else beta.to(dtype)
        if mask is None:
            mask = torch.ones(v.shape[:2], dtype=torch.bool, device=v.device)
        else:
            # What stands under the mask may be anything, and 0 times NaN is NaN.
            q, k, v = (x.masked_fill(~mask[..., None, None], 0) for x in (q, k, v))
            log_decay = log_decay.masked_fill(~mask[..., None, None, None], 0)
            beta = None if beta is None else beta.masked_fill(~mask[..., None], 0)
        y, state = BACKENDS[backend](
            q, k, v, log_decay=log_decay, beta=beta, mask=mask, reset=reset, state=state
        )
    return y.to(kind), state
