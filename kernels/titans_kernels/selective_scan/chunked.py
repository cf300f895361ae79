"""The selective scan in about three times the square root of T steps.

B batch, T time, E channels, N numbers of state for each channel, M chunks, C tokens of a chunk. A step
goes through all chunks at once; then what each chunk leaves goes through the chunks, and back into them.
Every step works on what fits a cache: with all of [B, T, E, N] at a time the scan waits for memory.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    """The same numbers as `reference.selective_scan`."""
    if x.shape[1] == 0:
        return x, state
    return Scan.apply(step * x, step, rate, writer, reader, reset, state)


class Chunks(NamedTuple):
    """Streams cut into chunks, the tokens of a chunk first."""

    value: Float[Tensor, "C B M E"]  # step times x
    step: Float[Tensor, "C B M E"]
    writer: Float[Tensor, "C B M N"]
    reader: Float[Tensor, "C B M N"]


class Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        step: Tensor,
        rate: Tensor,
        writer: Tensor,
        reader: Tensor,
        reset: Tensor | None,
        start: Tensor,
    ) -> tuple[Tensor, Tensor]:
        chunks = Chunks(*(in_chunks(s) for s in (value, step, writer, reader)))
        begun = None if reset is None else in_chunks(reset[..., None])[..., None]
        decays, states = within_chunks(chunks, rate, begun)
        end = across_chunks(decays, states, start)
        read = zip(states, chunks.reader, strict=True)
        y = torch.stack([(state @ reader[..., None])[..., 0] for state, reader in read])
        ctx.save_for_backward(*chunks, rate, decays, states, start)
        ctx.time = value.shape[1]
        return whole(y, ctx.time), end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
        *streams, rate, decays, states, start = ctx.saved_tensors
        chunks, grads = Chunks(*streams), in_chunks(grad)
        errors, carried, first = back_through(chunks, decays, grads, grad_end)
        found, by_rate = [], torch.zeros_like(rate)
        before = torch.cat([start[:, None], states[-1, :, :-1]], 1)
        for i in reversed(range(len(decays))):
            error = errors[i].add_(carried)
            carried.mul_(decays[i])
            last = states[i - 1] if i else before
            logs = (error * last).mul_(decays[i])  # of the decay's logarithm, step times rate
            by_rate += (logs * chunks.step[i, ..., None]).sum((0, 1))
            found.append(
                (
                    (error @ chunks.writer[i, ..., None])[..., 0],
                    logs.mul_(rate).sum(-1),
                    (chunks.value[i, ..., None, :] @ error)[..., 0, :],
                    (grads[i, ..., None, :] @ states[i])[..., 0, :],
                )
            )
        value, step, writer, reader = (
            whole(torch.stack(parts[::-1]), ctx.time) for parts in zip(*found, strict=True)
        )
        return value, step, by_rate, writer, reader, None, first


def in_chunks(x: Shaped[Tensor, "B T _"]) -> Shaped[Tensor, "C B M _"]:
    """About as many chunks as tokens in each; the last is filled up with what changes nothing."""
    size = math.isqrt(x.shape[1] - 1) + 1
    x = F.pad(x, (0, 0, 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size)).movedim(2, 0).contiguous()


def whole(x: Float[Tensor, "C B M _"], time: int) -> Float[Tensor, "B T _"]:
    return x.movedim(0, 2).flatten(1, 2)[:, :time]


def within_chunks(
    chunks: Chunks, rate: Tensor, begun: Tensor | None
) -> tuple[Float[Tensor, "C B M E N"], Float[Tensor, "C B M E N"]]:
    """Decays, and the states of chunks that begin with nothing."""
    decays = chunks.step.new_empty(*chunks.step.shape, rate.shape[1])
    states = torch.empty_like(decays)
    for i, (decay, state) in enumerate(zip(decays, states, strict=True)):
        torch.mul(chunks.step[i, ..., None], rate, out=decay).exp_()
        if begun is not None:
            decay.masked_fill_(begun[i], 0)
        torch.mul(chunks.value[i, ..., None], chunks.writer[i, ..., None, :], out=state)
        if i:
            state.addcmul_(decay, states[i - 1])
    return decays, states


def across_chunks(decays: Tensor, states: Tensor, start: Tensor) -> Float[Tensor, "B E N"]:
    """Adds to the states, in place, what came before their chunks; the state after the last."""
    kept, carried = product(decays), torch.empty_like(decays[0])
    for m in range(decays.shape[2]):
        carried[:, m] = start
        start = torch.addcmul(states[-1, :, m], kept[:, m], start)
    for decay, state in zip(decays, states, strict=True):
        state.add_(carried.mul_(decay))
    return start


def back_through(
    chunks: Chunks, decays: Tensor, grads: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the states without those of later chunks, which reach each chunk's end as the second;
    and the error of the state before the first token. `error` is that of the last state."""
    errors = torch.empty_like(decays)
    for i in reversed(range(len(errors))):
        torch.mul(grads[i, ..., None], chunks.reader[i, ..., None, :], out=errors[i])
        if i + 1 < len(errors):
            errors[i].addcmul_(decays[i + 1], errors[i + 1])
    kept, carried = product(decays), torch.empty_like(decays[0])
    for m in reversed(range(decays.shape[2])):
        carried[:, m] = error
        error = torch.addcmul(decays[0, :, m] * errors[0, :, m], kept[:, m], error)
    return errors, carried, error


def product(decays: Float[Tensor, "C B M E N"]) -> Float[Tensor, "B M E N"]:
    kept = decays[0].clone()
    for decay in decays[1:]:
        kept.mul_(decay)
    return kept
