"""Several processes train what one does, go on with what others began, and end together."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import processes_with
from tiny_language import CPU, DOCUMENTS, SETTINGS, rows_of, tiny_config, write_documents
from trained_together import LANGUAGE, job, run_together, start
from typer.main import get_command

from titans_cli import scale
from titans_cli.app import app
from titans_core.files import load_tensors
from titans_domains import launch, ranks
from titans_domains.checkpoints import TENSORS, WEIGHTS, latest, load_checkpoint
from titans_domains.language import DOMAIN
from titans_domains.language.streams import Batch
from titans_domains.language.task import LanguageTask
from titans_domains.launch import environments
from titans_domains.rows import Share, in_order, row_counts, take
from titans_domains.runs import resume_run, train_run

RAGGED = [text[: 17 + 29 * i % 211] for i, text in enumerate(DOCUMENTS * 4)]
"""Documents that end anywhere in a sequence, so that processes count different numbers of tokens."""
BATCHES = {
    "whole": ("train.batch_size=6",),
    "in parts": ("train.batch_size=2", "train.accumulate=3"),
    "mac": ("train.batch_size=6", "model.mixer=mac"),
    "mag": ("train.batch_size=6", "model.mixer=mag"),
    "mag in parts": ("train.batch_size=2", "train.accumulate=3", "model.mixer=mag"),
    "mac in parts": ("train.batch_size=2", "train.accumulate=3", "model.mixer=mac"),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rows": (
        job("rows", "train.batch_size=3"),
        "train.batch_size must be a multiple of the 2 processes that share it: got 3.",
    ),
    "settings": (
        job("settings", mine={"settings": {"1": ["train.lr=0.5"]}}),
        "All processes must train the same: config.train.lr is 0.5 in process 1, and 0.004 in process 0.",
    ),
    "data": (
        job("data", mine={"source": {"1": "other/text.jsonl"}}),
        "All processes must train the same: config.data.source is ",
    ),
    "no data": (
        job("no data", mine={"source": {"1": "absent.jsonl"}}),
        "Process 1 of 2: There is no file or folder",
    ),
    "time": (
        job("time", "model.mixer=attention", sequence_ranks=2),
        "--sequence-ranks 2 needs a mixer of layers whose state does not grow: got attention.",
    ),
    "too little time": (
        job("too little time", "data.seq_len=16", sequence_ranks=2),
        "data.seq_len must be at least 2 times 16 tokens",
    ),
    "lines": (
        job("lines", sequence_ranks=3),
        "--sequence-ranks must divide the number of processes, 2: got 3.",
    ),
    "sharded time": (
        job("sharded time", strategy="sharded", sequence_ranks=2),
        "--strategy sharded does not share time",
    ),
    "strategy": (job("strategy", strategy="fsdp"), "--strategy must be one of ddp, sharded: got 'fsdp'."),
    "growth": (
        job("growth", "train.lr=1e15", "train.max_skipped=0", "train.checkpoint_every=1"),
        "is not finite, and nothing of it was saved",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of all jobs for two, and one process of the same."""
    folder = tmp_path_factory.mktemp("together")
    write_documents(folder / "text.jsonl", RAGGED)
    (folder / "other").mkdir()
    write_documents(folder / "other/text.jsonl", DOCUMENTS)
    jobs = [
        job("ddp", *BATCHES["whole"]),
        job("sharded", *BATCHES["mac in parts"], strategy="sharded"),
        job("over time", *BATCHES["mag in parts"], sequence_ranks=2),
        job("begun over time", *BATCHES["whole"], sequence_ranks=2, stop=7),
        job("begun", *BATCHES["whole"], stop=7),
        job("begun sharded", *BATCHES["mac"], stop=7, strategy="sharded"),
        *(work for work, _ in REFUSED.values()),
    ]
    run_together(folder, jobs, 2)
    for name in ("whole", "mac", "mag"):
        config = tiny_config(folder / "text.jsonl", *LANGUAGE, *BATCHES[name])
        train_run(DOMAIN, config, folder / name, device=CPU)
    return folder


