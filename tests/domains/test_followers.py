"""TensorBoard and Weights & Biases follow the log: all of it, once, and only where they are asked for."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_language import CPU, KilledError, kill_at, rows_of, tiny_config, write_documents

from titans_domains import targets
from titans_domains.followers import check_loggers, figures, logged
from titans_domains.language import DOMAIN
from titans_domains.runs import resume_run, train_run

# Older versions read settings in ways that newer dependencies warn of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run_and_resume(folder: Path, logger: str, *first: str) -> Path:
    """A run whose log is two steps ahead of its checkpoint when it is killed, and that goes on."""
    source = write_documents(folder / "text.jsonl")
    config = tiny_config(
        source, "train.valid_every=3", "train.sample_every=3", "train.checkpoint_every=3"
    )
    run = folder / "run"
    with pytest.raises(KilledError):
        train_run(DOMAIN, config, run, device=CPU, show=kill_at(5), loggers=first)
    resume_run(DOMAIN, run, device=CPU, loggers=[logger])
    return run


def wanted(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of the log."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in logged(run):
        for name, value in figures(row).items():
            found.setdefault(name, []).append((row["step"], value))
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["valid/bits_per_byte"]] == [3, 6]
    return found


def test_the_rows_of_the_log_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,valid_x,loss\n1,,3.5\n2,7,2.5\n")
    assert list(logged(tmp_path)) == [
        {"step": 1, "loss": 3.5},
        {"step": 2, "valid_x": 7, "loss": 2.5},
    ]
    row = {"step": 2, "valid_x": 7, "loss": 2.5, "sample": "text"}
    assert figures(row) == {"valid/x": 7, "train/loss": 2.5}


@pytest.mark.parametrize("before", [["tensorboard"], []], ids=["from the start", "only later"])
def test_tensorboard_has_every_step_once(tmp_path: Path, before: list[str]) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_and_resume(tmp_path, "tensorboard", *before)
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    read.Reload()
    curves = {
        name: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }
    assert curves == wanted(run)
    steps = [event.step for event in read.Tensors("sample/text_summary")]
    assert steps == ([3, 6] if before else [6])
    config = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"steps": 6' in config


def records(log: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB's form: blocks of 32 KiB, in which a record may be in parts."""
    record, at = b"", 7  # after the file's own header
    while at + 7 <= len(log):
        length, kind = struct.unpack_from("<HB", log, at + 4)
        if kind:
            record += log[at + 7 : at + 7 + length]
            if kind in (1, 4):  # whole, or the last part
                yield record
                record = b""
        at += 7 + length
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15


@pytest.mark.parametrize("before", [["wandb"], []], ids=["from the start", "only later"])
def test_wandb_offline_has_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_and_resume(tmp_path, "wandb", *before)
    (log,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    curves: dict[str, list[tuple[int, float]]] = {}
    samples = []
    for data in records(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
        for name, value in items.items():
            if "/" in name:
                curves.setdefault(name, []).append((items["_step"], value))
            elif name == "sample":
                samples.append(items["_step"])
    assert curves == wanted(run)
    assert samples == [6]
    assert json.loads((run / "wandb.json").read_text())["id"] in log.name


class Service:
    """A stand-in for wandb that has a server: what it was given, over several processes' lives."""

    def __init__(self, offline: bool = False) -> None:
        self.offline, self.step = offline, 0
        self.opened: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished: list[int] = []
        module = ModuleType("wandb")
        module.__dict__.update(
            init=self.init, Settings=lambda **given: given, errors=SimpleNamespace(Error=OSError)
        )
        self.module = module

    def init(self, **given: Any) -> Any:
        self.opened.append(given)
        # Of a run that goes on, the server says which step comes next.
        self.step = self.rows[-1][0] + 1 if self.rows else 0
        return self

    def log(self, row: dict[str, float], *, step: int) -> None:
        assert step >= self.step
        self.step = step
        self.rows.append((step, row))

    def finish(self, *, exit_code: int) -> None:
        self.finished.append(exit_code)


def test_wandb_online_is_sent_what_it_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service.module)
    monkeypatch.setattr(targets, "find_spec", lambda name: name)
    run = run_and_resume(tmp_path, "wandb", "wandb")
    assert [step for step, _ in service.rows] == [1, 2, 3, 4, 5, 6]
    first, second = service.opened
    assert first["id"] == second["id"] == json.loads((run / "wandb.json").read_text())["id"]
    assert (first["resume"], first["name"], first["dir"]) == ("allow", "run", str(run))
    assert first["config"] == json.loads((run / "config.json").read_text())
    assert service.finished == [1, 0]
    losses = [row["train/loss"] for _, row in service.rows]
    assert losses == [float(row["loss"]) for row in rows_of(run)]


def test_what_wandb_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()

    def refuse(**given: Any) -> Any:
        raise OSError("no key")

    service.module.__dict__["init"] = refuse
    monkeypatch.setitem(sys.modules, "wandb", service.module)
    monkeypatch.setattr(targets, "find_spec", lambda name: name)
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    with pytest.raises(
        ValueError, match=r"does not take the run \(no key\): set WANDB_MODE=offline"
    ):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU, loggers=["wandb"])


def test_a_logger_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    with pytest.raises(
        ValueError, match=r"--log wandb needs wandb: pip install 'titans-toolkit\[wandb\]'"
    ):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU, loggers=["wandb"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--log must be tensorboard or wandb: got 'paper'"):
        check_loggers(["paper"])


def test_neither_is_imported_where_it_is_not_asked_for(tmp_path: Path) -> None:
    """Both are there, and would end the process."""
    for name in ("wandb", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import titans_domains.followers as f\n"
        "f.check_loggers(['wandb', 'tensorboard'])\n"
        "print([name for name in ('wandb', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
