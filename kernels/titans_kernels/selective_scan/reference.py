"""The selective scan as it is defined: one token at a time, no tricks.

B batch, T time, E channels, N numbers of state for each channel. Mamba, arXiv 2312.00752, eq. 2 with
its discretisation: exact for the decay, Euler's for the input.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def selective_scan(
    x: Float[Tensor, "B T E"],
    step: Float[Tensor, "B T E"],
    rate: Float[Tensor, "E N"],
    writer: Float[Tensor, "B T N"],
    reader: Float[Tensor, "B T N"],
    *,
    reset: Bool[Tensor, "B T"] | None,
    state: Float[Tensor, "B E N"],
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """Decays the state, adds the token, then reads."""
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            state = torch.where(reset[:, t, None, None], 0, state)
        decay = (step[:, t, :, None] * rate).exp()
        state = decay * state + (step[:, t] * x[:, t])[..., None] * writer[:, t, None]
        outputs.append((state * reader[:, t, None]).sum(-1))
    return (torch.stack(outputs, 1) if outputs else x), state
