"""The command in this process, and a small run for it to work on."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from console import TINY, Titans, caller
from tiny_language import write_documents


@pytest.fixture
def titans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Titans:
    """Calls `titans`."""
    monkeypatch.delenv("TITANS_DEBUG", raising=False)
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run, made by the script itself."""
    folder = tmp_path_factory.mktemp("trained")
    write_documents(folder / "text.jsonl")
    script = Path(sysconfig.get_path("scripts"), "titans")
    done = subprocess.run(
        [str(script), "language", "train", "--data", "text.jsonl", *TINY, "--out", "run"],
        cwd=folder,
        env={**os.environ, "TITANS_DEBUG": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them as the working folder."""
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)
    config = folder / "run/config.json"
    config.write_text(config.read_text().replace(str(trained), str(folder)))
    monkeypatch.chdir(folder)
    return folder
