"""Options that several commands share, so that they are called and explained the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="Named configuration to start from. [default: tiny]"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one value of the preset, dotted for a nested one, as in train.steps=200. "
        "Repeatable; titans settings DOMAIN lists all of them.",
    ),
]
Loggers = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="WHERE",
        help="Log to tensorboard too (the run's folder tensorboard), or to wandb (Weights & Biases; "
        "offline with WANDB_MODE=offline). Repeatable; the run's folder has metrics.csv and report.html "
        "anyway.",
    ),
]
MOST = 2**63 - 1

Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=MOST, help="Seed of initial weights, data order and sampling."
    ),
]
TrainSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=MOST, help="Seed of initial weights and data order. [default: 0]"
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N."),
]
Devices = Annotated[
    int,
    typer.Option(
        "--devices",
        metavar="N",
        min=1,
        help="Devices of this machine to train on: GPUs, or processes on the CPU.",
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        "--nodes",
        metavar="M",
        min=1,
        help="Machines, on each of which the command is run with MASTER_ADDR, MASTER_PORT and NODE_RANK "
        "set; or run it under torchrun.",
    ),
]
SequenceRanks = Annotated[
    int,
    typer.Option(
        "--sequence-ranks",
        metavar="S",
        min=1,
        help="Of the devices, how many share the tokens of each row, for sequences longer than one holds.",
    ),
]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help="What several devices share: ddp, the rows of a step; sharded, also weights, gradients and "
        "the optimiser.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder of the run: weights, log. [default: runs/PRESET]"
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace what is at --out already."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON, for scripts."),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="WHICH",
        help="last, or best: the one with the best validation.",
    ),
]
