"""Text: train a language model, measure it in bits per byte, read into a memory, generate."""

import json
import sys
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from titans_cli import language_eval, language_suites, language_use, scale
from titans_cli.language_eval import Run
from titans_cli.options import (
    MOST,
    Checkpoint,
    Device,
    Devices,
    Force,
    Json,
    Loggers,
    Nodes,
    Out,
    Preset,
    SequenceRanks,
    Set,
    Strategy,
    TrainSeed,
)

app = typer.Typer(
    no_args_is_help=True,
    help=__doc__,
    epilog="Example: titans language train --data book.txt --out runs/book",
    rich_markup_mode=None,
)


@app.command(epilog="Example: titans language train --data book.txt --out runs/book")
@scale.stoppable
def train(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Text, JSON lines or Parquet file, folder of them, embedded (default), or a Hugging "
            "Face data set: hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.",
        ),
    ] = None,
    preset: Preset = None,
    mixer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What mixes over time: lmm, mac, mag, mal, mac+mal, attention; swa, linear, retnet, "
            "gla, mamba2, deltanet, gated-deltanet, longhorn, mamba, gsa, ttt-linear, ttt-mlp; samba, "
            "gated-deltanet-h2; rmt, armt; or several with / between, which take turns. [default: the "
            "preset's, lmm]",
        ),
    ] = None,
    settings: Set = None,
    seed: TrainSeed = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    sequence_ranks: SequenceRanks = 1,
    loggers: Loggers = None,
    out: Out = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out as it was set up, to its last step, bit for bit.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Train a language model on text."""
    from titans_domains.language import DOMAIN

    if preset is not None and preset not in DOMAIN.presets:
        raise ValueError(f"--preset must be one of {', '.join(DOMAIN.presets)}: got {preset!r}.")
    if resume and force:
        raise ValueError("--resume goes on with a run and --force replaces it: give one of them.")
    from titans_domains.config import override
    from titans_domains.runs import load_run_table

    folder = out or Path("runs") / (preset or "tiny")
    for key, value in {"seed": seed, "data.source": data, "model.mixer": mixer}.items():
        if value is not None and any(text.startswith(f"{key}=") for text in settings or []):
            option = key.rpartition(".")[2].replace("source", "data")
            raise ValueError(f"--{option} and --set {key} say the same: give one of them.")
    changes = [f"seed={seed}"] if seed is not None else []
    changes += [f"data.source={json.dumps(data)}"] if data is not None else []
    changes += [f"model.mixer={mixer}"] if mixer is not None else []
    changes += settings or []
    base = DOMAIN.presets[preset or "tiny"]
    if resume and preset is None:
        # What is not asked for is the run's own.
        base = load_run_table(folder, DOMAIN)[0]
    config = override(base, changes)
    scale.train(
        DOMAIN, config, folder,
        device=device, devices=devices, nodes=nodes, strategy=strategy, sequence_ranks=sequence_ranks,
        loggers=loggers, resume=resume, force=force,
    )  # fmt: skip


@app.command(name="eval", epilog="Example: titans language eval runs/tiny --data book.txt")
def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Text to read, of a Hugging Face data set the first MiB; without it the run's "
            "held-out text.",
        ),
    ] = None,
    positions: Annotated[
        bool,
        typer.Option("--by-position", help="By position in long documents, without the floors."),
    ] = False,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="With --by-position: bytes read of each document that has as many. [default: the "
            "largest power of two that half of them reach]",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="With --by-position: picture to draw, .png, .pdf or .svg.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a picture that is there already.")
    ] = False,
    checkpoint: Checkpoint = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bits per byte over a whole text, memory carried, frozen and reset, beside the floors."""
    if positions:
        language_eval.by_position(
            run,
            data,
            device,
            checkpoint,
            length=length,
            picture=picture,
            force=force,
            as_json=as_json,
        )
        return
    if length is not None or picture is not None:
        raise ValueError(
            "--length and --plot are for --by-position: give it too, or leave them out."
        )
    from titans_cli.progress import Bar
    from titans_domains.language.evaluate import modes_of, report
    from titans_domains.language.task import load_run, texts_for
    from titans_domains.runs import choose_device

    model, tokenizer, config = load_run(run, choose_device(device), checkpoint)
    training, texts = texts_for(run, config, data)
    total = sum(len(tokenizer.encode(text)) for text in texts) * len(modes_of(model))
    with Bar("reading", total) as bar:
        table = report(
            model, tokenizer, texts, training, window=config.data.seq_len, progress=bar.advance
        )
    scores = table["bits_per_byte"]
    if as_json:
        # A memory that ran away is a result, for which JSON has no number.
        finite = {name: bits if isfinite(bits) else None for name, bits in scores.items()}
        typer.echo(json.dumps(table | {"bits_per_byte": finite}))
        return
    figures = scores | table["floors"]
    width = max(map(len, figures))
    for name, bits in figures.items():
        typer.echo(f"{name:{width}}  {bits:.3f} bits/byte")


