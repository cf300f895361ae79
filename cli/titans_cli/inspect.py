"""See what a memory does: surprise along a file, what a memory holds, how two differ."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from titans_cli.options import Checkpoint, Device, Json

app = typer.Typer(
    no_args_is_help=True,
    help=__doc__,
    epilog="Example: titans inspect surprise runs/tiny book.txt",
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run, of any domain.")]
Report = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="HTML",
        help="Report to write. [default: the command's name and .html; none with --json]",
    ),
]
Replace = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]
Record = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Read this record or series of the file alone."),
]
Row = Annotated[
    int | None,
    typer.Option(min=0, help="Which memory, of a file that holds those of several readers."),
]


@app.command(epilog="Example: titans inspect surprise runs/book chapter.txt --out chapter.html")
def surprise(
    run: Run,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Text, table of series (CSV) or sequences (FASTA)."),
    ],
    first: Annotated[int, typer.Option(min=0, help="First token to draw.")] = 0,
    draw: Annotated[
        int, typer.Option(min=1, help="Tokens to draw; a page takes fewer of a large model.")
    ] = 4000,
    record: Record = None,
    out: Report = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="PNG", help="Picture to draw, with the extra plot."),
    ] = None,
    force: Replace = False,
    checkpoint: Checkpoint = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Surprise, step size, momentum and forgetting of the memory at every token of a file."""
    out = _targets("surprise", out, as_json, force, png)
    from titans_domains.inspection.along import read_along
    from titans_domains.inspection.along_page import along_page, tokens_in_page
    from titans_domains.inspection.along_table import as_table

    of = _open(run, device, checkpoint)
    most = draw if out is None else min(draw, tokens_in_page(len(of.units)))
    with _reading(of, file) as tell:
        along = read_along(of, file, record=record, first=first, most=most, progress=tell)
    image = None
    if png is not None:
        from titans_domains.inspection.picture import along_picture

        image = along_picture(along)
    _write({out: None if out is None else along_page(along), png: image})
    if as_json:
        _print(as_table(along))


@app.command(epilog="Example: titans inspect memory runs/book chapter.txt --memory book.memory")
def memory(
    run: Run,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="What the memory has read: its keys are asked for. Without --memory it is read.",
        ),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--memory", metavar="FILE", help="Memory file. [default: the memory after FILE]"
        ),
    ] = None,
    row: Row = None,
    record: Record = None,
    out: Report = None,
    force: Replace = False,
    checkpoint: Checkpoint = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Norms, effective rank, what stored keys return now and how long they last, per layer and head."""
    out = _targets("memory", out, as_json, force)
    if row is not None and kept is None:
        raise ValueError("--row chooses in a memory file: give --memory too.")
    if record is not None and file is None:
        raise ValueError("--record chooses in a file: give FILE too.")
    from titans_domains.inspection import states
    from titans_domains.inspection.memory_page import memory_page, memory_table
    from titans_domains.inspection.recall import read_watched

    of = _open(run, device, checkpoint)
    memories = None if kept is None else states.load(of, kept, row)
    watched = None
    if file is not None:
        with _reading(of, file) as tell:
            watched = read_watched(of, file, record, tell)
    if memories is None:
        memories = states.fresh(of) if watched is None else watched.memories
    found = memory_table(of, memories, memory=kept, path=file, watched=watched)
    _write({out: None if out is None else memory_page(found, of.subject.notes)})
    if as_json:
        _print(found)


@app.command(
    epilog="Example: titans inspect compare runs/book one.memory other.memory --text chapter.txt"
)
def compare(
    run: Run,
    a: Annotated[Path, typer.Argument(metavar="A", help="Memory file, or a file to read afresh.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="File whose keys both are asked for."),
    ] = None,
    row: Row = None,
    record: Record = None,
    out: Report = None,
    force: Replace = False,
    checkpoint: Checkpoint = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Two memories of one run: which parts differ, and what both return for the same keys."""
    out = _targets("compare", out, as_json, force)
    if row is not None and not any(map(_is_memory, (a, b))):
        raise ValueError("--row chooses in a memory file: give one as A or B too.")
    if record is not None and all(map(_is_memory, (a, b, text or a))):
        raise ValueError("--record chooses in a file that is read: give one as A, B or --text too.")
    from titans_domains.inspection.compare import compare_table, side_of
    from titans_domains.inspection.compare_page import compare_page

    of = _open(run, device, checkpoint)
    sides = {}
    for name, path in {"a": a, "b": b, "asked": text}.items():
        if path is not None:
            with _reading(of, path) as tell:
                sides[name] = side_of(of, path, row=row, record=record, progress=tell)
    if text is not None and sides["asked"].watched is None:
        raise ValueError(
            f"--text must be a file that is read, and {text} is a memory: its keys are gone."
        )
    found = compare_table(of, sides["a"], sides["b"], sides.get("asked"))
    _write({out: None if out is None else compare_page(found)})
    if as_json:
        _print(found)


def _targets(
    command: str, out: Path | None, as_json: bool, force: bool, png: Path | None = None
) -> Path | None:
    """Where the report goes, once every place was found fit to write to."""
    from titans_domains.targets import check_plots, check_target

    if out is None and not as_json and png is None:
        out = Path(f"{command}.html")
    if out is not None and png is not None and out.resolve() == png.resolve():
        raise ValueError(f"--out and --png are both {out}: give two names.")
    for path, option in ((out, "--out"), (png, "--png")):
        if path is not None:
            check_target(path, force, option)
    if png is not None:
        check_plots("--png")
    return out


def _open(run: Path, device: str, checkpoint: str) -> Any:
    """The run as what inspection works on, by the domain that its configuration names."""
    from titans_cli.plugins import plugins
    from titans_domains.inspection import Inspectable
    from titans_domains.inspection.subject import Run as Opened
    from titans_domains.runs import choose_device
    from titans_domains.serving.load import domain_of

    name = domain_of(run)
    point = plugins("titans.domains").get(name)
    if point is None:
        raise ValueError(f"{run} is of the domain {name!r}, which no installed package has.")
    domain = point.load()
    if not isinstance(domain, Inspectable):
        raise ValueError(f"{run} is of the domain {name!r}, which cannot be inspected.")
    return Opened(run, name, domain.subject(run, choose_device(device), checkpoint), checkpoint)


@contextmanager
def _reading(of: Any, file: Path) -> Iterator[Callable[[int], None]]:
    """A bar over a file, and what tells it how far the file was read; a memory file is not read along."""
    from titans_cli.progress import Bar

    if _is_memory(file):
        yield lambda done: None
        return
    with Bar("reading", of.subject.total(file)) as bar:

        def tell(done: int) -> None:
            # Several records of one block of the file end at the same byte.
            if done != bar.done:
                bar.at(done)

        yield tell


def _is_memory(file: Path) -> bool:
    from titans_core.memory_file import is_memory_file

    return file.is_file() and is_memory_file(file)


def _write(files: dict[Path | None, Any]) -> None:
    """All of them, made before the first is written."""
    from titans_core.files import write_whole

    for path, content in files.items():
        if path is not None and content is not None:
            write_whole(path, content)
            typer.echo(path)


def _print(found: dict[str, Any]) -> None:
    typer.echo(json.dumps(_plain(found), allow_nan=False))


def _plain(node: Any, name: str = "") -> Any:
    """With null for what is no number, and words for half of a recall that no age has reached."""
    if isinstance(node, dict):
        return {key: _plain(child, key) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(child, name) for child in node]
    if isinstance(node, float) and not isfinite(node):
        return "not reached" if name.endswith("half_life") and node > 0 else None
    return node
