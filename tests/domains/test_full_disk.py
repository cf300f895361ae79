"""A run on a disk that fills up ends with one sentence, leaves nothing half written, and goes on later."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_language import CPU, assert_same_runs, tiny_config, write_documents

from titans_domains.checkpoints import REST, TENSORS, WEIGHTS, complete, load_checkpoint
from titans_domains.language import DOMAIN, LanguageConfig
from titans_domains.log import METRICS, SAMPLES
from titans_domains.runs import is_run, resume_run, train_run

SETTINGS = (
    "train.steps=4",
    "train.checkpoint_every=1",
    "train.valid_every=1",
    "train.sample_every=2",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    write_documents(folder / "text.jsonl")
    train_run(DOMAIN, config(folder), folder / "run", device=CPU)
    return folder


def config(folder: Path) -> LanguageConfig:
    return tiny_config(folder / "text.jsonl", *SETTINGS)


def full_at(name: str, count: int) -> Callable[[int], None]:
    """`os.fsync` of a disk that is full when the `count`th file of this name comes to it."""
    seen = 0
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal seen
        if name in Path(os.readlink(f"/proc/self/fd/{descriptor}")).name:
            seen += 1
            if seen >= count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    return fsync


def assert_goes_on(straight: Path, out: Path) -> None:
    """Nothing half written is there, what is there can be read, and the run ends as it would have."""
    assert not list(out.rglob("*.tmp"))
    for checkpoint in complete(out / "checkpoints"):
        load_checkpoint(checkpoint)
    resume_run(DOMAIN, out, device=CPU)
    assert_same_runs(straight / "run", out)
    assert (straight / "run" / SAMPLES).read_bytes() == (out / SAMPLES).read_bytes()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files have no names here")
@pytest.mark.parametrize(
    ("name", "count"),
    [(METRICS, 1), (WEIGHTS, 3), (TENSORS, 1), (REST, 3), ("best.json", 1), ("best.json", 3)],
)
def test_every_file_of_a_run_may_find_no_room(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full_at(name, count))
    with pytest.raises(
        OSError, match="There is no room left on the disk for .*run: make some, and"
    ):
        train_run(DOMAIN, config(straight), out, device=CPU)
    monkeypatch.undo()
    # The best is named after its checkpoint is there.
    assert len(complete(out / "checkpoints")) == count - (name != "best.json")
    assert_goes_on(straight, out)


def test_a_run_that_finds_no_room_for_its_configuration_leaves_nothing(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full_at("config.json", 1))
    with pytest.raises(OSError, match="No space left on device"):
        train_run(DOMAIN, config(straight), out, device=CPU)
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", [METRICS, SAMPLES])
def test_a_log_that_finds_no_room(straight: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    talked: list[str] = []

    def show(step: int, row: object) -> None:
        # The third row, and the second sample, are written to where nothing is ever kept.
        if step == 2:
            (out / name).rename(out / "kept")
            (out / name).symlink_to("/dev/full")

    with pytest.raises(OSError, match="There is no room left on the disk for") as caught:
        train_run(DOMAIN, config(straight), out, device=CPU, show=show, talk=talked.append)
    assert str(caught.value).count("\n") == 0
    (out / "kept").replace(out / name)
    assert_goes_on(straight, out)


def test_what_was_killed_before_it_had_a_configuration_is_replaced(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in (".begun.tmp", "tokenizer.json", ".config.json.77.tmp"):
        (out / name).write_text("half")
    assert not is_run(out)
    train_run(DOMAIN, config(straight), out, device=CPU)
    assert_same_runs(straight / "run", out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in (straight / "run").iterdir()
    )
    # A folder of somebody else's without a configuration stays.
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a run of titans"):
        train_run(DOMAIN, config(straight), other, device=CPU, force=True)
    assert (other / "tokenizer.json").read_text() == "mine"
