"""What follows the log of a run as it is written: its report, TensorBoard, Weights & Biases.

The log is what is so: a follower is given each row once it is written, and of a run that goes on it is told
from which step. TensorBoard and Weights & Biases are optional packages, imported where one is asked for.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from titans_core.files import write_whole
from titans_domains.checkpoints import SCHEMA, read_json
from titans_domains.report import write_report
from titans_domains.report.read import METRICS, read_metrics
from titans_domains.runs import CONFIG
from titans_domains.targets import check_installed

TENSORBOARD, WANDB = "tensorboard", "wandb"


class Follower(Protocol):
    def begin(self, step: int) -> None:
        """The log ends with `step`, and goes on after it."""
        ...

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self, *, failed: bool) -> None:
        """Training is at its end, or was asked to end; `failed`: an error ends it."""
        ...


class Report:
    """`report.html`, written anew after each validation, and at the end."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def begin(self, step: int) -> None:
        pass

    def write(self, row: dict[str, Any]) -> None:
        if any(name.startswith("valid_") for name in row):
            write_report(self.out)

    def close(self, *, failed: bool) -> None:
        # What failed may be the disk, or the log itself: the page stays as the last validation left it.
        if not failed:
            write_report(self.out)


class TensorBoard:
    """Events in the folder `tensorboard`; of steps that come again the earlier ones are purged."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def begin(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.out / TENSORBOARD
        goes_on = folder.is_dir() and any(folder.iterdir())
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if goes_on else None)
        if not goes_on:
            config = json.dumps(read_json(self.out / CONFIG)["config"], indent=2)
            self.writer.add_text("config", f"```json\n{config}\n```", 0)
            for row in logged(self.out):
                self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        for name, value in figures(row).items():
            self.writer.add_scalar(name, value, row["step"])
        if row.get("sample"):
            # Indented by four, a text is shown as it is.
            lines = "\n".join(f"    {line}" for line in row["sample"].splitlines())
            self.writer.add_text("sample", lines, row["step"])

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, online or, with WANDB_MODE=offline, in the folder `wandb`.

    What the server has of the run is not sent again. Offline, where nobody says what there is, a run that
    goes on begins with all of its log, and takes the place of what was written before.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def begin(self, step: int) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "titans"), name=self.out.resolve().name,
                id=self._id(), resume="allow", dir=str(self.out),
                config=read_json(self.out / CONFIG), settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise ValueError(
                f"Weights & Biases does not take the run ({error}): set WANDB_MODE=offline to log into its "
                "folder, and go on with --resume."
            ) from error
        for row in logged(self.out):
            self.write(row)
        if self.run.offline:
            ours = Path(self.run.dir).parent
            for folder in ours.parent.glob(f"offline-run-*-{self.run.id}"):
                if folder != ours:
                    shutil.rmtree(folder)

    def _id(self) -> str:
        """The run's name at Weights & Biases, the same when it goes on."""
        path = self.out / f"{WANDB}.json"
        if not path.exists():
            table = {"schema": SCHEMA, "id": secrets.token_hex(4)}
            write_whole(path, json.dumps(table) + "\n")
        return str(read_json(path).get("id"))

    def write(self, row: dict[str, Any]) -> None:
        if row["step"] < self.run.step:
            return
        sample = {"sample": row["sample"]} if row.get("sample") else {}
        self.run.log(figures(row) | sample, step=row["step"])

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


LOGGERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    TENSORBOARD: TensorBoard,
    WANDB: WeightsAndBiases,
}


def check_loggers(names: Sequence[str]) -> None:
    """ValueError for one that there is not, or whose package is not installed; nothing is imported."""
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"--log must be {' or '.join(LOGGERS)}: got {name!r}.")
        check_installed(f"--log {name}", name, name)


def figures(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row, in groups: `train/loss`, `valid/loss`."""
    found = {}
    for name, value in row.items():
        if name not in ("step", "sample"):
            held_out = name.startswith("valid_")
            found[f"valid/{name.removeprefix('valid_')}" if held_out else f"train/{name}"] = value
    return found


def logged(out: Path) -> Iterator[dict[str, Any]]:
    """The rows that the log has, without samples."""
    rows: dict[int, dict[str, Any]] = {}
    for name, column in read_metrics(out / METRICS).items():
        for step, value in zip(column.steps, column.values, strict=True):
            rows.setdefault(step, {"step": step})[name] = value
    yield from (rows[step] for step in sorted(rows))


class Followers(AbstractContextManager["Followers"]):
    """The report and the named loggers of a run; what is no run has none. Closed however training ends."""

    def __init__(self, out: Path, names: Sequence[str] = ()) -> None:
        self.every: list[Follower] = []
        if (out / CONFIG).exists():
            self.every = [*(LOGGERS[name](out) for name in dict.fromkeys(names)), Report(out)]
        self.begun: list[Follower] = []

    def begin(self, step: int) -> None:
        for follower in self.every:
            follower.begin(step)
            self.begun.append(follower)

    def write(self, row: dict[str, Any]) -> None:
        for follower in self.begun:
            follower.write(row)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for follower in self.begun:
            follower.close(failed=isinstance(error, Exception))
