"""The log of a run: figures in `metrics.csv`, samples in `samples.txt`."""

import csv
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from titans_core.files import write_whole
from titans_domains.followers import Followers
from titans_domains.ranks import is_first
from titans_domains.train_config import TrainConfig

METRICS, SAMPLES = "metrics.csv", "samples.txt"


class Log(Callback):
    """Writes the log, and gives all of it to what follows it and to `show` for the terminal."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        show: Callable[[int, dict[str, Any]], None],
        talk: Callable[[str], None],
        followers: Followers,
    ) -> None:
        self.out, self.config, self.show, self.talk = out, config, show, talk
        self.followers = followers
        self.since = time.perf_counter()
        self.columns: list[str] = []

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        # A checkpoint that cannot be read has been refused by now.
        self.talk(module.task.describe())

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if is_first():
            self.trim(trainer.global_step)
            self.followers.begin(trainer.global_step)
        self.since = time.perf_counter()

    def trim(self, step: int) -> None:
        """Drops what will be written again."""
        self.columns = trim_metrics(self.out / METRICS, step)
        trim_samples(self.out / SAMPLES, step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % self.config.accumulate:
            return
        step, config = trainer.global_step, self.config
        now = time.perf_counter()
        row: dict[str, Any] = {
            "step": step,
            **module.step.log,
            "lr": config.lr * config.rate(step - 1),
            "tokens_per_s": round(module.step.tokens / (now - self.since)),
        }
        last = step == config.steps
        if module.skipped:
            row["skipped"] = module.skipped
            if module.odd:
                self.talk(
                    f"step {step} was left out: its {module.odd} is not finite "
                    f"({module.skipped} of at most {config.max_skipped})"
                )
        module.valid = {}
        if config.valid_every and (step % config.valid_every == 0 or last):
            module.valid = module.validate_task()
            row |= {f"valid_{name}": value for name, value in module.valid.items()}
        if config.sample_every and (step % config.sample_every == 0 or last):
            row["sample"] = module.sample_task()
        if is_first():
            self.write(row)
            self.followers.write(row)
            self.show(step, row)
        self.since = time.perf_counter()

    def write(self, row: dict[str, Any]) -> None:
        sample = row.get("sample")
        if sample:
            with (self.out / SAMPLES).open("a", encoding="utf-8", newline="") as file:
                file.write(f"--- step {row['step']}\n{sample}\n")
        row = {name: value for name, value in row.items() if name != "sample"}
        path = self.out / METRICS
        wider = [*self.columns, *(name for name in row if name not in self.columns)]
        if wider != self.columns:
            # A figure that comes for the first time needs a new column, and so a new file.
            rows = [old + [""] * (len(wider) - len(old)) for old in read_table(path)[1:]]
            write_table(path, [wider, *rows])
            self.columns = wider
        with path.open("a", newline="") as file:
            csv.DictWriter(file, wider).writerow(row)


def read_table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, without its blank lines."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return [row for row in csv.reader(file) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


def write_table(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(path, text.getvalue())


def trim_metrics(path: Path, step: int) -> list[str]:
    """Drops the rows that a resumed run will write again; gives the names of the columns."""
    header, *rows = read_table(path) or [[]]
    if not header:
        return []
    # What was being written when the run was killed will be written again.
    if rows and len(rows[-1]) < len(header):
        rows.pop()
    for row in rows:
        if len(row) != len(header) or not row[0].isdecimal():
            raise ValueError(
                f"{path} is damaged: {','.join(row)!r} is no row of {','.join(header)}. Mend it or "
                "take it away."
            )
    write_table(path, [header, *(row for row in rows if int(row[0]) <= step)])
    return header


def trim_samples(path: Path, step: int) -> None:
    """Drops the samples that a resumed run will write again."""
    if not path.exists():
        return
    text = path.read_bytes()
    for title in re.finditer(rb"^--- step (\d+)\n", text, re.MULTILINE):
        if int(title[1]) > step:
            write_whole(path, text[: title.start()])
            return
