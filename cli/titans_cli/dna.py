"""DNA: pretrain and train models, classify, score variants, read genomes with a memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from titans_cli import dna_effects, dna_use, scale
from titans_cli.dna_use import Run
from titans_cli.options import (
    Device,
    Devices,
    Force,
    Json,
    Loggers,
    Nodes,
    Set,
    Strategy,
    TrainSeed,
)

app = typer.Typer(
    no_args_is_help=True,
    help=__doc__,
    epilog="Example: titans dna train --data gue/prom_core_tata --out runs/tata",
    rich_markup_mode=None,
)

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, bit for bit.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder of the run: weights, log. [default: runs/dna-KIND]"
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="causal: each base from those before it, memory carried. masked: hidden bases from both "
        "sides.",
    ),
]


Genome = Annotated[
    Path | None,
    typer.Option(
        "--genome",
        metavar="FASTA",
        help="Genome, plain or bgzip, of data that are places in it: a folder of one table for each class "
        "with the columns id, region, start, end, strand.",
    ),
]


@app.command(epilog="Example: titans dna pretrain --data genome.fa.gz --out runs/genome")
@scale.stoppable
def pretrain(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Genome, FASTA or GenBank, plain or compressed. [default: made promoters]",
        ),
    ] = None,
    kind: Kind = "causal",
    mixer: Annotated[
        str | None,
        typer.Option(
            help="lmm, mac, mag, mal, mac+mal, attention, or another that titans language train "
            "--help names."
        ),
    ] = None,
    settings: Set = None,
    seed: TrainSeed = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    loggers: Loggers = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train a model of bases on a genome, without labels."""
    if kind not in ("causal", "masked"):
        raise ValueError(f"--kind must be causal or masked: got {kind!r}.")
    changes = _changes(seed, {"data.source": data, "model.backbone.mixer": mixer})
    changes += settings or []
    _train(
        kind, changes, device, out,
        devices=devices, nodes=nodes, strategy=strategy, loggers=loggers or (),
        resume=resume, force=force,
    )  # fmt: skip


@app.command(epilog="Example: titans dna train --data gue/prom_core_tata --out runs/tata")
@scale.stoppable
def train(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="CSV or TSV with the columns sequence and label, UCI .data, folder of train, dev and "
            "test, folder of classes, or a Hugging Face data set hf:NAME. [default: made promoters]",
        ),
    ] = None,
    genome: Genome = None,
    chromosomes: Annotated[
        str | None,
        typer.Option(
            "--valid-chromosomes",
            metavar="NAMES",
            help="Chromosomes (or other groups) to validate on, with commas between; the data has them in "
            "a column group, chromosome, chrom, chr or region. [default: a tenth of the sequences]",
        ),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            "--pretrained",
            metavar="RUN",
            help="Run of titans dna pretrain whose encoder and tokens are trained on.",
        ),
    ] = None,
    mixer: Annotated[
        str | None,
        typer.Option(
            help="lmm, mac, mag, mal, mac+mal, attention, or another that titans language train "
            "--help names."
        ),
    ] = None,
    settings: Set = None,
    seed: TrainSeed = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    loggers: Loggers = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train a classifier on labelled sequences; validation decides which weights are kept."""
    held_out = None if chromosomes is None else [c.strip() for c in chromosomes.split(",")]
    asked = {
        "data.source": data, "data.genome": genome, "data.valid_chromosomes": held_out,
        "pretrained": pretrained, "model.backbone.mixer": mixer,
    }  # fmt: skip
    changes = _changes(seed, asked) + (settings or [])
    _train(
        "tiny", changes, device, out,
        pretrained=pretrained, devices=devices, nodes=nodes, strategy=strategy, loggers=loggers or (),
        resume=resume, force=force,
    )  # fmt: skip


def _changes(seed: int | None, asked: dict[str, Any]) -> list[str]:
    """What the options ask for, as settings."""
    given = {"seed": seed} | asked
    return [f"{key}={json.dumps(v, default=str)}" for key, v in given.items() if v is not None]


def _train(
    preset: str,
    changes: list[str],
    device: str,
    out: Path | None,
    *,
    pretrained: Path | None = None,
    devices: int,
    nodes: int,
    strategy: str,
    loggers: Sequence[str],
    resume: bool,
    force: bool,
) -> None:
    if resume and force:
        raise ValueError("--resume goes on with a run and --force replaces it: give one of them.")
    from titans_domains.config import override
    from titans_domains.dna import DOMAIN
    from titans_domains.dna.report import remarks
    from titans_domains.dna.task import begun_from
    from titans_domains.runs import load_run_table

    folder = out or Path("runs") / f"dna-{DOMAIN.presets[preset].kind}"
    # What is not asked for is the run's own.
    base = load_run_table(folder, DOMAIN)[0] if resume else DOMAIN.presets[preset]
    if pretrained is not None and not resume:
        base = begun_from(base, pretrained)
    config = override(base, changes)
    scale.train(
        DOMAIN, config, folder,
        device=device, devices=devices, nodes=nodes, strategy=strategy,
        loggers=loggers, resume=resume, force=force, remarks=remarks,
    )  # fmt: skip


@app.command(name="eval", epilog="Example: titans dna eval runs/tata --data other.csv")
def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Labelled sequences or a genome, as in training. [default: the run's test split, or "
            "what it held out]",
        ),
    ] = None,
    genome: Genome = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Figures with 95 % intervals of a classifier, bits per base of a pretrained model."""
    from titans_domains.dna import DOMAIN
    from titans_domains.runs import choose_device, load_run_table

    config, _ = load_run_table(run, DOMAIN)
    where = choose_device(device)
    if config.kind == "train":
        _show_classifier(run, config, data, genome, where, as_json)
    elif genome is not None:
        raise ValueError("--genome is for classifiers: give the genome itself with --data.")
    else:
        _show_genome(run, config, data, where, as_json)