def notes(folder: Path, name: str, processes: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.{i}.json").read_text()) for i in range(processes)]


def assert_trained_alike(ours: Path, theirs: Path) -> None:
    """Losses, weights, optimiser, carried states and cursors, to what float64 leaves of another order."""
    for a, b in zip(rows_of(ours), rows_of(theirs), strict=True):
        for name in a:
            assert float(a[name] or 0) == pytest.approx(float(b[name] or 0), rel=0, abs=1e-9), name
    first, second = latest(ours / "checkpoints"), latest(theirs / "checkpoints")
    assert first.name == second.name == "step-0000020"
    for file in (WEIGHTS, TENSORS):
        one, other = load_tensors(first / file), load_tensors(second / file)
        assert one.keys() == other.keys()
        for name, x in one.items():
            y = other[name]
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            # Where the next random numbers come from is another matter.
            assert x.dtype == torch.uint8 or torch.allclose(x, y, rtol=0, atol=1e-9), (file, name)
    assert load_checkpoint(first)["cursor"] == load_checkpoint(second)["cursor"]


def test_two_processes_train_what_one_does(folder: Path) -> None:
    assert_trained_alike(folder / "ddp", folder / "whole")
    losses = [float(row["loss"]) for row in rows_of(folder / "whole")]
    assert losses[-1] < losses[0] - 1


def test_sharded_processes_train_what_one_does(folder: Path) -> None:
    """Over two processes and three parts of every step."""
    assert_trained_alike(folder / "sharded", folder / "mac")


def test_processes_that_share_the_time_of_rows_train_what_one_does(folder: Path) -> None:
    """Each reads half of every sequence, with documents that begin and end in either half."""
    assert_trained_alike(folder / "over time", folder / "mag")


def test_the_clip_of_these_runs_bites(folder: Path) -> None:
    """Had each process clipped by its own norm, they would not have been alike."""
    config = tiny_config(folder / "text.jsonl", *LANGUAGE, *BATCHES["whole"], "train.clip=0")
    train_run(DOMAIN, config, folder / "unclipped", device=CPU)
    first, second = (
        load_tensors(latest(folder / name / "checkpoints") / WEIGHTS)
        for name in ("whole", "unclipped")
    )
    assert max((first[name] - second[name]).abs().max() for name in first) > 1e-4


def test_a_process_that_is_asked_to_end_ends_all_after_their_checkpoint(folder: Path) -> None:
    for name in ("begun", "begun sharded", "begun over time"):
        assert [note["code"] for note in notes(folder, name, 2)] == [143, 143]
        assert latest(folder / name / "checkpoints").name == "step-0000007"


@pytest.mark.parametrize(
    ("begun", "whole"), [("begun", "whole"), ("begun sharded", "mac"), ("begun over time", "whole")]
)
def test_one_process_goes_on_with_what_two_began(folder: Path, begun: str, whole: str) -> None:
    shutil.copytree(folder / begun, folder / f"{begun} on")
    resume_run(DOMAIN, folder / f"{begun} on", device=CPU)
    assert_trained_alike(folder / f"{begun} on", folder / whole)


def test_three_processes_go_on_with_what_two_began(folder: Path) -> None:
    shutil.copytree(folder / "begun", folder / "begun by three")
    run_together(folder, [job("begun by three", resume=True, strategy="sharded")], 3)
    assert_trained_alike(folder / "begun by three", folder / "whole")
    # Every row of every batch was read once, by one of them.
    config = tiny_config(folder / "text.jsonl", *LANGUAGE, *BATCHES["whole"])
    batches = LanguageTask(config, CPU).batches(None)
    rows = [[next(batches)[0].inputs.tolist() for _ in range(20)]]
    two, three = notes(folder, "begun", 2), notes(folder, "begun by three", 3)
    read = [
        [row for note in them for row in note["rows"][step * size : (step + 1) * size]]
        for them, size, steps in ((two, 3, 7), (three, 2, 13))
        for step in range(steps)
    ]
    assert [read] == rows
    # What they draw, for dropout say, differs, from step to step too.
    drawn = [x for note in (*two, *three) for x in note["drawn"]]
    assert len(set(drawn)) == len(drawn) == 7 * 2 + 13 * 3


def test_what_one_of_them_finds_ends_all_and_is_said_once(folder: Path) -> None:
    for name, (_, sentence) in REFUSED.items():
        first, second = notes(folder, name, 2)
        assert sentence in first["error"], name
        assert second.get("code") == 2, (name, second)
        assert "error" not in second
        assert name == "growth" or not (folder / name).exists()


def until(condition: Any, process: Any) -> None:
    for _ in range(1200):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("it took more than a minute")


def test_a_killed_process_ends_the_command_and_leaves_its_checkpoint(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "text.jsonl", RAGGED)
    settings = [*SETTINGS, "train.steps=100000", "train.checkpoint_every=2"]
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["-m", "titans_cli.app", "language", "train", "--devices", "2", "--out", "run"]
    started = start(*command, "--data", source.name, *options, cwd=tmp_path)
    saved = tmp_path / "run/checkpoints/step-0000002"
    until(saved.exists, started)
    (victim,) = children_of(started.pid, {"LOCAL_RANK": "1"})
    os.kill(victim, signal.SIGKILL)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 2, err
    assert out == ""
    words = (
        "error: Process 1 of 2 was ended by SIGKILL, and the training with it: go on with --resume"
    )
    assert words in err
    assert err.count("go on") == 1
    assert "Traceback" not in err
    assert not children_of(started.pid, {})
    load_checkpoint(latest(tmp_path / "run/checkpoints"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--sequence-ranks", "3"),
            "--sequence-ranks must divide the number of processes, 2: got 3.",
        ),
        (("--set", "train.batch_size=3"), "train.batch_size must be a multiple of the 2 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_a_process_is_begun(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], words: str
) -> None:
    def begun(*_: Any) -> int:
        raise AssertionError("a process was begun")

    monkeypatch.setattr(scale, "launch", begun)
    command = ["language", "train", "--devices", "2", "--out", "absent", *options]
    with pytest.raises(ValueError, match=words):
        get_command(app).main(command, standalone_mode=False)


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_training_that_is_stopped_before_its_first_step_says_so(
    tmp_path: Path, devices: str
) -> None:
    source = tmp_path / "text.jsonl"
    # Whoever opens it waits until there is something to read.
    os.mkfifo(source)
    command = ["language", "train", "--devices", devices, "--out", "run", "--data", source.name]
    started = start("-m", "titans_cli.app", *command, cwd=tmp_path)
    readers = {"LOCAL_RANK": "1"} if devices == "2" else None
    until(lambda: is_torch_loaded(started.pid, readers), started)
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (143, "")
    assert err == "stopped before the first step; nothing was changed\n"
    assert not (tmp_path / "run").exists()


def is_torch_loaded(parent: int, wanted: dict[str, str] | None) -> bool:
    found = [parent] if wanted is None else children_of(parent, wanted)
    return any("libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text() for pid in found)


def test_what_a_stopped_start_has_left_is_said(tmp_path: Path) -> None:
    begun = scale.Start()
    assert begun.sentence() == "stopped before the first step; nothing was changed"
    begun.watch(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    line = f"stopped before the first step; nothing was trained in {tmp_path}"
    assert begun.sentence() == line
    (tmp_path / "checkpoints").mkdir()
    assert begun.sentence() is None


def children_of(parent: int, wanted: dict[str, str]) -> list[int]:
    """The processes that a launcher began, which say so in their environment."""
    return processes_with({launch.LAUNCHER: str(parent), **wanted})


def test_launched_processes_know_who_they_are_and_end_alike(tmp_path: Path) -> None:
    says = "import os, pathlib, sys; r = os.environ['RANK']; pathlib.Path(r).write_text("
    says += "' '.join(os.environ[n] for n in ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')));"
    code = f"import os; os.chdir({str(tmp_path)!r}); {says} sys.exit(int(sys.argv[1]) * int(r))"
    assert launch.launch([sys.executable, "-c", code, "0"], 2) == 0
    zero, one = ((tmp_path / name).read_text().split() for name in "01")
    assert (zero[0], one[0], zero[1]) == ("0", "1", "2")
    assert zero[2] == one[2]
    assert launch.launch([sys.executable, "-c", code, "3"], 2) == 3


def test_a_process_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SHORT", 0.1)
    code = (
        "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '0' else time.sleep(60)"
    )
    with pytest.raises(ConnectionError, match="Process 0 of 2 was ended by SIGKILL"):
        launch.launch([sys.executable, "-c", code], 2)


def test_after_a_refusal_of_the_first_process_no_other_end_is_spoken_of() -> None:
    code = (
        "import os, time; r = os.environ['RANK']; os.abort() if r == '1' else time.sleep(0.5);"
        "os._exit(2)"
    )
    assert launch.launch([sys.executable, "-c", code], 2) == 2


def test_who_lost_another_is_not_the_cause() -> None:
    """In whichever order they end."""
    code = f"import os; os._exit({launch.LOST}) if os.environ['RANK'] == '0' else os.kill(os.getpid(), 9)"
    with pytest.raises(ConnectionError, match="Process 1 of 2 was ended by SIGKILL"):
        launch.launch([sys.executable, "-c", code], 2)
    with pytest.raises(ConnectionError, match="Another process of this training has ended"):
        launch.launch([sys.executable, "-c", f"raise SystemExit({launch.LOST})"], 2)


def test_a_lost_process_is_silent_where_its_launcher_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose() -> None:
        with ranks.answered():
            raise torch.distributed.DistNetworkError("Connection reset by peer")

    monkeypatch.delenv(launch.LAUNCHER, raising=False)
    with pytest.raises(ConnectionError, match="Another process of this training has ended"):
        lose()
    monkeypatch.setenv(launch.LAUNCHER, "1")
    with pytest.raises(SystemExit) as end:
        lose()
    assert end.value.code == launch.LOST


@pytest.mark.parametrize(
    ("error", "closed"), [(ranks.shared(ValueError("no")), 1), (ValueError("no"), 0)]
)
def test_processes_part_where_all_have_refused(
    monkeypatch: pytest.MonkeyPatch, error: ValueError, closed: int
) -> None:
    for name, value in environments(2, 1)[1].items():
        monkeypatch.setenv(name, value)
    parted: list[int] = []
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: parted.append(1))
    with pytest.raises(ValueError, match="no"), ranks.meeting(CPU):
        raise error
    assert len(parted) == closed


def test_machines_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--nodes 2 needs MASTER_ADDR, MASTER_PORT, NODE_RANK in"):
        environments(2, 2)
    for name, value in (("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500"), ("NODE_RANK", "1")):
        monkeypatch.setenv(name, value)
    third, fourth = environments(2, 2)
    assert (third["RANK"], fourth["RANK"], fourth["LOCAL_RANK"]) == ("2", "3", "1")
    assert (third["WORLD_SIZE"], third["MASTER_ADDR"], third["MASTER_PORT"]) == (
        "4", "10.0.0.1", "29500",
    )  # fmt: skip
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(ValueError, match="NODE_RANK must be from 0 to 1: got 2"):
        environments(2, 2)


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environments(2, 1)[1].items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
def test_torchruns_processes_are_not_begun_again() -> None:
    launch.check_started(1, 1)
    launch.check_started(2, 1)
    for devices, nodes in ((3, 1), (2, 2)):
        with pytest.raises(ValueError, match="is not what was begun, 2 processes on each of 1"):
            launch.check_started(devices, nodes)


@pytest.mark.usefixtures("second_of_two")
def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match="--devices 2 is more than there is: 1 GPUs are here"),
        ranks.meeting(torch.device("cuda")),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match="--device cuda:1 is a single GPU"),
        ranks.meeting(torch.device("cuda:1")),
    ):
        pass


