"""Plan a training: parameters, memory of a device, the rows that fit, and days."""

import json
from typing import Annotated, Any

import typer

from titans_cli.options import Json, Preset, Set

app = typer.Typer(help=__doc__, rich_markup_mode=None)


@app.command(epilog="Example: titans plan --preset 1.3b --gpus 8")
def plan(
    preset: Preset = None,
    mixer: Annotated[
        str | None, typer.Option(metavar="NAME", help="What mixes over time. [default: lmm]")
    ] = None,
    settings: Set = None,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", help="GPUs that share the rows of a step. [default: this CPU]"),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(metavar="NAME", help="Which: a100, h100, h200, b200, l40s or rtx4090."),
    ] = "h100",
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory-gib", metavar="GIB", help="Memory of a device. [default: what it has]"
        ),
    ] = None,
    utilisation: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of a GPU's products that training reaches: an assumption."
        ),
    ] = 0.3,
    as_json: Json = False,
) -> None:
    """Plan the training of a language model, without its data and before it is begun.

    Memory is measured in small on this machine's CPU and carried over; with GPUs, time is assumed.
    """
    from titans_domains.config import override
    from titans_domains.language import DOMAIN
    from titans_domains.plan_table import machine_of, plan

    if preset is not None and preset not in DOMAIN.presets:
        raise ValueError(f"--preset must be one of {', '.join(DOMAIN.presets)}: got {preset!r}.")
    changes = [f"model.mixer={mixer}"] if mixer is not None else []
    config = override(DOMAIN.presets[preset or "tiny"], changes + (settings or []))
    table = plan(config, machine_of(gpus, gpu, memory, utilisation))
    typer.echo(json.dumps(table) if as_json else as_text(preset or "tiny", table))


def as_text(preset: str, table: dict[str, Any]) -> str:
    counts, sizes = table["parameters"], table["bytes"]
    tokens, rows = table["tokens"], table["rows_of_a_step"]
    parts = ", ".join(
        f"{name.replace('_', ' ')} {count / 1e6:,.2f}M"
        for name, count in counts.items()
        if name != "all"
    )
    lines = [
        f"{preset}, {table['mixer']}, {table['precision']}: {counts['all'] / 1e6:,.2f}M parameters ({parts})",
        f"{tokens:,} tokens, in steps of {rows} rows of {table['tokens_of_a_row']:,}",
        "",
        *(f"{name.replace('_', ' '):34}  {size / 2**30:9.3f} GiB" for name, size in sizes.items()),
        "",
        f"most that one of {table['processes']} processes holds, GiB; {table['memory_gib']:.4g} are there",
        f"{'shared by':12}  {'activations':12}  {'one row':>8}  {'configured':>16}  {'most rows':>16}",
    ]
    for way in table["ways"]:
        kept = "checkpointed" if way["checkpoint_activations"] else "kept"
        configured = f"{way['configured_gib']:.2f} ({rows_of(way['configured_rows'])})"
        largest = "none fits"
        if way["largest_rows"]:
            largest = f"{way['largest_gib']:.2f} ({rows_of(way['largest_rows'])})"
        lines.append(
            f"{way['strategy']:12}  {kept:12}  {way['one_row_gib']:8.2f}  {configured:>16}  {largest:>16}"
        )
    days = table["days"]
    took = f"{days:,.1f} days" if days >= 1 else f"{days * 24:,.1f} hours"
    lines += ["", f"{table['tokens_per_s']:,.0f} tokens/s, {took}", f"  {table['speed']}"]
    return "\n".join(lines)


def rows_of(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"
