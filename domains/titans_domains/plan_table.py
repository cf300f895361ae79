"""A plan as a table: what a device holds by how the work is shared, what fits it, and how long it takes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from titans_core.planning import layer_seconds
from titans_domains.language.task import LanguageConfig
from titans_domains.plan import Planner, loss_seconds, recipe_of
from titans_domains.weights import memory_of

GIB = 2**30


class Gpu(NamedTuple):
    """As its maker has it: memory that programs can take, and products without sparsity."""

    memory_gib: float
    bf16: float  # TFLOP/s
    float32: float


GPUS = {
    "a100": Gpu(79, 312, 19.5),
    "h100": Gpu(79, 989, 67),
    "h200": Gpu(140, 989, 67),
    "b200": Gpu(178, 2250, 75),
    "l40s": Gpu(45, 362, 91.6),
    "rtx4090": Gpu(24, 165, 82.6),
}
STRATEGIES = ("ddp", "sharded")
TIMED_TOKENS = 512
"""Of a step that is timed, unless a segment has more."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains: one CPU, or so many GPUs of a kind."""

    processes: int
    memory_gib: float
    gpu: str | None
    utilisation: float = 0.3  # of a GPU's products; assumed

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"--gpus must be at least 1: got {self.processes}.")
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(f"--gpu must be one of {', '.join(GPUS)}: got {self.gpu!r}.")
        if not 0 < self.memory_gib < float("inf"):
            raise ValueError(f"--memory-gib must be positive: got {self.memory_gib:g}.")
        if not 0 < self.utilisation <= 1:
            raise ValueError(
                f"--utilisation must be above 0 and at most 1: got {self.utilisation:g}."
            )

    @property
    def strategies(self) -> tuple[str, ...]:
        return STRATEGIES if self.processes > 1 else ("one process",)


def machine_of(gpus: int | None, gpu: str, memory_gib: float | None, utilisation: float) -> Machine:
    """So many GPUs of a kind, or without them this machine's CPU; with its own memory if none is named."""
    kind = None if gpus is None else gpu
    if memory_gib is None:
        own = memory_of(torch.device("cpu")) or 0
        memory_gib = own / GIB if kind not in GPUS else GPUS[kind].memory_gib
    return Machine(
        processes=1 if gpus is None else gpus,
        memory_gib=memory_gib,
        gpu=kind,
        utilisation=utilisation,
    )


def plan(config: LanguageConfig, machine: Machine) -> dict[str, Any]:
    """The table; ValueError where processes cannot share the rows, or not even one row fits."""
    train, data = config.train, config.data
    if train.batch_size % machine.processes:
        raise ValueError(
            f"train.batch_size must be a multiple of the {machine.processes} processes that share it: "
            f"got {train.batch_size}. Change it with --set, and train.accumulate with it."
        )
    planner = Planner(config, on_gpu=machine.gpu is not None)
    per_process = train.rows // machine.processes
    ways = {
        (strategy, checkpoint): way(planner, machine, strategy, checkpoint, per_process)
        for checkpoint in (False, True)
        for strategy in machine.strategies
    }
    if not any(found["largest_rows"] for found in ways.values()):
        least = min(found["one_row_gib"] for found in ways.values())
        raise ValueError(
            f"One row of {data.seq_len:,} tokens takes at least {least:.2f} GiB of a device, and there are "
            f"{machine.memory_gib:g}: take a smaller model, a shorter data.seq_len or a larger "
            "--memory-gib."
        )
    tokens = train.steps * train.rows * data.seq_len
    row = planner.stack(1, checkpoint=False)
    saved = planner.stack(1, checkpoint=True)
    return {
        "mixer": config.model.mixer,
        "precision": train.precision,
        "parameters": {**planner.parameters._asdict(), "all": sum(planner.parameters)},
        "bytes": {
            "parameters": sum(planner.parameters) * planner.size,
            "gradients": sum(planner.parameters) * planner.size,
            "optimiser": 2 * sum(planner.parameters) * planner.size,
            "state_of_a_row": round(row.carried),
            "activations_of_a_row": round(row.kept),
            "activations_of_a_row_checkpointed": round(saved.kept),
            "logits_of_a_row": round(
                planner.loss(data.seq_len, recipe_of(config, checkpoint=False)).backward
            ),
        },
        "rows_of_a_step": train.rows,
        "tokens_of_a_row": data.seq_len,
        "processes": machine.processes,
        "memory_gib": machine.memory_gib,
        "ways": list(ways.values()),
        "tokens": tokens,
        **speed(planner, machine, tokens),
    }


