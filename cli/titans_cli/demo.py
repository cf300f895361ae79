"""Train a small model, watch it read, and ask it to recall: about five minutes on two cores."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from titans_cli.options import Force, Seed

app = typer.Typer(help=__doc__, rich_markup_mode=None)

READ_BYTES = 8192
PASSAGE_BYTES = 76 * 12
RECALL_STEPS = 300
RECALL_RATES = (5e-3, 1e-2)
RECALL_VOCABULARY = 64


@app.command(epilog="Example: titans demo --quick --out runs/quick")
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run and the picture.")
    ] = Path("runs/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of everything, to see that it runs.")
    ] = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Train a small model on text, watch it read, and ask it to recall."""
    from titans_domains.config import override
    from titans_domains.language import DOMAIN
    from titans_domains.runs import check_target

    check_target(out, force, resumes=False)
    config = override(
        DOMAIN.presets["tiny"],
        [f"seed={seed}", f"train.steps={4 if quick else 150}", "train.valid_every=50"],
    )
    language(config, out, force, 1024 if quick else READ_BYTES)
    recall(seed, quick)


def language(config: Any, out: Path, force: bool, read_bytes: int) -> None:
    """Trains on the embedded text, then shows what reading does."""
    from titans_cli.progress import Bar, show_training
    from titans_domains.language import DOMAIN, load_run
    from titans_domains.language.corpus import first_bytes
    from titans_domains.language.evaluate import modes_of, report
    from titans_domains.language.generate import as_text, generate
    from titans_domains.language.surprise import draw_surprise, surprise_of
    from titans_domains.language.task import texts_for
    from titans_domains.runs import choose_device, train_run

    device = choose_device("auto")
    heading("1. A model with a neural memory learns to read Python's documentation")
    with Bar("training", config.train.steps) as bar:
        train_run(
            DOMAIN, config, out,
            device=device, force=force, show=show_training(bar), talk=bar.say,
        )  # fmt: skip

    heading("2. It reads text that it has not seen: bits per byte, less is better")
    model, tokenizer, config = load_run(out, device)
    training, held_out = texts_for(out, config, None)
    texts = first_bytes(held_out, read_bytes)
    total = sum(map(len, texts)) * len(modes_of(model))
    with Bar("reading", total) as bar:
        table = report(
            model, tokenizer, texts, training, window=config.data.seq_len, progress=bar.advance
        )
    explain = {
        "lmm, carried": "the memory learns while it reads",
        "lmm, frozen": "it may not: what it learned in training is all it has",
        f"lmm, reset({config.data.seq_len})": f"it forgets all every {config.data.seq_len} bytes",
    }
    for name, bits in [*table["bits_per_byte"].items(), *table["floors"].items()]:
        typer.echo(f"  {name:28} {bits:6.3f}  {explain.get(name, '')}".rstrip())

    heading("3. What surprises the memory")
    passage = b"\n".join(held_out)[:PASSAGE_BYTES]
    picture = out / "surprise.png"
    text = passage.decode("ascii", errors="replace")
    surprise = surprise_of(model, tokenizer, passage)
    shade(text, surprise.tolist())
    try:
        draw_surprise(text, surprise, picture)
        typer.echo(f"  as a picture: {picture}")
    except ModuleNotFoundError:
        typer.echo("  for a picture: pip install 'titans-toolkit[plot]'", err=True)

    heading("4. What it writes")
    for part in as_text(generate(model, tokenizer, b"The ", max_tokens=300)):
        typer.echo(part, nl=False)
    typer.echo()


def recall(seed: int, quick: bool) -> None:
    """Trains recall at 64 tokens and asks at 512, the memory beside attention."""
    import torch

    from titans_cli.progress import Bar, training_text
    from titans_core import AttentionConfig, BackboneConfig, MemoryConfig
    from titans_domains.language.suites.mqar import Mqar
    from titans_domains.language.suites.task import SuiteConfig, SuiteTask
    from titans_domains.training import TrainConfig, train

    heading(
        "5. Recall: four pairs are shown, then asked for; trained at 64 tokens, asked at 512 too"
    )
    cpu = torch.device("cpu")
    best: dict[str, tuple[float, float, float]] = {}
    for mixer in ("lmm", "attention"):
        model = BackboneConfig(
            dim=64, num_layers=1, mixer=mixer,
            # A larger step than text likes best: one write must be enough to recall a pair.
            memory=MemoryConfig(num_heads=2, max_step_size=0.3),
            attention=AttentionConfig(num_heads=2, conv_size=4),
        )  # fmt: skip
        for rate in RECALL_RATES:
            steps = 3 if quick else RECALL_STEPS
            settings = TrainConfig(
                steps=steps, lr=rate, warmup=20, valid_every=0, checkpoint_every=steps
            )
            problem = Mqar(vocab_size=RECALL_VOCABULARY, seed=seed)
            data = SuiteConfig(lengths=(64,), batch_tokens=32 * 64, steps=steps, seed=seed)
            task = SuiteTask(model, problem, data, cpu)
            with tempfile.TemporaryDirectory() as folder, Bar(f"{mixer}, lr {rate}", steps) as bar:

                def show(step: int, row: dict[str, Any], bar: Bar = bar) -> None:
                    bar.at(step, training_text(row))

                train(task, settings, Path(folder), device=cpu, show=show)
            near, far = (task.scores(length, 64)["accuracy"] for length in (64, 512))
            # Rates are compared where the model was trained; 512 is only asked.
            if mixer not in best or near > best[mixer][0]:
                best[mixer] = (near, far, rate)
    typer.echo(
        f"  {'answered rightly':18} {'at 64':>7} {'at 512':>7}"
        f"   (chance {2 / RECALL_VOCABULARY:.1%})"
    )
    for mixer, (near, far, rate) in best.items():
        typer.echo(f"  {mixer:18} {near:7.1%} {far:7.1%}   learning rate {rate}")


def heading(text: str) -> None:
    typer.echo(f"\n{text}\n")


def shade(text: str, surprise: list[float]) -> None:
    """The text on the terminal, darker where the memory is more surprised."""
    from rich.console import Console
    from rich.text import Text

    shades = ["on #fff7d6", "on #fee08b", "on #fdae61", "on #f46d43", "on #d73027"]
    ranked = sorted(surprise)
    line = Text()
    for letter, value in zip(text, surprise, strict=True):
        share = ranked.index(value) / len(ranked)
        # Most bytes surprise a little: the darkest fifth is the last twentieth.
        level = sum(share >= edge for edge in (0.5, 0.75, 0.88, 0.95))
        line.append(letter, style=f"#222222 {shades[level]}")
    Console().print(line)
