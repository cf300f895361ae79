"""Writes the reference of the command line from the commands themselves, as the site is built.

mkdocs calls `on_page_markdown`; a page that holds the line `MARKER` gets every command there.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from titans_cli.app import app

MARKER = "<!-- every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(MARKER, "\n".join(reference())) if MARKER in markdown else markdown


def tree(command: Any, context: Any) -> Iterator[Any]:
    """The context of a command and of all that stand under it, each with its command."""
    yield context
    if not hasattr(command, "list_commands"):
        return
    for name in sorted(command.list_commands(context)):
        # Resolved as a call would be: only then is the module of a command imported.
        _, child, _ = command.resolve_command(context, [name])
        yield from tree(child, child.context_class(child, info_name=name, parent=context))


def commands() -> Iterator[Any]:
    """The context of every command that `titans` has, itself first."""
    root = typer.main.get_command(app)
    yield from tree(root, root.context_class(root, info_name="titans"))


def reference() -> Iterator[str]:
    for context in commands():
        command = context.command
        yield f"## {context.command_path}\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"```text\n{context.command_path} {usage}\n```\n"
        yield from options(command, context)
        for line in (command.epilog or "").splitlines():
            head, _, example = line.partition(": ")
            is_call = example.startswith("titans ") and not re.search(r"[,.] ", example)
            yield f"{head}: `{example}`\n" if is_call else f"{escape(line)}\n"


def options(command: Any, context: Any) -> Iterator[str]:
    params = [p for p in command.get_params(context) if p.name != "help"]
    rows = [found for p in params if (found := p.get_help_record(context))]
    if not rows:
        return
    yield "| argument or option | what |"
    yield "| --- | --- |"
    for name, text in rows:
        yield f"| `{name}` | {escape(' '.join(text.split()))} |"
    yield ""


def escape(text: str) -> str:
    """As Markdown shows it letter by letter."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#!|" else letter for letter in text)
