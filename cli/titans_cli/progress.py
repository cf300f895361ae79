"""What a command says while it works: a bar on a terminal, a line now and then elsewhere; on stderr."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from titans_domains.launch import is_first

LINES_EVERY_S = 10.0


class Bar:
    """Counts to `total`; `advance` and `show` may carry a text that stands behind the bar."""

    def __init__(self, title: str, total: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.title, self.total, self.done = title, total, 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not (sys.stderr.isatty() and is_first()),
        )
        self.task = self.progress.add_task(title, total=total, text="")
        self.said = time.monotonic()

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def advance(self, count: int = 1, text: str = "") -> None:
        self.at(self.done + count, text)

    def at(self, done: int, text: str = "") -> None:
        self.done = done
        self.progress.update(self.task, completed=done, text=text)
        finished = done >= self.total
        if self.progress.disable and (finished or time.monotonic() - self.said > LINES_EVERY_S):
            self.said = time.monotonic()
            self.console.print(f"{self.title} {done}/{self.total} {text}", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays above the bar."""
        self.progress.console.print(text, soft_wrap=True, markup=False)


def training_text(row: dict[str, Any]) -> str:
    """One line on a training step: loss, the domain's figures, tokens per second."""
    figures = [f"loss {row['loss']:.3f}"]
    if "bits_per_byte" in row:
        figures.append(f"{row['bits_per_byte']:.3f} bits/byte")
    return "  ".join([*figures, f"{row['tokens_per_s']:,} tokens/s"])


def show_training(bar: Bar) -> Any:
    """What `train_run` calls after each step."""

    def show(step: int, row: dict[str, Any]) -> None:
        bar.at(step, training_text(row))
        held_out = [
            f"{k.removeprefix('valid_')} {v:.3f}" for k, v in row.items() if k[:6] == "valid_"
        ]
        if held_out:
            bar.say(f"step {step}: held out: {', '.join(held_out).replace('_', ' ')}")
        if row.get("sample"):
            bar.say(f"step {step}: sample:\n{row['sample']}\n")

    return show
