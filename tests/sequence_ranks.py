"""Documents shared over processes: what each rank computes, and what one process makes of the same.

B batch, T time, dim width of the model.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_mixers import SETTINGS, inputs, packed
from torch import Tensor

from titans_core import Backbone, split
from titans_core.sequence import forward_share, hand_back, share_of, sum_gradients
from titans_core.state import named_tensors

RANKS = 3
NAMES = ("lmm", "mag", "mac", "mac previous", "mal", "gated-deltanet", "mamba2")
CONFIGS = {
    **{name: replace(SETTINGS[name].config(), num_layers=2) for name in NAMES},
    "samba": replace(SETTINGS["swa"].config(), mixer="samba", num_layers=4),
    "mac+mal and lmm": replace(
        SETTINGS["mac+mal previous"].config(), mixer="mac+mal/lmm", num_layers=2
    ),
}
PATIENCE = timedelta(seconds=0.5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of one document each that goes on, or of several, over so many ranks."""

    mixer: str
    kind: str = "stream"
    ranks: int = 2
    micro_batches: int = 1
    write: bool = True
    checkpoint: bool = False
    time: int | None = None

    @property
    def name(self) -> str:
        changed = [
            f"{f.name} {value}"
            for f in fields(self)[3:]
            if (value := getattr(self, f.name)) != f.default
        ]
        return ", ".join([self.mixer, self.kind, f"{self.ranks} ranks", *changed])

    def model(self) -> Backbone:
        """With every parameter moved off its start, so that none is without effect."""
        torch.manual_seed(0)
        model = Backbone(CONFIGS[self.mixer]).double()
        model.checkpoint_activations = self.checkpoint
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
        return model

    def problem(self, model: Backbone) -> tuple[Tensor, dict[str, Tensor], Any]:
        """What is read, its flags, and what was put down before."""
        # Several tokens to a share even where documents may begin anywhere.
        grid = max(model.config.grid, 4)
        if self.kind == "packed":
            rows = packed(grid)
            return rows.x, {"mask": rows.mask, "reset": rows.reset}, None
        # From the middle of a chunk on, to a last share that is shorter than the others.
        before = model.put_down(model(inputs(2, grid + 3, seed=1))[1])
        return inputs(2, self.time or 6 * grid - 1), {}, before


CASES = [
    *(Case(mixer=mixer, ranks=3) for mixer in CONFIGS),
    *(Case(mixer=mixer, kind="packed", micro_batches=2) for mixer in CONFIGS),
    *(Case(mixer=mixer, kind="packed", ranks=3) for mixer in ("mag", "mac previous", "samba")),
    Case(mixer="lmm", checkpoint=True),
    Case(mixer="mac", micro_batches=2),
    Case(mixer="mal", write=False),
    # Fewer segments than ranks: the first share is empty.
    Case(mixer="mac", ranks=3, time=13),
]
TRAINED = [Case(mixer=mixer, ranks=ranks) for mixer in ("lmm", "mag") for ranks in (2, 3)]
STEPS = 4


def loss_of(y: Tensor, weight: Tensor, state: Any) -> Tensor:
    """Of hidden states, and of a state where there is one, each number with a weight of its own."""
    loss = (y * weight).sum()
    for row in [] if state is None else split(state):
        for x in named_tensors(row).values():
            if x.is_floating_point():
                angles = torch.arange(x.numel(), dtype=torch.float64)
                loss = loss + (x * angles.sin().view_as(x)).sum()
    return loss


def weights_of(x: Tensor, flags: dict[str, Tensor], step: int = 0) -> Tensor:
    weight = torch.arange(x.numel(), dtype=torch.float64).add(step).cos().view_as(x)
    return weight * flags["mask"][..., None] if "mask" in flags else weight


def gradients(model: Backbone) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def alone(case: Case) -> dict[str, Any]:
    """What one process makes of it."""
    model = case.model()
    x, flags, before = case.problem(model)
    y, state = model(
        x, None if before is None else model.take_up(before), write=case.write, **flags
    )
    loss_of(y, weights_of(x, flags), state).backward()
    return {"y": y.detach(), "state": state, "gradients": gradients(model)}


