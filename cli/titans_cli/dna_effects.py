"""What changes in a sequence do to what a trained run says of it: `titans dna score-variants`, `saturate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from titans_cli.dna_use import Ambiguous, OutFile, Replace, Run, Sequences, load, say_ambiguous
from titans_cli.options import Device, Json

Class = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help="Class whose chance counts. [default: the second of two, else every one]",
    ),
]
LogOdds = Annotated[
    bool, typer.Option("--log-odds", help="Score by the logarithm of the odds, not by the chance.")
]


def score_variants(
    run: Run,
    vcf: Annotated[
        Path, typer.Argument(metavar="VCF", help="Variants, plain or compressed; positions from 1.")
    ],
    genome: Annotated[
        Path, typer.Option("--genome", metavar="FASTA", help="Their genome, plain or bgzip.")
    ],
    window: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Bases read around each. A masked run reads a window once for each base in it: give it "
            "100 or so. [default: as long as in training]",
        ),
    ] = None,
    label: Class = None,
    log_odds: LogOdds = False,
    out: OutFile = None,
    force: Replace = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score both alleles of every variant in its surroundings, and write alt minus ref."""
    from titans_cli.progress import Bar
    from titans_domains.dna import calls, scoring, variants
    from titans_domains.dna.genome import Genome
    from titans_domains.dna.output import rows
    from titans_domains.targets import check_target

    if out is not None:
        check_target(out, force)
    if str(vcf) == "-":
        raise ValueError("The VCF is read twice, so it must be a file: got standard input.")
    model = load(run, device)
    scorer = scoring.scorer_of(model, label, log_odds=log_odds)
    size = scoring.window_of(model, scorer, window)
    where = Genome(genome)
    skipped, ambiguous = variants.Skipped(), Ambiguous()
    # A file that does not fit its genome is refused before the first line is written.
    total = sum(
        bool(variants.windows(where, variant, size, str(vcf)))
        for variant in variants.read_vcf(vcf, where, skipped, size - size // 2)
    )
    read = variants.read_vcf(vcf, where, variants.Skipped(), size - size // 2)
    pairs = ambiguous.watch(
        variants.windows(where, variant, size, str(vcf), even=scorer.even) for variant in read
    )
    header = "\t".join(variants.columns(scorer.names))
    opened = rows(out, sys.stdout, "rows", as_json=as_json, header=header)
    with Bar("scoring", total) as bar, opened as table:
        for batch in calls.batches(pairs, lambda pair: 2 * size):
            for effect in variants.effects(scorer.score, batch):
                table.row(variants.cells_of(effect, scorer.names))
            table.flush()
            bar.advance(len(batch))
    say_ambiguous(ambiguous.count)
    if not total:
        typer.echo(f"{vcf} holds no variant to score.", err=True)
    for line in skipped.remarks(size):
        typer.echo(line, err=True)
    if out is not None:
        typer.echo(out)


def saturate(
    run: Run,
    file: Sequences,
    record: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Record to take. [default: the only one]"),
    ] = None,
    first: Annotated[int, typer.Option("--from", min=1, help="First base to replace.")] = 1,
    last: Annotated[
        int | None, typer.Option("--to", min=1, help="Last base to replace. [default: the last]")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Heat map to draw of the changes.")
    ] = None,
    label: Class = None,
    log_odds: LogOdds = False,
    out: OutFile = None,
    force: Replace = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Replace each base of a sequence by each other, and write what that changes."""
    from titans_cli.progress import Bar
    from titans_domains.dna import saturation, scoring
    from titans_domains.dna.output import draft, rows
    from titans_domains.targets import check_plots, check_target

    for path, option in ((out, "--out"), (picture, "--picture")):
        if path is not None:
            check_target(path, force, option)
    if picture is not None:
        check_plots("--picture")
    picked = saturation.pick_record(file, record)
    name, sequence = picked.name, picked.sequence
    model = load(run, device)
    if len(sequence) < scoring.shortest_of(model):
        raise ValueError(
            f"{file}, record {name!r} has {len(sequence)} bases, and the model's tokens need at least "
            f"{scoring.shortest_of(model)}."
        )
    scorer = scoring.scorer_of(model, label, log_odds=log_odds)
    if len(scorer.names) > 1:
        raise ValueError(
            f"--class must say whose chance counts: {', '.join(n.partition('_')[2] for n in scorer.names)}."
        )
    stop = len(sequence) if last is None else last
    with Bar("replacing", 3 * max(0, stop - first + 1)) as bar:
        found = saturation.saturate(
            scorer, sequence, first=first - 1, last=stop, progress=bar.advance
        )
    if picture is not None:
        with draft(picture) as image:
            saturation.draw_saturation(found, name, f"change of {scorer.names[0]}", image)
    with rows(out, sys.stdout, "rows", as_json=as_json) as table:
        for cells in saturation.cells_of(found, name, scorer.names[0]):
            table.row(cells)
    say_ambiguous(picked.ambiguous)
    for path in (picture, out):
        if path is not None:
            typer.echo(path, err=out is None)
