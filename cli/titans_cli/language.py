"""Text: train a language model, measure it in bits per byte, generate from it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from titans_cli.options import Device, Force, Json, Out, Preset, Seed, Set, TrainSeed

app = typer.Typer(no_args_is_help=True, help=__doc__, rich_markup_mode=None)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]


@app.command(epilog="Example: titans language train --data book.txt --out runs/book")
def train(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Text, JSON lines or Parquet file, folder of them, hf:NAME, or embedded (default).",
        ),
    ] = None,
    preset: Preset = None,
    mixer: Annotated[str | None, typer.Option(help="lmm or attention.")] = None,
    settings: Set = None,
    seed: TrainSeed = None,
    device: Device = "auto",
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, bit for bit.")
    ] = False,
    force: Force = False,
) -> None:
    """Train a language model on text."""
    from titans_cli.progress import Bar, show_training
    from titans_domains.config import override
    from titans_domains.language import DOMAIN
    from titans_domains.runs import choose_device, load_run_table, resume_run, train_run

    if preset is not None and preset not in DOMAIN.presets:
        raise ValueError(f"--preset must be one of {', '.join(DOMAIN.presets)}: got {preset!r}.")
    if resume and force:
        raise ValueError("--resume goes on with a run and --force replaces it: give one of them.")
    folder = out or Path("runs") / (preset or "tiny")
    changes = [f"seed={seed}"] if seed is not None else []
    changes += [f"data.source={json.dumps(data)}"] if data is not None else []
    changes += [f"model.mixer={mixer}"] if mixer is not None else []
    changes += settings or []
    base = DOMAIN.presets[preset or "tiny"]
    if resume and preset is None:
        # What is not asked for is the run's own.
        base = load_run_table(folder, DOMAIN)[0]
    config = override(base, changes)
    where = choose_device(device)
    with Bar("training", config.train.steps) as bar:
        show = show_training(bar)
        if resume:
            resume_run(DOMAIN, folder, asked=config, device=where, show=show, talk=bar.say)
        else:
            train_run(DOMAIN, config, folder, device=where, force=force, show=show, talk=bar.say)
    typer.echo(folder)


@app.command(name="eval", epilog="Example: titans language eval runs/tiny --data book.txt")
def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Text to read; without it the run's held-out text."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bits per byte over a whole text, memory carried, frozen and reset, beside the floors."""
    from titans_cli.progress import Bar
    from titans_domains.language.evaluate import modes_of, report
    from titans_domains.language.task import load_run, texts_for
    from titans_domains.runs import choose_device

    model, tokenizer, config = load_run(run, choose_device(device))
    training, texts = texts_for(run, config, data)
    total = sum(len(tokenizer.encode(text)) for text in texts) * len(modes_of(model))
    with Bar("reading", total) as bar:
        table = report(
            model, tokenizer, texts, training, window=config.data.seq_len, progress=bar.advance
        )
    if as_json:
        typer.echo(json.dumps(table))
        return
    for name, bits in table["bits_per_byte"].items():
        typer.echo(f"{name:28} {bits:.3f} bits/byte")
    for name, bits in table["floors"].items():
        typer.echo(f"{name:28} {bits:.3f} bits/byte")


@app.command(name="generate", epilog='Example: titans language generate runs/tiny "The memory"')
def generate_text(
    run: Run,
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to make.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 the model's own chances.")
    ] = 0.8,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens with this share.")] = 0.95,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Generate text from a trained run, letter by letter."""
    from titans_domains.language.generate import as_text, check_sampling, generate
    from titans_domains.language.task import load_run
    from titans_domains.runs import choose_device

    check_sampling(temperature, top_p)
    model, tokenizer, _ = load_run(run, choose_device(device))
    pieces = generate(
        model, tokenizer, prompt.encode(),
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
    )  # fmt: skip
    sys.stdout.write(prompt)
    for text in as_text(pieces):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
