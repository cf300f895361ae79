"""How good a trained run is: by position in its texts, and on tasks of lm-eval."""

import json
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from titans_cli.options import Device, Json

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]


def by_position(
    run: Path,
    data: str | None,
    device: str,
    checkpoint: str,
    *,
    length: int | None,
    picture: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """What `titans language eval --by-position` prints and draws."""
    from titans_cli.progress import Bar
    from titans_domains.language import positions
    from titans_domains.language.evaluate import modes_of
    from titans_domains.language.task import load_run, texts_for
    from titans_domains.runs import choose_device

    if picture is not None:
        positions.check_picture(picture, force)
    model, tokenizer, config = load_run(run, choose_device(device), checkpoint)
    texts = texts_for(run, config, data)[1]
    length = positions.usual_length(texts) if length is None else length
    texts = positions.long_documents(texts, length)
    total = sum(len(tokenizer.encode(text)) for text in texts) * len(modes_of(model))
    with Bar("reading", total) as bar:
        found = positions.by_position(
            model, tokenizer, texts, length, window=config.data.seq_len, progress=bar.advance
        )
    if picture is not None:
        positions.draw(found, picture)
        typer.echo(f"{picture}: drawn", err=True)
    if as_json:
        typer.echo(json.dumps(finite(found)))
        return
    print_table(positions.table_of(found))


def lm_eval(
    run: Run,
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="NAMES", help="Tasks of lm-eval, with commas between.")
    ],
    include_path: Annotated[
        Path | None,
        typer.Option("--include-path", metavar="DIR", help="Folder of more tasks, as YAML files."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples of each task, the first ones.")
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE",
            help="carried: in one pass, the memory learning. window: at most as many tokens at once as "
            "were trained on. Repeatable. [default: both, where the run can carry]",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tasks of lm-evaluation-harness, which the extra `eval` brings; most are fetched from its hub."""
    from titans_domains.runs import choose_device

    try:
        from titans_domains.language.lm_eval_tasks import evaluate_run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ValueError(
            "titans language lm-eval needs lm-eval: pip install 'titans-toolkit[eval]'."
        ) from None
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ValueError("--tasks must name a task: got none.")
    found = evaluate_run(
        run, names,
        modes=mode or (), include_path=include_path, limit=limit, device=choose_device(device),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(finite(found)))
        return
    print_table(task_rows(found))


def task_rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each task and metric of lm-eval's results by mode, with its standard error."""
    rows = [["task", "metric", *found]]
    for task, metrics in next(iter(found.values())).items():
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            cells = []
            for results in found.values():
                error = results[task].get(f"{metric}_stderr,{kind}")
                shown = results[task][key]
                text = f"{shown:.4f}" if abs(shown) < 10_000 else f"{shown:.4g}"
                cells.append(f"{text} ± {error:.4f}" if isinstance(error, float) else text)
            rows.append([task, metric if kind == "none" else f"{metric}, {kind}", *cells])
    return rows


def finite(node: Any) -> Any:
    """The same with None for what is no number, which JSON has none for."""
    if isinstance(node, dict):
        return {key: finite(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [finite(child) for child in node]
    return None if isinstance(node, float) and not isfinite(node) else node


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())
