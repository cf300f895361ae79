"""Serve a run over HTTP: completions with memories that last, forecasts, or classes."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from titans_cli.options import Device

app = typer.Typer(help=__doc__, rich_markup_mode=None)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command(epilog="Example: titans serve runs/tiny --sessions sessions")
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients. [default: the folder's]")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="Keys that clients need, one in a line, or the name of its owner before it: each owner "
            "has sessions of its own. [default: TITANS_API_KEY, or none]",
        ),
    ] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for sessions. [default: in this process alone]"),
    ] = None,
    in_process: Annotated[
        int, typer.Option(min=1, help="Most sessions held in the process.")
    ] = 256,
    max_sessions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most sessions of all owners together; without --sessions, --in-process too.",
        ),
    ] = 10_000,
    ttl: Annotated[
        float | None,
        typer.Option("--session-ttl", metavar="SECONDS", help="Forget sessions idle for so long."),
    ] = None,
    durable: Annotated[
        bool, typer.Option("--durable", help="Write a session to the disk before each answer.")
    ] = False,
    max_body: Annotated[int, typer.Option(min=1, help="Most bytes of a request.")] = 2**20,
    max_prompt: Annotated[int, typer.Option(min=1, help="Most tokens of a prompt.")] = 32_768,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens made by a request.")] = 4096,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests that are worked on at once.")
    ] = 64,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 256,
    grace: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="For running requests when asked to stop."),
    ] = 30.0,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Of text: last, or best: the one with the best validation. [default: last; forecasters "
            "and classifiers are served with their best]",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Serve a run until SIGTERM or SIGINT; its address is printed when it listens.

    Then running requests end, within --grace, the sessions of --sessions are on the disk, and the exit
    code is 0, or 2 where some could not be written. Without --sessions, they go with the process.
    """
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise ValueError(
                f"titans serve needs {package}: pip install 'titans-toolkit[serve]', or in a clone "
                "pip install -e '.[serve]'."
            )
    if ttl is not None and not ttl > 0:
        raise ValueError(f"--session-ttl must be above 0 seconds: got {ttl}.")
    from titans_domains.runs import choose_device
    from titans_domains.serving.app import create_app
    from titans_domains.serving.load import StoreConfig, domain_of, load_backend
    from titans_domains.serving.run import address_of, listen
    from titans_domains.serving.run import serve as serve_app
    from titans_domains.serving.service import Service
    from titans_domains.serving.settings import ServeConfig, read_keys

    config = ServeConfig(
        name=name or run.resolve().name, keys=read_keys(key_file),
        hosts=LOOPBACK if host in LOOPBACK else (), max_body=max_body,
        max_prompt=max_prompt, max_tokens=max_tokens, concurrency=concurrency, queue=queue, grace=grace,
    )  # fmt: skip
    if not config.keys and host not in LOOPBACK:
        typer.echo("No API key is set: whoever reaches this address may use it.", err=True)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    service, store = Service(config), StoreConfig(sessions, in_process, max_sessions, ttl, durable)
    # Before anything is loaded: whether there is such a run, and whether one may listen there.
    domain = domain_of(run)
    with listen(host, port) as listener:
        backend = load_backend(run, domain, choose_device(device), service, store, checkpoint)
        serve_app(
            create_app(service, backend), service, backend, listener,
            lambda: typer.echo(address_of(listener)),
        )  # fmt: skip