@app.command(epilog="Example: titans language read runs/tiny book.txt --memory book.memory")
def read(
    run: Run,
    document: Annotated[Path, typer.Argument(metavar="DOC", help="Text file, read as a whole.")],
    memory: Annotated[
        Path | None, typer.Option("--memory", metavar="FILE", help="Memory file to write.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Memory file to go on from."),
    ] = None,
    caches: Annotated[
        bool,
        typer.Option("--caches", help="Keep caches too, to go on bit for bit; a larger file."),
    ] = False,
    anomalies: Annotated[
        bool,
        typer.Option(
            "--anomalies",
            help="Keep nothing: list the bytes that surprise the memory far more than others do.",
        ),
    ] = False,
    far: Annotated[
        float | None,
        typer.Option(
            metavar="K",
            help="With --anomalies: median absolute deviations above the median. [default: 10]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a memory file that is there already.")
    ] = False,
    checkpoint: Checkpoint = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read a document and keep the memory of it, or look for what is strange in it."""
    if anomalies:
        if memory is not None or start is not None:
            raise ValueError(
                "--anomalies reads from a fresh memory on and keeps none: leave --memory and --from out."
            )
        language_use.show_anomalies(run, document, far, device, checkpoint, as_json)
        return
    if memory is None:
        raise ValueError("Give --memory FILE to keep the memory in, or --anomalies.")
    if far is not None:
        raise ValueError("--far is for --anomalies: give it too, or leave it out.")
    from titans_cli.progress import Bar
    from titans_core import save_memory
    from titans_domains.language import reading
    from titans_domains.language.task import load_run
    from titans_domains.runs import choose_device

    reading.check_target(memory, force)
    text = reading.read_text(document)
    model, tokenizer, _ = load_run(run, choose_device(device), checkpoint)
    reading.check_memory(model, run)
    state = None if start is None else reading.load_reading(start, model)
    tokens = reading.stream_of(tokenizer, text, state)
    with Bar("reading", len(tokens)) as bar:
        done = reading.read_stream(model, tokenizer, tokens, state, progress=bar.advance)
    save_memory(memory, done.state, model.backbone, caches=caches)
    if done.bits_per_byte is not None:
        typer.echo(f"{document}: {done.bits_per_byte:.3f} bits/byte", err=True)
    typer.echo(reading.describe_memory(memory, done.state), err=True)
    if as_json:
        typer.echo(json.dumps(language_use.kept(memory, done)))
    else:
        typer.echo(memory)


@app.command(name="generate", epilog='Example: titans language generate runs/tiny "The memory"')
def generate_text(
    run: Run,
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to make.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 the model's own chances.")
    ] = 0.8,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens with this share.")] = 0.95,
    memory: Annotated[
        Path | None,
        typer.Option("--memory", metavar="FILE", help="Memory file that the text goes on from."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST, help="Seed of the sampling.")] = 0,
    checkpoint: Checkpoint = "last",
    device: Device = "auto",
) -> None:
    """Generate text from a trained run, letter by letter."""
    from titans_domains.language.generate import as_text, check_sampling, generate, printable
    from titans_domains.language.reading import describe_memory, load_reading
    from titans_domains.language.task import load_run
    from titans_domains.runs import choose_device

    check_sampling(temperature, top_p)
    try:
        begin = prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"PROMPT must be UTF-8 text: letter {error.start} is not.") from None
    if memory is not None and not prompt:
        raise ValueError("What goes on from --memory needs a PROMPT: give at least one character.")
    model, tokenizer, _ = load_run(run, choose_device(device), checkpoint)
    state = None
    if memory is not None:
        state = load_reading(memory, model)
        typer.echo(describe_memory(memory, state), err=True)
    pieces = generate(
        model, tokenizer, begin, state,
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
    )  # fmt: skip
    texts = as_text(pieces)
    if sys.stdout.isatty():
        texts = map(printable, texts)
    # What cannot be read or drawn from is refused before anything is written.
    first = next(texts)
    for text in chain([prompt, first], texts):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


app.command(
    name="lm-eval",
    epilog="Example: titans language lm-eval runs/tiny --tasks mine --include-path tasks",
)(language_eval.lm_eval)
app.command(
    epilog="Example: titans language ask runs/tiny --suite ruler --tasks niah_single_1 --count 20"
)(language_suites.ask)