def _show_classifier(
    run: Path, config: Any, data: str | None, genome: Path | None, device: Any, as_json: bool
) -> None:
    from titans_cli.progress import Bar
    from titans_domains.dna import report
    from titans_domains.dna.output import to_json
    from titans_domains.dna.task import load_classifier

    model = load_classifier(run, device)
    split, rows = report.rows_for(run, config, data, genome)
    with Bar("classifying", len(rows.sequences)) as bar:
        table = report.classifier_report(model, rows, bar.advance)
    if as_json:
        typer.echo(to_json({"split": split} | table))
    else:
        typer.echo(f"{split}: {table['sequences']:,} sequences")
        for name, figure in table["figures"].items():
            low, high = figure["low"], figure["high"]
            typer.echo(f"{name:9} {figure['value']:.4f}  (95 %: {low:.4f} to {high:.4f})")
    if data is None:
        remarks = report.remarks(config)
    else:
        remarks = report.overlap_remarks(run, config, data, split, rows)
        dna_use.say_ambiguous(rows.ambiguous)
    for line in remarks:
        typer.echo(line, err=True)


def _show_genome(run: Path, config: Any, data: str | None, device: Any, as_json: bool) -> None:
    from titans_cli.progress import Bar
    from titans_domains.dna import report
    from titans_domains.dna.output import to_json
    from titans_domains.dna.task import load_model

    model = load_model(run, device)
    parts = report.held_out_contigs(run, config, data)
    with Bar("reading", report.cost(config, parts)) as bar:
        table = report.genome_report(model, config, parts, bar.advance)
    dna_use.say_ambiguous(parts.ambiguous)
    if as_json:
        typer.echo(to_json(table))
        return
    figures = table["bits_per_base"] | table["floors"]
    width = max(map(len, figures))
    for name, bits in figures.items():
        typer.echo(f"{name:{width}}  {bits:.4f} bits/base")


app.command(epilog="Example: titans dna classify runs/dna-train reads.fastq.gz > calls.tsv")(
    dna_use.classify
)
app.command(
    name="score-variants",
    epilog="Example: titans dna score-variants runs/tata calls.vcf.gz --genome hg38.fa",
)(dna_effects.score_variants)
app.command(epilog="Example: titans dna saturate runs/tata promoter.fa --picture promoter.png")(
    dna_effects.saturate
)
app.command(epilog="Example: titans dna embed runs/tata promoters.fa --out vectors.npz")(
    dna_use.embed
)
app.command(epilog="Example: titans dna read runs/dna-causal genome.gbk.gz --picture bits.png")(
    dna_use.read
)
