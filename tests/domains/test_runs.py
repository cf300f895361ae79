"""Runs: nothing is written or replaced before all was accepted, and a run goes on only as itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_language import CPU, DOCUMENTS, tiny_config, write_documents

from titans_domains.config import to_dict
from titans_domains.language import DOMAIN, corpus, streams
from titans_domains.language.task import texts_for
from titans_domains.language.tokenizers import BPETokenizer
from titans_domains.runs import choose_device, commit_of, load_run_table, resume_run, train_run


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


def test_a_run_says_what_it_was_made_with(tmp_path: Path, source: Path) -> None:
    train_run(DOMAIN, tiny_config(source), tmp_path / "run", device=CPU)
    made = json.loads((tmp_path / "run/config.json").read_text())["made_with"]
    assert torch.__version__.startswith(made["torch"].partition("+")[0])
    assert {"python", "commit", "device", "threads", "time"} <= made.keys()
    assert commit_of(tmp_path) is None


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


FOREIGN = {
    "Hugging Face": '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}',
    "with a schema": '{"schema": 1, "layers": 12}',
    "with a domain": '{"domain": "language"}',
    "list": "[1]",
    "cut": '{"schema": 1, "domain": "lang',
}


@pytest.mark.parametrize("config", FOREIGN.values(), ids=FOREIGN)
def test_force_replaces_no_model_of_another_program(
    tmp_path: Path, source: Path, config: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(config)
    (tmp_path / "model/model.safetensors").write_bytes(b"days of training")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="is not a run of titans, so --force does not"):
        train_run(DOMAIN, tiny_config(source), tmp_path / "model", device=CPU, force=True)
    assert files(tmp_path) == before


def test_force_replaces_a_run_of_another_version_and_domain(tmp_path: Path, source: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"schema": 99, "domain": "genomics"}')
    config = tiny_config(source, "train.steps=1")
    train_run(DOMAIN, config, tmp_path / "run", device=CPU, force=True)
    assert load_run_table(tmp_path / "run", DOMAIN)[0] == config


def test_a_run_can_be_read_and_go_on_from_any_folder(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BPETokenizer.train([b"some text"], 300).save(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = ("train.steps=1", "data.tokenizer=tokenizer.json")
    train_run(DOMAIN, tiny_config(source.name, *settings), tmp_path / "run", device=CPU)
    config, _ = load_run_table(tmp_path / "run", DOMAIN)
    assert (config.data.source, config.data.tokenizer) == (
        str(source), str(tmp_path / "tokenizer.json")
    )  # fmt: skip
    monkeypatch.chdir("elsewhere")
    asked = tiny_config("../text.jsonl", "train.steps=1", "data.tokenizer=../tokenizer.json")
    resume_run(DOMAIN, tmp_path / "run", asked=asked, device=CPU)
    assert texts_for(tmp_path / "run", config, None)[0]


def test_a_streamed_run_goes_on_with_its_own_tokenizer_and_opens_its_data_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def hub_documents(source: str, skip: int = 0) -> Iterator[bytes]:
        opened.append(skip)
        yield from [b"a text of the hub"] * (90 - skip)

    monkeypatch.setattr(corpus, "hub_documents", hub_documents)
    monkeypatch.setattr(streams, "hub_documents", hub_documents)
    BPETokenizer.train([b"some text"], 300).save(tmp_path)
    tokenizer = f"data.tokenizer={tmp_path / 'tokenizer.json'}"
    config = tiny_config("hf:some/set", tokenizer, "train.steps=4")
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000004")
    (tmp_path / "tokenizer.json").unlink()
    opened.clear()
    resume_run(DOMAIN, tmp_path / "run", device=CPU)
    assert len(opened) == 1


def test_a_streamed_data_set_is_refused_with_a_tokenizer_that_loses_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "hub_documents", lambda source: iter([b"Capital"]))
    BPETokenizer.train([b"some text"], 300).save(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    table["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    config = tiny_config("hf:some/set", f"data.tokenizer={tmp_path / 'tokenizer.json'}")
    with pytest.raises(ValueError, match="does not give every text back"):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


def test_names_that_are_no_paths_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bytes", "bpe", "embedded", "hf:some"):
        (tmp_path / name).write_text("a file of that name")
    for source in ("embedded", "hf:some", "missing.txt", ""):
        for tokenizer in ("bytes", "bpe", "missing.json", ""):
            config = tiny_config(source, f"data.tokenizer={tokenizer}")
            assert DOMAIN.absolute(config) == config


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
