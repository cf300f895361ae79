"""Time series: train a forecaster, measure it, forecast, and run the long-horizon benchmark."""

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titans_cli import scale
from titans_cli.options import (
    Device,
    Devices,
    Force,
    Json,
    Loggers,
    Nodes,
    Out,
    Preset,
    Set,
    Strategy,
    TrainSeed,
)

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True,
    help=__doc__,
    epilog="Example: titans timeseries train --data ETTh1.csv --out runs/ett",
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
OtherData = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="FILE", help="CSV file, wide or long; without it the run's own series."
    ),
]


@app.command(epilog="Example: titans timeseries train --data ETTh1.csv --out runs/ett")
@scale.stoppable
def train(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="CSV file: wide (stamps, then a column per series) or long (item_id, timestamp, "
            "target, and the columns that --set data.feat_... or data.ignored name). Without it a "
            "generated set: eight hourly series of twelve weeks, with trend, two seasons, level shifts "
            "and missing values.",
        ),
    ] = None,
    preset: Preset = None,
    mixer: Annotated[
        str | None,
        typer.Option(
            help="lmm, mac, mag, mal, mac+mal, attention, or another that titans language train "
            "--help names."
        ),
    ] = None,
    prediction_length: Annotated[
        int | None, typer.Option(help="Steps to forecast. [default: 24]")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Steps that a forecast is made from. [default: 168]")
    ] = None,
    settings: Set = None,
    seed: TrainSeed = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    loggers: Loggers = None,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, bit for bit.")
    ] = False,
    force: Force = False,
) -> None:
    """Train a forecaster on time series."""
    from titans_domains.timeseries import DOMAIN

    if preset is not None and preset not in DOMAIN.presets:
        raise ValueError(f"--preset must be one of {', '.join(DOMAIN.presets)}: got {preset!r}.")
    if resume and force:
        raise ValueError("--resume goes on with a run and --force replaces it: give one of them.")
    from titans_domains.config import override
    from titans_domains.runs import load_run_table

    folder = out or Path("runs") / (preset or "tiny")
    options = {
        "seed": seed,
        "data.source": None if data is None else json.dumps(data),
        "model.mixer": mixer,
        "forecast.prediction_length": prediction_length,
        "forecast.context_length": context_length,
    }
    changes = [f"{key}={value}" for key, value in options.items() if value is not None]
    base = DOMAIN.presets[preset or "tiny"]
    if resume and preset is None:
        # What is not asked for is the run's own.
        base = load_run_table(folder, DOMAIN)[0]
    config = override(base, [*changes, *(settings or [])])
    scale.train(
        DOMAIN, config, folder,
        device=device, devices=devices, nodes=nodes, strategy=strategy,
        loggers=loggers, resume=resume, force=force,
    )  # fmt: skip


@app.command(name="eval", epilog="Example: titans timeseries eval runs/tiny")
def evaluate(
    run: Run,
    data: OtherData = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Figures on what the run held out, memory of a window, carried and frozen, beside baselines."""
    from titans_domains.runs import choose_device
    from titans_domains.timeseries.task import load_run, series_for

    predictor, config = load_run(run, choose_device(device))
    if not config.data.test_windows:
        raise ValueError(f"{run} held nothing out: use titans timeseries backtest.")
    series = series_for(run, config, data, warn)
    show_backtest(modes_of(predictor), series, config.data.test_windows, None, as_json)


@app.command(epilog="Example: titans timeseries backtest runs/tiny --data ETTh1.csv --windows 20")
def backtest(
    run: Run,
    data: OtherData = None,
    windows: Annotated[int, typer.Option(help="Origins before each series' end.")] = 4,
    distance: Annotated[
        int | None, typer.Option(help="Steps between origins. [default: the horizon]")
    ] = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="Also with the memory carried and frozen.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rolling forecasts from several origins of each series, scored beside baselines."""
    from titans_domains.runs import choose_device
    from titans_domains.timeseries.task import load_run, series_for

    predictor, config = load_run(run, choose_device(device))
    models = modes_of(predictor) if carry else {"titans": predictor}
    show_backtest(models, series_for(run, config, data, warn), windows, distance, as_json)


def warn(line: str) -> None:
    typer.echo(f"warning: {line}", err=True)


def modes_of(predictor: Any) -> dict[str, Any]:
    """The ways in which the predictor can read a growing series."""
    model = predictor.module.model.config.model
    if not model.bounded:
        return {f"{model.mixer}, window": predictor}
    frozen = predictor.carry()
    frozen.freeze()
    return {
        f"{model.mixer}, window": predictor,
        f"{model.mixer}, carried": predictor.carry(),
        f"{model.mixer}, frozen": frozen,
    }


def show_backtest(
    models: dict[str, Any], series: Any, windows: int, distance: int | None, as_json: bool
) -> None:
    from titans_cli.progress import Bar
    from titans_domains.timeseries.backtesting import backtest as run_backtest

    with Bar("forecasting", len(series) * max(windows, 1) * (len(models) + 3)) as bar:
        table = run_backtest(
            models, series, windows=windows, distance=distance, progress=bar.advance
        )
    show_table(table, as_json)


def show_table(table: "pd.DataFrame", as_json: bool) -> None:
    if as_json:
        rows = table.to_dict("index")
        # A figure that does not exist (the MASE of constant series) has no number in JSON.
        typer.echo(
            json.dumps(
                {
                    n: {k: v if isfinite(v) else None for k, v in row.items()}
                    for n, row in rows.items()
                }
            )
        )
        return
    width = max(map(len, table.index))
    typer.echo("  ".join([" " * width, *(f"{name:>10}" for name in table.columns)]))
    for name, row in table.iterrows():
        typer.echo(
            "  ".join(
                [
                    f"{name:{width}}",
                    *(f"{f'{value:.4g}' if isfinite(value) else '-':>10}" for value in row),
                ]
            )
        )


@app.command(epilog="Example: titans timeseries forecast runs/tiny --out next.csv --plot next.png")
def forecast(
    run: Run,
    data: OtherData = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="CSV file to write. [default: to stdout]"),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Picture to draw: .png, .pdf or .svg."),
    ] = None,
    quantiles: Annotated[
        str, typer.Option(metavar="LIST", help="Quantiles, with commas between.")
    ] = "0.1,0.5,0.9",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    device: Device = "auto",
) -> None:
    """Forecast what follows each series: item_id, timestamp, mean and quantiles as CSV.

    The mean is the median for a model of quantiles. Where the model reads data.feat_dynamic_real, the rows
    after a series' last target hold their future, a horizon of it.
    """
    from titans_core.files import write_whole
    from titans_domains.runs import choose_device
    from titans_domains.targets import check_target
    from titans_domains.timeseries.frames import to_table
    from titans_domains.timeseries.task import load_run, series_for
    from titans_domains.timeseries.written import levels

    wanted = levels(quantiles)
    for path, option in ((out, "--out"), (picture, "--plot")):
        if path is not None:
            check_target(path, force, option)
    if out is not None and picture is not None and out.resolve() == picture.resolve():
        raise ValueError(f"--out and --plot are both {out}: give two names.")
    predictor, config = load_run(run, choose_device(device))
    series = series_for(run, config, data, warn)
    found = list(predictor.predict(series))
    text = to_table(found, wanted).to_csv(index=False)
    if picture is not None:
        from titans_domains.timeseries.plotting import plot, save_plot

        save_plot(plot(found, series), picture)
        typer.echo(f"{picture}: drawn", err=True)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_whole(out, text)
    typer.echo(out)


