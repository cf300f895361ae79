"""What `titans dna` does with a trained run and sequences: classify, embed, read."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from titans_cli.options import Device, Json

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Sequences = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="FASTA, FASTQ or GenBank, plain or compressed; - for standard input."
    ),
]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="File to write. [default: standard output]"),
]
Replace = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]


def classify(
    run: Run,
    file: Sequences,
    window: Annotated[
        int | None, typer.Option(min=1, help="Bases of the windows that a genome is cut into.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="Bases between windows. [default: --window]")
    ] = None,
    bed: Annotated[
        Path | None,
        typer.Option(metavar="BED", help="Intervals of FILE, a FASTA file (plain or bgzip)."),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="tsv, bed (the name is the class, the score 1,000 times its chance) or gff3.",
        ),
    ] = "tsv",
    only: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Write only what is predicted to be it.")
    ] = None,
    out: OutFile = None,
    force: Replace = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify sequences, windows over a genome, or intervals of it, and write each as it is done."""
    from titans_domains.dna import calls, scoring
    from titans_domains.dna.output import rows
    from titans_domains.targets import check_target

    if form not in calls.FORMATS:
        raise ValueError(f"--format must be one of {', '.join(calls.FORMATS)}: got {form!r}.")
    if as_json and form != "tsv":
        raise ValueError("--json and --format are two ways to write: give one of them.")
    if bed is not None and window is not None:
        raise ValueError("--bed and --window are two ways to cut a genome: give one of them.")
    if step is not None and window is None:
        raise ValueError("--step is the distance of windows: give --window too.")
    if out is not None:
        check_target(out, force)
    model = load(run, device, classifier=True)
    names = calls.class_names(model)
    if only is not None and only not in names:
        raise ValueError(f"--only must be one of {', '.join(names)}: got {only!r}.")
    ambiguous, reached, bar = Ambiguous(), Reached(), bar_over(file)
    if bed is not None:
        items, bar = _intervals(file, bed, reached)
    elif window is not None:
        items = calls.window_items(file, window, step, reached)
    else:
        items = calls.record_items(file, reached)
    blank = calls.Blank()
    items = blank.watch(ambiguous.watch(calls.checked(items, scoring.shortest_of(model))))
    whole = bed is None and window is None
    header = calls.header_of(form, names, whole=whole)
    with bar, rows(out, sys.stdout, "rows", as_json=as_json, header=header) as table:
        for batch in calls.batches(items, lambda item: len(item.sequence)):
            for found in calls.call(model, batch):
                if only is None or only in found.prediction.split(","):
                    calls.write_call(table, form, found, names, whole=whole, named=bed is not None)
            table.flush()
            reached.tell(bar)
    say_ambiguous(ambiguous.count)
    if blank.count:
        typer.echo(
            f"{blank.count:,} sequences or windows of nothing but N were left out.", err=True
        )
    if out is not None:
        typer.echo(out)


def embed(
    run: Run,
    file: Sequences,
    out: Annotated[
        Path, typer.Option("--out", metavar="NPZ", help="File to write: names and vectors.")
    ],
    force: Replace = False,
    device: Device = "auto",
) -> None:
    """Write the vector of each sequence that the model's last layer sees."""
    from titans_domains.dna import calls, scoring
    from titans_domains.dna.embedding import save_embeddings
    from titans_domains.targets import check_target

    check_target(out, force)
    model = load(run, device)
    with bar_over(file) as bar:
        reached, ambiguous = Reached(), Ambiguous()
        items = calls.checked(calls.record_items(file, reached), scoring.shortest_of(model))
        watched = ambiguous.watch(items)
        save_embeddings(model, watched, out, progress=lambda _: reached.tell(bar))
    say_ambiguous(ambiguous.count)
    typer.echo(out)


