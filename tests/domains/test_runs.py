"""Runs: nothing is written or replaced before all was accepted, and a run goes on only as itself."""

import json
from pathlib import Path

import pytest
import torch
from tiny_language import CPU, DOCUMENTS, tiny_config, write_documents

from titans_domains.config import to_dict
from titans_domains.language import DOMAIN
from titans_domains.runs import choose_device, load_run_table, resume_run, train_run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "text.jsonl")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_holds_its_whole_configuration(tmp_path: Path, source: Path) -> None:
    config = tiny_config(source, "seed=3", "train.steps=1")
    said: list[str] = []
    train_run(DOMAIN, config, tmp_path / "deep/run", device=CPU, talk=said.append)
    table = json.loads((tmp_path / "deep/run/config.json").read_text())
    assert table["config"] == to_dict(config)
    assert table["schema"] == 1
    loaded, _ = load_run_table(tmp_path / "deep/run", DOMAIN)
    assert loaded == config
    assert len(said) == 1
    assert "lmm" in said[0]
    assert table["data_sha256"][:16] in said[0]


def test_a_run_goes_on_only_with_its_own_settings(tmp_path: Path, source: Path) -> None:
    config = tiny_config(source)
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    before = files(tmp_path)
    for change, sentence in (
        ("train.steps=7", "differs in train.steps: 7 against 6"),
        ("model.dim=32", "differs in model.dim: 32 against 16"),
        ("seed=1", "differs in seed: 1 against 0"),
        ("model.mixer=attention", "differs in model.mixer: 'attention' against 'lmm'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            resume_run(DOMAIN, tmp_path / "run", asked=tiny_config(source, change), device=CPU)
    assert files(tmp_path) == before


def test_a_run_goes_on_only_with_its_own_data(tmp_path: Path, source: Path) -> None:
    config = tiny_config(source)
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    write_documents(source, [*DOCUMENTS, "one more"])
    before = files(tmp_path / "run")
    with pytest.raises(ValueError, match="The data is not what it was when .* began: its SHA-256"):
        resume_run(DOMAIN, tmp_path / "run", asked=config, device=CPU)
    source.unlink()
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        resume_run(DOMAIN, tmp_path / "run", device=CPU)
    assert files(tmp_path / "run") == before
    write_documents(source)
    resume_run(DOMAIN, tmp_path / "run", device=CPU)


def test_nothing_is_replaced_without_force(tmp_path: Path, source: Path) -> None:
    config = tiny_config(source, "train.steps=2")
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    (tmp_path / "run/note.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="is there already: choose another --out"):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    assert files(tmp_path) == before
    train_run(DOMAIN, config, tmp_path / "run", device=CPU, force=True)
    assert not (tmp_path / "run/note.txt").exists()


def test_force_replaces_nothing_but_runs(tmp_path: Path, source: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    before = files(tmp_path)
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="is not a run of titans, so --force does not"):
            train_run(DOMAIN, tiny_config(source), tmp_path / name, device=CPU, force=True)
    assert files(tmp_path) == before


def test_force_keeps_the_old_run_where_the_new_one_is_refused(tmp_path: Path, source: Path) -> None:
    train_run(DOMAIN, tiny_config(source, "train.steps=2"), tmp_path / "run", device=CPU)
    before = files(tmp_path)
    for bad in (tiny_config(tmp_path / "missing"), tiny_config(source, "model.memory.num_heads=3")):
        with pytest.raises((ValueError, OSError)):
            train_run(DOMAIN, bad, tmp_path / "run", device=CPU, force=True)
    assert files(tmp_path) == before


def test_an_empty_folder_may_be_filled(tmp_path: Path, source: Path) -> None:
    (tmp_path / "run").mkdir()
    train_run(DOMAIN, tiny_config(source, "train.steps=1"), tmp_path / "run", device=CPU)
    assert (tmp_path / "run/config.json").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        ["data.seq_len=33"],
        ["data.seq_len=4096"],
        ["data.tokenizer=bpe", "data.vocab_size=100"],
        ["data.tokenizer=missing.json"],
        ["model.dim=15"],
        ["train.carry=true", "model.mixer=attention"],
    ],
    ids=lambda s: s[0],
)
def test_what_cannot_be_trained_leaves_no_folder(
    tmp_path: Path, source: Path, settings: list[str]
) -> None:
    with pytest.raises((ValueError, OSError)):
        train_run(DOMAIN, tiny_config(source, *settings), tmp_path / "new/run", device=CPU)
    assert [p.name for p in tmp_path.iterdir()] == ["text.jsonl"]


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "mps", "", "cpu:x", "cuda:-1"):
        with pytest.raises(ValueError, match="--device must be auto, cpu, cuda or cuda:N: got"):
            choose_device(name)
    with pytest.raises(ValueError, match="--device cuda:99 is not here: there are"):
        choose_device("cuda:99")
