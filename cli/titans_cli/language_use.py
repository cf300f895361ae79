"""What `titans language` shows of a document before a memory of it is kept."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from titans_cli.options import Checkpoint

if TYPE_CHECKING:
    from titans_domains.language.reading import Reading


def kept(memory: Path, done: "Reading") -> dict[str, Any]:
    """What `titans language read --json` prints of a memory that was kept."""
    from titans_domains.language.reading import positions

    bits = done.bits_per_byte
    return {
        "memory": str(memory), "bytes": memory.stat().st_size,
        "positions": int(positions(done.state)[0]),
        # JSON has no number for what is not finite.
        "bits_per_byte": bits if bits is not None and math.isfinite(bits) else None,
    }  # fmt: skip


def show_anomalies(
    run: Path,
    document: Path,
    far: float | None,
    device: str,
    checkpoint: Checkpoint,
    as_json: bool,
) -> None:
    """What `titans language read --anomalies` prints: a line for each, and how many on stderr."""
    from titans_cli.progress import Bar
    from titans_domains.language import anomalies as module
    from titans_domains.language.reading import read_text
    from titans_domains.language.task import load_run
    from titans_domains.runs import choose_device

    far = module.FAR if far is None else far
    module.check_far(far)
    text = read_text(document)
    model, tokenizer, _ = load_run(run, choose_device(device), checkpoint)
    with Bar("reading", len(tokenizer.encode(text)) + 1) as bar:
        surprise = module.surprises_of(model, tokenizer, text, progress=bar.advance)
    found = module.anomalies(tokenizer, text, surprise, far=far)
    names = module.unit_names(model)
    lines: list[dict[str, Any]] = [
        {
            "start": one.start, "end": one.end, "tokens": one.tokens, "score": round(one.score, 3),
            "unit": names[one.unit],
            "text": text[one.start : one.end].decode(errors="replace"),
        }
        for one in found
    ]  # fmt: skip
    if as_json:
        # JSON has no number for what is not finite.
        for line, one in zip(lines, found, strict=True):
            line["score"] = line["score"] if math.isfinite(one.score) else None
        typer.echo(json.dumps({"anomalies": lines, "tokens": len(surprise)}))
    elif lines:
        typer.echo("\t".join(lines[0]))
        for line in lines:
            # Control characters and line ends would change the table.
            typer.echo("\t".join([*map(str, list(line.values())[:-1]), ascii(line["text"])]))
    tokens = sum(one.tokens for one in found)
    typer.echo(f"{document}: {tokens} of {len(surprise)} tokens are far out", err=True)
