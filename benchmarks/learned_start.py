"""An initial memory that has learned to hold pairs, for `capacity.py`."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from memories import Draw, Mlp, Setting, Shape, begin, capacity, curve, pairs
from torch import Tensor


class Training(NamedTuple):
    draw: Draw = Draw(3, 8, 1)
    steps: int = 300
    lr: float = 1e-2


TRAINING = Training()


def trained(shape: Shape, chunk: int, plain: dict[str, Any], asking: Draw) -> dict[str, Any]:
    """The capacity of a memory whose start has learned to hold one to four times what a fresh one holds."""
    more = pairs(TRAINING.draw, shape.width, shape.width)
    held = max(1, round(math.log2(plain["capacity"])))
    initial, norm = begin(shape, TRAINING.draw.heads, TRAINING.draw.seed)
    steps = torch.full((1, shape.depth), plain["step"]).log()
    sharpness = torch.tensor(-math.log(shape.width))
    learned = [x.requires_grad_() for x in (*initial, *norm, steps, sharpness)]
    optimiser = torch.optim.Adam(learned)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, TRAINING.lr, total_steps=TRAINING.steps, pct_start=0.1
    )
    for n in range(TRAINING.steps):
        k, v = more(2 ** (held + n % 3))
        memory = Mlp(shape, Setting(), chunk, steps.exp(), initial, norm)
        y = memory.read(k, memory.write(k, v, None))[0]
        loss = confusion(y, v, sharpness.exp())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
    memory = Mlp(shape, Setting(), chunk, steps.exp().detach(), initial, norm)
    asked = Draw(asking.seed, asking.rows * asking.heads, 1)
    points = curve(memory, pairs(asked, shape.width, shape.width))
    return {"step": steps.exp()[0].tolist(), "capacity": capacity(points), "points": points}


def confusion(y: Tensor, v: Tensor, sharpness: Tensor) -> Tensor:
    """Cross-entropy of each recall's own value among all by distance, [B, N, 1, D].

    A squared error would shrink what is recalled, and the values are told apart by their distance.
    """
    logits = -sharpness * torch.cdist(y[:, :, 0], v[:, :, 0]).square()
    return F.cross_entropy(logits.flatten(0, 1), torch.arange(y.shape[1]).repeat(len(y)))