def read(
    run: Run,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Genome, FASTA or GenBank, plain or compressed."),
    ],
    window: Annotated[
        int, typer.Option(min=1, help="Bases that a row of the table is the average of.")
    ] = 10_000,
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="carried: the memory learns along each contig. frozen: it stays as it was trained. "
            "reset: it is restored after every trained length.",
        ),
    ] = "carried",
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Picture to draw of the table.")
    ] = None,
    out: OutFile = None,
    force: Replace = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read a genome of any length with the memory carried, and write bits per base along it."""
    from titans_domains.dna import track
    from titans_domains.dna.output import draft, rows
    from titans_domains.dna.pretrained import MODES, PIECE
    from titans_domains.dna.streams import read_pieces
    from titans_domains.dna.task import load_model
    from titans_domains.runs import choose_device
    from titans_domains.targets import check_plots, check_target

    if mode not in MODES:
        raise ValueError(f"--mode must be one of {', '.join(MODES)}: got {mode!r}.")
    for path, option in ((out, "--out"), (picture, "--picture")):
        if path is not None:
            check_target(path, force, option)
    if picture is not None:
        check_plots("--picture")
    model = load_model(run, choose_device(device))
    found, reached, ambiguous = [], Reached(), Ambiguous()
    with bar_over(file) as bar, rows(out, sys.stdout, "rows", as_json=as_json) as table:
        pieces = ambiguous.watch(read_pieces(file, PIECE, progress=reached))
        for stretch in track.stretches(track.spans(model, pieces, mode), window):
            table.row(stretch.cells)
            table.flush()
            found.append(stretch)
            reached.tell(bar)
    if picture is not None:
        with draft(picture) as image:
            track.draw_track(found, f"{file.name}, memory {mode}", image)
    say_ambiguous(ambiguous.count)
    if share := trained_share(run, file):
        typer.echo(f"The first {share:.0%} of {file} were trained on.", err=True)
    typer.echo(f"{file}: {track.summary(found)}", err=True)
    for path in (picture, out):
        if path is not None:
            typer.echo(path, err=out is None)


def trained_share(run: Path, file: Path) -> float:
    """How much of a genome a run was trained on; 0 where that was another file."""
    from titans_domains.dna.task import DOMAIN
    from titans_domains.runs import load_run_table

    data = load_run_table(run, DOMAIN)[0].data
    return 1 - data.held_out if Path(data.source).resolve() == file.resolve() else 0.0


class Reached:
    """How far a file was read, of which the bar is told when the model has done with it."""

    at = told = 0

    def __call__(self, position: int) -> None:
        self.at = position

    def tell(self, bar: Any) -> None:
        if self.at != self.told:
            bar.at(self.at)
            self.told = self.at


def bar_over(file: Path) -> Any:
    """A bar over the bytes of a file."""
    from titans_cli.progress import Bar

    return Bar("reading", file.stat().st_size if file.is_file() else 0)


def _intervals(file: Path, bed: Path, reached: Reached) -> tuple[Iterator[Any], Any]:
    """The intervals of a genome, all of which were checked, and a bar over them."""
    from titans_cli.progress import Bar
    from titans_domains.dna.calls import bed_items
    from titans_domains.dna.genome import Genome, read_bed

    genome = Genome(file)
    count = sum(1 for _ in read_bed(bed, genome))

    def items() -> Iterator[Any]:
        for number, item in enumerate(bed_items(genome, bed, read_bed(bed, genome)), 1):
            reached(number)
            yield item

    return items(), Bar("reading", count)


def load(run: Path, device: str, *, classifier: bool = False) -> Any:
    """The model of a run: a classifier, or where none is asked for a pretrained model too."""
    from titans_domains.dna.scoring import load_any
    from titans_domains.dna.task import load_classifier
    from titans_domains.runs import choose_device

    try:
        return (load_classifier if classifier else load_any)(run, choose_device(device))
    except ModuleNotFoundError as error:
        # A library that only some installations have; the error says which.
        raise ValueError(str(error)) from None


PartT = TypeVar("PartT", bound=Any)


class Ambiguous:
    """Counts the IUPAC codes that became N in what is read."""

    count = 0

    def watch(self, parts: Iterable[PartT]) -> Iterator[PartT]:
        for part in parts:
            self.count += part.ambiguous
            yield part


def say_ambiguous(count: int) -> None:
    from titans_domains.dna.reading import ambiguous_line

    if count:
        typer.echo(f"{ambiguous_line(count)}.", err=True)
