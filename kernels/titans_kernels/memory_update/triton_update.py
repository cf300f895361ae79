"""The memory update on a GPU, by Triton kernels: the numbers of `reference.py`, and what it can take."""

import functools
import importlib.util
import os

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_kernels.memory_update import chunked
from titans_kernels.memory_update.checks import refuse_tangents
from titans_kernels.memory_update.triton_launch import SHARED_BYTES, slices_of
from titans_kernels.memory_update.types import InitialWeights, MemoryState, Norm, UpdateRule

LARGEST_CHUNK, LARGEST_WIDTH = 64, 128


def missing() -> str | None:
    """Why it cannot run here; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (torch.cuda.is_available() or interpreted()):
        return "there is no CUDA device, and TRITON_INTERPRET=1 is not set"
    return None


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """Programs that surely run side by side, and bytes of shared memory that one of them may have."""
    if device.type != "cuda":
        # The interpreter runs one after another.
        return 1, SHARED_BYTES
    gpu = torch.cuda.get_device_properties(device)
    return gpu.multi_processor_count, getattr(gpu, "shared_memory_per_block_optin", 0)


def refusal(q: Tensor, initial: InitialWeights, rule: UpdateRule) -> str | None:
    """Why a call is not for it, and what to do; None where it is."""
    absent = missing()
    if absent is not None:
        return f"{absent}: take backend='chunked'"
    if not (q.is_cuda or interpreted()):
        return f"got tensors on {q.device}; move them to a CUDA device, or take backend='chunked'"
    layers, width = len(initial), q.shape[-1] if q.ndim == 4 else 0
    hidden = initial[0].shape[1] if layers == 2 and initial[0].ndim == 3 else width
    slices, (programs, shared) = slices_of(layers, hidden, width), limits(q.device)
    for fits, came in (
        (q.dtype != torch.float64 or interpreted(), "float64; it takes float32, bfloat16 and float16"),
        (layers <= 2, f"a memory of {layers} layers; it takes 1 or 2"),
        (rule.inner_steps == 1, f"inner_steps = {rule.inner_steps}; it takes 1"),
        (not rule.channel_forget, "channel_forget; it takes forgetting per head or layer"),
        (rule.chunk_size <= LARGEST_CHUNK, f"chunk_size = {rule.chunk_size}; it takes up to {LARGEST_CHUNK}"),
        (width <= LARGEST_WIDTH, f"heads of width {width}; it takes up to {LARGEST_WIDTH}"),
        (shared >= SHARED_BYTES, f"a device with {shared >> 10} KiB of shared memory for a program; it takes "
            f"{SHARED_BYTES >> 10}, as of compute capability 9.0"),
        (slices <= programs, f"a hidden width of {hidden}, in {slices} slices that wait for each other; this "
            f"device runs {programs} at once"),
    ):  # fmt: skip
        if not fits:
            return f"got {came}, or take backend='chunked'"
    return None


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
    """Writes every token into the memory and reads it after, chunk by chunk on the chip."""
    from titans_kernels.memory_update.triton_token import one_token
    from titans_kernels.memory_update.triton_walk import triton_walk

    parts = [*state[:3], initial, norm or (), *(start[:3] if start is not None else ())]
    leaves = [q, k, v, step_size, momentum, forget, *(w for part in parts for w in part)]
    refuse_tangents("triton", leaves)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    return chunked.memory_update(
        q, k, v, step_size, momentum, forget, initial, rule=rule, norm=norm, mask=mask, reset=reset,
        state=state, start=start, walk=triton_walk, token=None if learns else one_token,
    )  # fmt: skip
