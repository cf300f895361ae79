"""Write the report of a run: curves, samples, settings and what made it, in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, rich_markup_mode=None)


@app.command(epilog="Example: titans report runs/tiny --out tiny.html")
def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run of any domain, also of one at work."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write. [default: RUN/report.html]"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is at --out already.")
    ] = False,
) -> None:
    """Write report.html of a run anew, from config.json, metrics.csv and samples.txt in its folder.

    Training writes it after each validation and at its end. The page fetches nothing and opens from disk.
    """
    from titans_domains.report import write_report
    from titans_domains.targets import check_target

    if out is not None:
        check_target(out, force)
    typer.echo(write_report(run, out))
