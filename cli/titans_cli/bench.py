"""Compare systems under one recipe: recall, long context, state tracking, language."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from titans_cli.options import Device

app = typer.Typer(
    no_args_is_help=True,
    help=__doc__,
    epilog="Example: titans bench recall --quick",
    rich_markup_mode=None,
)

Names = Annotated[
    str | None,
    typer.Option(
        "--mixers",
        metavar="NAMES",
        help="Systems to compare, with commas between: main, all, or names. [default: main]",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option("--tasks", metavar="NAMES", help="Some of the tasks, with commas between."),
]
Preset = Annotated[str, typer.Option("--preset", metavar="NAME", help="tiny, small or 10m.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Seeds of every cell.")]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rates",
        metavar="NUMBERS",
        help="Learning rates that each system is tried with. [default: 0.002,0.004,0.008,0.016]",
    ),
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once. [default: cores]")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the cells and the tables. [default: runs/scoreboard-PRESET]",
    ),
]
Tune = Annotated[
    Literal["once", "first", "each"] | None,
    typer.Option(
        "--tune",
        help="Choose learning rates once, on mqar-64-4; on the bench's first task; or on each. "
        "[default: first, of longcontext once]",
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="A few steps of every cell, to see that it runs.")
]


@app.command(epilog="Example: titans bench recall --mixers lmm,gated-deltanet --seeds 2")
def recall(
    mixers: Names = None, preset: Preset = "tiny", seeds: Seeds = 1, tasks: Tasks = None,
    rates: Rates = None, jobs: Jobs = None, device: Device = "auto", out: Out = None, tune: Tune = None,
    quick: Quick = False,
) -> None:  # fmt: skip
    """Recall in context (MQAR) and the MAD tasks."""
    bench("recall", mixers, preset, seeds, tasks, rates, jobs, device, out, tune, quick)


@app.command(epilog="Example: titans bench longcontext --tasks niah-pk --jobs 2")
def longcontext(
    mixers: Names = None, preset: Preset = "tiny", seeds: Seeds = 1, tasks: Tasks = None,
    rates: Rates = None, jobs: Jobs = None, device: Device = "auto", out: Out = None, tune: Tune = None,
    quick: Quick = False,
) -> None:  # fmt: skip
    """Needles in a haystack and facts in a book, asked far beyond the trained length."""
    bench("longcontext", mixers, preset, seeds, tasks, rates, jobs, device, out, tune, quick)


@app.command(epilog="Example: titans bench state --mixers lmm,deltanet")
def state(
    mixers: Names = None, preset: Preset = "tiny", seeds: Seeds = 1, tasks: Tasks = None,
    rates: Rates = None, jobs: Jobs = None, device: Device = "auto", out: Out = None, tune: Tune = None,
    quick: Quick = False,
) -> None:  # fmt: skip
    """State tracking: parity, modular arithmetic, products in groups."""
    bench("state", mixers, preset, seeds, tasks, rates, jobs, device, out, tune, quick)


@app.command(epilog="Example: titans bench language --data book.txt --seeds 2")
def language(
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="Text file, folder, or embedded.")
    ] = "embedded",
    mixers: Names = None, preset: Preset = "tiny", seeds: Seeds = 1, tasks: Tasks = None,
    rates: Rates = None, jobs: Jobs = None, device: Device = "auto", out: Out = None, tune: Tune = None,
    quick: Quick = False,
) -> None:  # fmt: skip
    """Bits per byte of a text."""
    bench("language", mixers, preset, seeds, tasks, rates, jobs, device, out, tune, quick, data)


def bench(
    name: str, mixers: str | None, preset: str, seeds: int, tasks: str | None, rates: str | None,
    jobs: int | None, device: str, out: Path | None, tune: str | None, quick: bool, data: str = "embedded",
) -> None:  # fmt: skip
    from titans_cli.progress import Bar
    from titans_domains.language.scoreboard.board import (
        RATES,
        Board,
        best_rates,
        seed_cells,
        tuning_cells,
    )
    from titans_domains.language.scoreboard.report import write
    from titans_domains.language.scoreboard.systems import MAIN, SYSTEMS, backbone
    from titans_domains.language.scoreboard.tasks import BENCHES, ONCE
    from titans_domains.language.scoreboard.texts import fingerprint
    from titans_domains.runs import choose_device

    known = {"main": MAIN, "all": tuple(SYSTEMS)}
    systems = known.get(mixers or "main") or names(mixers or "", SYSTEMS, "--mixers")
    chosen = names(tasks, BENCHES[name], "--tasks") if tasks else tuple(BENCHES[name])
    tried = numbers(rates) if rates else RATES
    where = choose_device(device)
    for system in systems:
        backbone(system, preset)
    common: dict[str, Any] = {"size": preset, "device": str(where), "quick": quick}
    if name == "language":
        common["data"] = fingerprint(data)
    folder = out or Path("runs") / f"scoreboard-{preset}{'-quick' if quick else ''}"
    at_once = jobs or (1 if where.type == "cuda" else os.cpu_count() or 1)
    with Board(folder) as board:

        def fill(cells: list[Any], title: str) -> None:
            with Bar(title, len(cells)) as bar:
                board.fill(
                    cells, text=data, jobs=at_once, done=lambda cell, _: bar.advance(text=cell.name)
                )

        once = tune == "once" or (tune is None and name == "longcontext")
        tuned = (ONCE,) if once else chosen if tune == "each" else tuple(BENCHES[name])[:1]
        tuning = tuning_cells(tuned, systems, tried, **common)
        fill(tuning, "learning rates")
        fill(seed_cells(chosen, best_rates(board, tuning), seeds, **common), "cells")
        # All that the folder holds of this bench, whichever systems were asked for this time.
        found = board.all_of(BENCHES[name], **common)
        for path in write(found, folder, name, shlex.join(["titans", *sys.argv[1:]])):
            typer.echo(path)


def names(given: str, known: Any, option: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in given.split(",")))
    for part in found:
        if part not in known:
            raise ValueError(f"{option} must be of {', '.join(known)}: got {part!r}.")
    return found


def numbers(given: str) -> tuple[float, ...]:
    try:
        found = tuple(dict.fromkeys(float(part) for part in given.split(",")))
    except ValueError:
        raise ValueError(f"--rates must be numbers with commas between: got {given!r}.") from None
    if not all(0 < rate < float("inf") for rate in found):
        raise ValueError(f"--rates must be positive and finite: got {given!r}.")
    return found