def test_rows_are_shared_out_without_gap_or_overlap() -> None:
    rows = torch.arange(12)
    batch = Batch(rows[:, None], rows[:, None] + 1, None, None)
    shares = [Share(2, rank, 3) for rank in range(3)]
    everyones = [[(part.inputs,) for part in share.of(batch)] for share in shares]
    assert in_order(everyones)[0].flatten().tolist() == rows.tolist()
    assert [part[0].flatten().tolist() for part in everyones[1]] == [[2, 3], [8, 9]]
    states = [share.states_of((rows, None)) for share in shares]
    assert states[1][1][0].tolist() == [8, 9]
    assert Share(1, 0, 1).of("anything") == ["anything"]
    with pytest.raises(ValueError, match="a multiple of 6: got 5"):
        shares[0].of(take(batch, slice(0, 5)))
    with pytest.raises(ValueError, match="a multiple of 6: got none"):
        shares[0].of(7)
    table = {"a": rows, "b": [rows, None], "name": "x"}
    assert row_counts(table) == {12}
    assert take(table, slice(3, 4)) == {"a": rows[3:4], "b": [rows[3:4], None], "name": "x"}


def test_an_environment_that_is_none_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "abc")
    with pytest.raises(
        ValueError, match="WORLD_SIZE in the environment must be a whole number: got 'abc'"
    ):
        launch.started()