@app.command(epilog="Example: titans timeseries data ETTh1 --out data")
def data(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Sets to download, or all; none lists them."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")] = Path(
        "data"
    ),
) -> None:
    """Download the standard data sets (checked, and taken up again where it broke off)."""
    from titans_cli.progress import Bar
    from titans_domains.timeseries.download import SETS, fetch

    if not names:
        for name, source in SETS.items():
            typer.echo(f"{name}\t{source.size:,} bytes\tlicence: {source.licence}")
        return
    for name in list(SETS) if names == ["all"] else names:
        with Bar(name, SETS[name].size if name in SETS else 1) as bar:

            def show(done: int, total: int, bar: Bar = bar) -> None:
                bar.total = total
                bar.progress.update(bar.task, total=total)
                bar.at(done)

            path = fetch(name, out, progress=show)
        typer.echo(path)


@app.command(
    epilog="Example: titans timeseries benchmark --data ETTh1.csv --horizons 96 --seeds 0,1,2"
)
def benchmark(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Wide CSV file without missing values. Without it a generated set of a year.",
        ),
    ] = None,
    horizons: Annotated[
        str, typer.Option(metavar="LIST", help="Steps to forecast.")
    ] = "96,192,336,720",
    lookback: Annotated[
        int | None,
        typer.Option(
            help="Steps of the past. [default: of 96, 336, 512, 720 the linear map's best]"
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="LIST", help="A training for each.")] = "0",
    shares: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Shares of training, validation, test. [default: ETT's own rows, else 0.7,0.1,0.2]",
        ),
    ] = None,
    baselines: Annotated[
        str, typer.Option(metavar="LIST", help="Networks of GluonTS to train beside, by name.")
    ] = "",
    settings: Set = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for results.json and results.md."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The long-horizon protocol: every test window, floors beside every figure."""
    from titans_cli.progress import Bar
    from titans_core.files import write_whole
    from titans_domains.config import override
    from titans_domains.runs import choose_device
    from titans_domains.timeseries.longhorizon import Recipe, Work, markdown, run_benchmark
    from titans_domains.timeseries.written import benchmark_data, numbers, result_files

    recipe = override(Recipe(), settings or [])
    where = choose_device(device)
    files = result_files(out, force)

    def save(results: dict[str, Any]) -> None:
        for file, text in zip(
            files, (json.dumps(results, indent=2), markdown(results)), strict=False
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text + "\n")

    with benchmark_data(data) as path, Bar("benchmark", 1) as bar:

        def show(work: Work) -> None:
            bar.progress.update(bar.task, description=work.what, total=work.total)
            bar.title, bar.total = work.what, work.total
            bar.at(work.done)

        parts = numbers("shares", shares, float) if shares else None
        results = run_benchmark(
            path,
            shares=parts,
            horizons=numbers("horizons", horizons, int),
            lookback=lookback,
            seeds=numbers("seeds", seeds, int),
            recipe=recipe,
            baselines=[name for name in baselines.split(",") if name],
            device=where,
            progress=show,
            talk=bar.say,
            save=save,
        )
    typer.echo(json.dumps(results) if as_json else markdown(results))
