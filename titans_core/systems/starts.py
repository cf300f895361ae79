"""Starting values of decays: how fast a memory forgets before anything is learned.

Mamba's, arXiv 2312.00752, section 3.6, and Mamba-2's, which Gated DeltaNet has too.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SLOWEST, FASTEST = 1e-3, 1e-1
"""Steps of a token of zeros are drawn evenly between the logarithms of these."""


def step_bias(count: int) -> Float[Tensor, " N"]:
    """Biases that softplus makes into such steps."""
    logs = torch.empty(count).uniform_(math.log(SLOWEST), math.log(FASTEST))
    step = logs.exp()
    return step + torch.log(-torch.expm1(-step))


def log_of_uniform(count: int, low: float, high: float) -> Float[Tensor, " N"]:
    """Logarithms of rates drawn between the two; what would be 0 has one."""
    return torch.empty(count).uniform_(low, high).clamp_min(1e-2).log()
