"""What a trained run finds in long prompts that it was not trained for: RULER and BABILong, zero-shot."""

import json
from typing import Annotated, Literal

import typer

from titans_cli.language_eval import Run, print_table
from titans_cli.options import Device, Json


def ask(
    run: Run,
    suite: Annotated[Literal["ruler", "babilong"], typer.Option(help="ruler or babilong.")],
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAMES", help="Its tasks, with commas. [default: all]"),
    ] = None,
    lengths: Annotated[
        str,
        typer.Option(metavar="NUMBERS", help="Tokens of a prompt and what is made, with commas."),
    ] = "1024,2048,4096",
    count: Annotated[int, typer.Option(min=1, help="Prompts of each task and length.")] = 100,
    mode: Annotated[
        Literal["carried", "reset"],
        typer.Option(
            help="carried: the memory learns from the whole prompt. reset: it is restored every 512 "
            "tokens, the control for what needs no memory."
        ),
    ] = "carried",
    text: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Text to hide in. [default: the embedded one]"),
    ] = None,
    babi: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="bAbI's files, for babilong. [default: its worlds, anew]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts.")] = 42,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Long prompts with something to find, answered greedily by a run that was trained on text alone."""
    from titans_cli.progress import Bar
    from titans_domains.language.suites import babilong, ruler
    from titans_domains.language.task import load_run
    from titans_domains.runs import choose_device

    known = tuple(ruler.TASKS if suite == "ruler" else babilong.LABELS)
    chosen = [name.strip() for name in tasks.split(",")] if tasks else list(known)
    for name in chosen:
        if name not in known:
            raise ValueError(f"--tasks must be of {', '.join(known)}: got {name!r}.")
    if babi is not None and suite == "ruler":
        raise ValueError("--babi is for --suite babilong: leave it out.")
    sizes = whole_numbers(lengths)
    model, tokenizer, _ = load_run(run, choose_device(device))
    found = []
    with Bar("asking", len(chosen) * len(sizes) * count) as bar:
        for name in chosen:
            for length in sizes:
                if suite == "ruler":
                    row = ruler.evaluate_ruler(
                        model, tokenizer, name, length, count, seed, text,
                        mode=mode, progress=bar.advance,
                    )  # fmt: skip
                else:
                    row = babilong.evaluate_babilong(
                        model, tokenizer, name, length, mode,
                        count=count, seed=seed, books=text, babi=babi, progress=bar.advance,
                    )  # fmt: skip
                found.append(row | {"protocol": "zero-shot"})
    if as_json:
        typer.echo(json.dumps({"suite": suite, "seed": seed, "rows": found}))
        return
    figures = ("score",) if suite == "ruler" else ("exact_label", "contains")
    heads = ["task", "length", "unit", "mode", "samples", *figures]
    print_table([heads, *([cell(row[head]) for head in heads] for row in found)])


def cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def whole_numbers(given: str) -> list[int]:
    try:
        found = [int(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(f"--lengths must be integers with commas: got {given!r}.") from None
    if min(found) < 1:
        raise ValueError(f"--lengths must be at least 1: got {given!r}.")
    return found
