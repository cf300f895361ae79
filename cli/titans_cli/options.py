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
        help="Replace one value of the preset, dotted for a nested one, as in train.steps=200: any key "
        "of a run's config.json. Repeatable.",
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
