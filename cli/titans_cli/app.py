"""The command `titans`: finds the installed commands, imports the one called, reports its errors.

Exit codes: 0 done, 2 a mistake of the caller (bad arguments, files, names, connections), 1 a fault of
ours, 130 interrupted, 143 terminated.
"""

import os
import sys
import traceback
from importlib import metadata
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from titans_cli.plugins import DISTRIBUTION, is_ours, load, plugins, provider, summary

CALLER_ERRORS = (ValueError, TypeError, OSError, MemoryError)
COMPLETION = ("install_completion", "show_completion")


class StoppedError(Exception):
    """Carries out of Typer what it would otherwise answer itself, without a word on what happened."""


class LazyGroup(TyperGroup):
    """Lists the commands of `titans.commands` from their files, and imports the one that is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.points = plugins("titans.commands")
        for name, point in self.points.items():
            origin = "" if is_ours(point) else f" ({provider(point)})"
            self.add_command(TyperCommand(name, short_help=summary(point) + origin))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in self.points:
            try:
                command = self.load_command(name)
            except (ValueError, TypeError):
                # Shell completion asks too, and there the listed name has to be enough.
                if not ctx.resilient_parsing:
                    raise
        return name, command, rest

    def load_command(self, name: str) -> Any:
        point = self.points[name]
        app = load(point)
        if not isinstance(app, typer.Typer):
            raise TypeError(
                f"{point.value} of {provider(point)} must be a typer.Typer: got {type(app).__name__}."
            )
        command = typer.main.get_command(app)
        command.params = [param for param in command.params if param.name not in COMPLETION]
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            # A reader that has gone away (`titans info | head -1`) shows here, not after the exit.
            sys.stdout.flush()
            return result
        except (KeyboardInterrupt, EOFError) as error:
            raise StoppedError(error) from error


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: titans demo, or titans COMMAND --help for the examples of each command. Completion with "
    "the Tab key: titans --install-completion.",
)


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show where an error came from. So does TITANS_DEBUG=1."),
    ] = False,
) -> None:
    """Sequence models with a neural long-term memory that learns while it reads."""


def main() -> None:
    """The console script; ends by SystemExit."""
    # Read when torch is imported. Threads that spin while they wait take a busy machine from each
    # other: small models were measured three times slower beside one other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args, debug = take_debug(sys.argv[1:])
    try:
        typer.main.get_command(app).main(args, prog_name="titans")
    except StoppedError as stopped:
        fail(stopped.args[0], debug)
    except (Exception, KeyboardInterrupt) as error:
        fail(error, debug)


def take_debug(args: list[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, which stands before or after the command, and whether it did."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"]
    debug = len(kept) < end or os.environ.get("TITANS_DEBUG", "") not in ("", "0")
    return kept + args[end:], debug


def fail(error: BaseException, debug: bool) -> NoReturn:
    from titans_cli.scale import is_said

    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", 130
    elif isinstance(error, CALLER_ERRORS):
        line, code = f"error: {message(error)}", 2
    else:
        hint = "" if debug else "; run again with --debug to see where"
        line, code = f"internal error: {type(error).__name__}: {message(error)}{hint}", 1
    if is_said(error, ours=code == 1):
        typer.echo(line, err=True)
    raise SystemExit(code)


def message(error: BaseException) -> str:
    """What an error says, in one line, without the operating system's error numbers."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


if __name__ == "__main__":
    main()