def shared(case: Case, group: Any) -> dict[str, Any]:
    """This rank's part of the same."""
    model = case.model()
    x, flags, before = case.problem(model)
    at = share_of(x.shape[1], grid=model.config.grid, group=group)
    first = dist.get_rank(group) == 0 and before is not None
    flags = {name: flag[:, at] for name, flag in flags.items()}

    def read() -> tuple[Tensor, Any]:
        return forward_share(
            model, x[:, at], model.take_up(before) if first else None, group=group,
            write=case.write, micro_batches=case.micro_batches, **flags,
        )  # fmt: skip

    y, state = read()
    loss_of(y, weights_of(x, case.problem(model)[1])[:, at], state).backward()
    sum_gradients(model.parameters(), group=group)
    with torch.no_grad():
        again = read()
    return {"y": y.detach(), "state": state, "gradients": gradients(model), "again": again}


def descend(model: Backbone) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad
                p.grad = None


def trained_alone(case: Case) -> dict[str, Any]:
    """A few steps over documents that go on from step to step."""
    model = case.model()
    x, _, carried = case.problem(model)
    for step in range(STEPS):
        y, state = model(x + step, model.take_up(carried))
        loss_of(y, weights_of(x, {}, step), None).backward()
        carried = model.put_down(state)
        descend(model)
    return {"weights": model.state_dict(), "carried": carried}


def trained_together(case: Case, group: Any) -> dict[str, Any]:
    model = case.model()
    x, _, carried = case.problem(model)
    at = share_of(x.shape[1], grid=model.config.grid, group=group)
    for step in range(STEPS):
        first = dist.get_rank(group) == 0
        state = model.take_up(carried) if first else None
        y, state = forward_share(model, x[:, at] + step, state, group=group)
        loss_of(y, weights_of(x, {}, step)[:, at], None).backward()
        carried = hand_back(model, None if state is None else model.put_down(state), group=group)
        sum_gradients(model.parameters(), group=group)
        descend(model)
    return {"weights": model.state_dict(), "carried": carried}


def complaint(action: Callable[[], Any]) -> tuple[str, str, float]:
    """Kind and words of what an action raises, and the seconds until then."""
    began = time.perf_counter()
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error), time.perf_counter() - began
    return "nothing", "", time.perf_counter() - began


@torch.no_grad()
def quarrels() -> dict[str, Any]:
    """What the first two ranks are told where they do not do the same."""
    rank, told = dist.get_rank(), {}
    case = Case(mixer="mag")
    model = case.model()
    x = inputs(2, 8)

    def read(model: Backbone = model, x: Tensor = x, **named: Any) -> Callable[[], Any]:
        group = dist.new_group([0, 1], timeout=PATIENCE)
        return lambda: forward_share(model, x, group=group, **named)

    config = CONFIGS["mag"]
    wider = replace(config, hybrid=replace(config.hybrid, window=6))
    odd: dict[str, dict[str, Any]] = {
        "settings": {"model": Backbone(wider).double()},
        "rows": {"x": x[:1]},
        "state": {"state": model.fresh_state(2)},
    }
    for name, change in odd.items():
        read_it = read(**(change if rank == 1 else {}))
        if rank < 2:
            told[name] = complaint(read_it)
    with torch.enable_grad():
        group = dist.new_group([0, 1], timeout=PATIENCE)
        if rank == 0:
            told["gradients"] = complaint(lambda: forward_share(model, x, group=group))
    if rank == 1:
        told["gradients"] = complaint(lambda: forward_share(model, x, group=group))
    absent = read()
    if rank == 1:
        told["absent"] = complaint(absent)
    dist.barrier()
    return told


def deaths(folder: Path) -> None:
    """The rank in the middle dies between its forward and its backward pass."""
    rank = dist.get_rank()
    group = dist.new_group(timeout=timedelta(seconds=20))
    model = Case(mixer="lmm").model()
    y, _ = forward_share(model, inputs(2, 8), group=group)
    if rank == 1:
        os._exit(7)
    told = {"backward": complaint(y.sum().backward)}
    told["forward"] = complaint(lambda: forward_share(model, inputs(2, 8), group=group))
    torch.save(told, folder / f"deaths-{rank}.pt")


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    groups = {2: dist.new_group([0, 1], timeout=timedelta(seconds=120)), 3: None}
    found: dict[str, Any] = {}
    for does, cases in ((shared, CASES), (trained_together, TRAINED)):
        found[does.__name__] = [
            does(case, groups[case.ranks]) if rank < case.ranks else None for case in cases
        ]
    found["quarrels"] = quarrels()
    torch.save(found, folder / f"found-{rank}.pt")
    deaths(folder)
    os._exit(0)


def run_ranks(folder: Path) -> list[int | None]:
    """All that the ranks do, in files of the folder; how each ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["titans_core.sequence"])
    children = [context.Process(target=work, args=(rank, folder)) for rank in range(RANKS)]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
        child.kill()
        child.join()
    return [child.exitcode for child in children]