def way(
    planner: Planner, machine: Machine, strategy: str, checkpoint: bool, per_process: int
) -> dict[str, Any]:
    """How much a process holds with one row at once, as configured, and with the most rows that fit."""

    def gib(rows: int) -> float:
        step = planner.step(rows, per_process // rows, checkpoint=checkpoint)
        return step.most(machine.processes, strategy) / GIB

    counts = [rows for rows in range(1, per_process + 1) if per_process % rows == 0]
    fitting = [rows for rows in counts if gib(rows) <= machine.memory_gib]
    largest = fitting[-1] if fitting else 0
    configured = planner.config.train.batch_size // machine.processes
    return {
        "strategy": strategy,
        "checkpoint_activations": checkpoint,
        "one_row_gib": gib(1),
        "configured_rows": configured,
        "configured_gib": gib(configured),
        "largest_rows": largest,
        "largest_gib": gib(largest) if largest else None,
    }


def speed(planner: Planner, machine: Machine, tokens: int) -> dict[str, Any]:
    """Tokens in a second, and days of the whole training."""
    if machine.gpu is None:
        rate = 1 / seconds_per_token(planner)
        how = "measured on this machine on a step of few layers, and carried over"
    else:
        gpu = GPUS[machine.gpu]
        peak = (gpu.bf16 if planner.config.train.precision == "bf16" else gpu.float32) * 1e12
        flops = operations(planner.config, planner)
        rate = machine.processes * machine.utilisation * peak / flops
        how = (
            f"assumed, not measured: {machine.utilisation:.0%} of {peak / 1e12:g} TFLOP/s of "
            f"{machine.gpu}, {flops / 1e9:.2f} GFLOP a token, nothing for what processes send"
        )
    return {"tokens_per_s": rate, "days": tokens / rate / 86_400, "speed": how}


def operations(config: LanguageConfig, planner: Planner) -> float:
    """Floating-point operations of a token, forward and back, as products of matrices have them.

    Six for a parameter; of a memory 33 for each of its weights (11 forward, twice that back); of attention
    12 for the width of each token that is seen. Again a third where activations are made twice.
    """
    model, length = config.model, config.data.seq_len
    found = 6.0 * sum(planner.parameters)
    for i in range(model.num_layers):
        name = model.layer(i).mixer
        if name in ("lmm", "mal", "mag", "mac", "mac+mal"):
            width = model.dim // model.memory.num_heads
            hidden = model.memory.expansion * width
            inner = max(0, model.memory.depth - 2)
            weights = 2 * width * hidden + inner * hidden**2 if model.memory.depth > 1 else width**2
            found += 33.0 * weights * model.memory.num_heads * (2 if name == "mac+mal" else 1)
        if name in ("attention", "swa", "mag", "mal"):
            window = model.attention.window if name == "attention" else model.hybrid.window
            found += 12.0 * model.dim * min(window or length, length / 2)
        if "mac" in name:
            found += 12.0 * model.dim * (model.hybrid.num_persistent + model.hybrid.segment_len)
    return found * (4 / 3 if config.train.checkpoint_activations else 1)


def seconds_per_token(planner: Planner) -> float:
    """Of a step on this CPU, its optimiser included, from steps of one layer and of two."""
    config = planner.config
    model, train = config.model, config.train
    recipe = recipe_of(config, checkpoint=train.checkpoint_activations)
    length = min(config.data.seq_len, -(-TIMED_TOKENS // model.grid) * model.grid)
    rows = min(train.batch_size, max(1, 4 * TIMED_TOKENS // length))
    kinds = [model.layer(i) for i in range(model.num_layers)]
    layers, rest = 0.0, 0.0
    for kind in {kind.mixer: kind for kind in kinds}.values():
        one, two = layer_seconds(kind, rows, length, recipe)
        layers += (two - one) * sum(other.mixer == kind.mixer for other in kinds)
        rest = max(rest, 2 * one - two)
    loss, optimiser = loss_seconds(planner, recipe)
    step = train.rows * config.data.seq_len
    return (layers + rest) / (rows * length) + loss + optimiser / step
