"""The linear recurrence as it is defined: one token at a time, no tricks.

B batch, T time, H heads, G heads of queries and keys (H, or 1 that all share), K, V widths of keys and
values.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def linear_recurrence(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H #V #K"],
    beta: Float[Tensor, "B T H"] | None,
    mask: Bool[Tensor, "B T"],
    reset: Bool[Tensor, "B T"] | None,
    state: Float[Tensor, "B H V K"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H V K"]]:
    """Decays the state, writes the token, then reads."""
    outputs = []
    for t in range(v.shape[1]):
        if reset is not None:
            state = torch.where(reset[:, t, None, None, None], 0, state)
        decayed = log_decay[:, t].exp() * state
        key = k[:, t, :, None]  # [B, G, 1, K]
        value = v[:, t]
        if beta is not None:
            error = value - (decayed * key).sum(-1)
            value = beta[:, t, :, None] * error
        written = decayed + value[..., None] * key
        state = torch.where(mask[:, t, None, None, None], written, state)
        outputs.append((state * q[:, t, :, None]).sum(-1))
    return (torch.stack(outputs, 1) if outputs else v), state
