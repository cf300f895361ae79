"""List what --set can change in a domain's configuration, with values and meaning."""

import json
import shutil
import textwrap
from typing import Annotated, Any

import typer

from titans_cli.options import Json
from titans_cli.plugins import load, plugins

app = typer.Typer(help=__doc__, rich_markup_mode=None)


@app.command(epilog="Example: titans settings language train --preset small")
def settings(
    domain: Annotated[
        str | None,
        typer.Argument(
            metavar="DOMAIN", help="language, timeseries, dna, or an installed one's name."
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Argument(
            metavar="PART", help="Only settings of this group, or whose name begins so."
        ),
    ] = "",
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="NAME", help="Preset whose values are shown. [default: tiny]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what --set can change: key, value in the preset, kind, meaning. Without DOMAIN, the domains."""
    from titans_domains.settings import settings_of

    points = plugins("titans.domains")
    if domain is None:
        typer.echo(json.dumps(sorted(points)) if as_json else "\n".join(sorted(points)))
        return
    if domain not in points:
        raise ValueError(f"DOMAIN must be one of {', '.join(sorted(points))}: got {domain!r}.")
    presets = load(points[domain]).presets
    name = preset or ("tiny" if "tiny" in presets else next(iter(presets)))
    if name not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}: got {preset!r}.")
    found = [one for one in settings_of(presets[name]) if f".{part}" in f".{one.key}"]
    if not found:
        raise ValueError(f"No setting of {domain} begins with {part!r}: leave PART out to see all.")
    if as_json:
        typer.echo(json.dumps([one._asdict() for one in found]))
    else:
        show(found)


def show(found: list[Any]) -> None:
    """A line for each setting as `--set` takes it; its kind and meaning below, folded to the terminal."""
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    for one in found:
        typer.echo(f"{one.key}={one.value}")
        meaning = ": ".join(filter(None, (one.kind, one.meaning)))
        lines = textwrap.wrap(meaning, width, initial_indent="    ", subsequent_indent="    ")
        typer.echo("\n".join(lines))
