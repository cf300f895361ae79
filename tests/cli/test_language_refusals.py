"""`titans language` refuses mistakes in one line, and leaves every file as it was."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from console import TINY, Done, Titans, assert_refused, contents
from tiny_language import DOCUMENTS, write_documents


def write_bad_texts(here: Path) -> None:
    (here / "empty.txt").write_bytes(b"")
    (here / "binary.txt").write_bytes(bytes(range(256)))
    (here / "short.txt").write_text("too short")
    (here / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (here / "broken.parquet").write_text("no Parquet")
    (here / "broken.json").write_text("{")
    (here / "no texts").mkdir()
    (here / "thesis").mkdir()
    (here / "thesis/chapter.tex").write_text("years of work")


NEW = ("--out", "new/run")
TRAIN: dict[str, tuple[tuple[str, ...], str]] = {
    "empty text": (("--data", "empty.txt", *NEW), "empty.txt is empty"),
    "binary": (("--data", "binary.txt", *NEW), "binary.txt must be UTF-8 text"),
    "missing text": (("--data", "missing.txt", *NEW), "There is no file or folder 'missing.txt'"),
    "no name": (("--data", "", *NEW), "data is an empty name"),
    "folder without texts": (("--data", "no texts", *NEW), "no texts holds no .txt"),
    "broken JSON": (("--data", "broken.jsonl", *NEW), "broken.jsonl, line 2 is not JSON"),
    "broken Parquet": (("--data", "broken.parquet", *NEW), "broken.parquet is not a Parquet file"),
    "short text": (("--data", "short.txt", *NEW), "fewer than one sequence of data.seq_len = 32"),
    "preset": (("--preset", "huge", *NEW), "--preset must be one of tiny, small"),
    "mixer": (
        ("--mixer", "rnn", *NEW),
        "mixer must be one of lmm, mac, mag, mal, mac+mal, attention, swa,",
    ),
    "device": (("--device", "tpu", *NEW), "--device must be auto, cpu, cuda or cuda:N: got 'tpu'"),
    "mixer twice": (
        ("--mixer", "mag", "--set", "model.mixer=mac", *NEW),
        "--mixer and --set model.mixer say the same: give one of them",
    ),
    "window of a mixer that has another": (
        ("--mixer", "mag", "--set", "model.attention.window=32", *NEW),
        "attention.window must be None where mixer is mag: got 32",
    ),
    "key": (("--set", "train.step=3", *NEW), "(did you mean 'steps'?)"),
    "no value": (("--set", "train.steps", *NEW), "--set must be key=value: got 'train.steps'"),
    "kind of value": (("--set", "train.lr=fast", *NEW), "train.lr must be float: got 'fast'"),
    "value": (("--set", "train.steps=0", *NEW), "train.steps must be at least 1: got 0"),
    "seed": (("--set", f"seed={2**63}", *NEW), "seed must be 0 or more, and below 2**63"),
    "infinite": (
        ("--set", "train.lr=1e400", *NEW),
        "train.lr must be finite and at most 1e+15: got inf",
    ),
    "grid": (("--set", "data.seq_len=33", *NEW), "data.seq_len must be a multiple of 16"),
    "heads": (("--set", "model.memory.num_heads=3", *NEW), "dim must be a multiple of memory"),
    "tokenizer": (("--set", "data.tokenizer=broken.json", *NEW), "broken.json is not a tokenizer"),
    "there already": (("--out", "run"), "run is there already: choose another --out"),
    "file there": (("--out", "text.jsonl", "--force"), "text.jsonl is not a run of titans"),
    "not a run": (("--out", "thesis", "--force"), "thesis is not a run of titans, so --force"),
    "text for a replacement": (("--out", "run", "--force", "--data", "empty.txt"), "is empty"),
    "below a file": (("--out", "short.txt/run"), "short.txt/run: Not a directory"),
    "resume and force": (("--out", "run", "--resume", "--force"), "give one of them"),
    "resume nothing": (("--resume", *NEW), "There is no run folder 'new/run'"),
    "resume another": (("--resume", "--out", "thesis"), "There is no file thesis/config.json"),
    "other model": (
        ("--resume", "--out", "run", "--set", "model.dim=32"),
        "differs in model.dim: 32 against 16",
    ),
    "other preset": (("--resume", "--out", "run", "--preset", "small"), "differs in "),
    "other data": (
        ("--resume", "--out", "run", "--data", "short.txt"),
        "/short.txt' against '",
    ),
}


@pytest.mark.parametrize(("args", "sentence"), TRAIN.values(), ids=TRAIN)
def test_what_cannot_be_trained_costs_a_line(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    write_bad_texts(here)
    before = contents(here)
    plain = "--resume" in args or "--preset" in args
    start = () if plain else ("--data", "text.jsonl", *TINY)
    assert_refused(titans("language", "train", *start, *args), sentence)
    assert contents(here) == before


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def damage(here: Path) -> None:
        for file in (here / "run").rglob(name):
            file.write_bytes(file.read_bytes()[:keep])

    return damage


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(here: Path) -> None:
        for file in (here / "run").rglob(name):
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, new, 1))

    return damage


def write_more(here: Path) -> None:
    write_documents(here / "text.jsonl", [*DOCUMENTS, "one more"])


READ, RESUME = ("eval", "generate"), ("resume",)
DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "weights cut": (cut("model.safetensors", 300), (*READ, *RESUME), "is cut short or is no safe"),
    "weights empty": (cut("model.safetensors", 0), (*READ, *RESUME), "is cut short or is no safe"),
    "tensors cut": (cut("training.safetensors", 300), RESUME, "is cut short or is no safetensors"),
    "rest cut": (cut("training.json", 50), RESUME, "training.json is cut short or is no JSON"),
    "rest of another version": (
        rewrite("training.json", '"schema": 1', '"schema": 2'),
        RESUME,
        "training.json has schema version 2: this titans reads 1",
    ),
    "configuration cut": (cut("config.json", 50), (*READ, *RESUME), "is cut short or is no JSON"),
    "of another version": (
        rewrite("config.json", '"schema": 1', '"schema": 99'),
        (*READ, *RESUME),
        "has schema version 99: this titans reads 1",
    ),
    "not ours": (
        lambda here: (here / "run/config.json").write_text('{"architectures": []}') and None,
        (*READ, *RESUME),
        "was not written by titans: it has no schema version",
    ),
    "of another domain": (
        rewrite("config.json", '"language"', '"genomics"'),
        (*READ, *RESUME),
        "is a run of the domain 'genomics', not of 'language'",
    ),
    "with a key of another version": (
        rewrite("config.json", '"num_layers"', '"layers"'),
        (*READ, *RESUME),
        "has no setting 'layers'",
    ),
    "another model": (
        rewrite("config.json", '"dim": 16', '"dim": 32'),
        READ,
        "was trained with backbone.dim = 16, and the configuration has 32",
    ),
    "no checkpoint": (
        lambda here: shutil.rmtree(here / "run/checkpoints"),
        READ,
        "There is no checkpoint in run/checkpoints",
    ),
    "rest without its content": (
        lambda here: (
            [file.write_text('{"schema": 1}') for file in (here / "run").rglob("training.json")]
            and None
        ),
        RESUME,
        "training.json is damaged: it has no checksum of model.safetensors",
    ),
    "another model to go on": (
        rewrite("config.json", '"dim": 16', '"dim": 32'),
        RESUME,
        "was trained with backbone.dim = 16, and the configuration has 32",
    ),
    "another batch size": (
        rewrite("config.json", '"batch_size": 2', '"batch_size": 3'),
        RESUME,
        "train.batch_size must be that of the run, 2 rows: got 3",
    ),
    "nothing carried": (
        rewrite("config.json", '"carry": null', '"carry": false'),
        RESUME,
        "The checkpoint's carried state is not one of this configuration",
    ),
    "no fingerprint": (
        rewrite("config.json", '"data_sha256"', '"data"'),
        (*READ, *RESUME),
        "config.json is damaged: it has no 'data_sha256'",
    ),
    "changed text": (write_more, ("eval",), "text.jsonl has changed since run was trained"),
    "changed text to go on": (write_more, RESUME, "The data is not what it was when run began"),
    "missing text": (
        lambda here: (here / "text.jsonl").unlink(),
        ("eval", *RESUME),
        "/here/text.jsonl'; data may be",
    ),
}


@pytest.mark.parametrize(("damage", "commands", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_run_costs_a_line(
    here: Path,
    titans: Titans,
    damage: Callable[[Path], None],
    commands: tuple[str, ...],
    sentence: str,
) -> None:
    if "resume" in commands:
        # A checkpoint with a step to go.
        shutil.rmtree(here / "run/checkpoints/step-0000004")
    damage(here)
    before = contents(here)
    calls = {
        "eval": ("eval", "run"),
        "generate": ("generate", "run", "a"),
        "resume": ("train", "--resume", "--out", "run"),
    }
    for command in commands:
        assert_refused(titans("language", *calls[command]), sentence)
        assert contents(here) == before


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("eval", "nowhere"), "There is no run folder 'nowhere'"),
        (("generate", "text.jsonl"), "There is no run folder 'text.jsonl'"),
        (("eval", "thesis"), "There is no file thesis/config.json; is this a run of titans?"),
        (("eval", "run", "--data", "empty.txt"), "empty.txt is empty"),
        (("eval", "run", "--data", "binary.txt"), "binary.txt must be UTF-8 text"),
        (("eval", "run", "--device", "cuda:99"), "--device cuda:99 is not here"),
        (("generate", "run", "a", "--temperature", "-1"), "temperature must be 0"),
        (("generate", "run", "a", "--temperature", "nan"), "temperature must be 0"),
        (("generate", "run", "a", "--top-p", "0"), "top_p must be above 0 and at most 1: got 0.0"),
    ],
)
def test_what_cannot_be_read_costs_a_line(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    write_bad_texts(here)
    before = contents(here)
    assert_refused(titans("language", *args), sentence)
    assert contents(here) == before


def test_a_prompt_that_is_no_text_and_a_seed_too_large_are_refused(
    here: Path, titans: Titans
) -> None:
    done = titans("language", "generate", "run", "a\udcff")
    assert_refused(done, "PROMPT must be UTF-8 text: letter 1 is not")
    for command in (("generate", "run"), ("train", "--out", "new")):
        done = titans("language", *command, "--seed", 2**63)
        assert (done.code, done.out) == (2, "")
        assert "--seed" in done.err
    assert not (here / "new").exists()


def test_training_that_runs_away_costs_a_line(here: Path, titans: Titans) -> None:
    done = titans(
        "language", "train", "--data", "text.jsonl", *TINY, "--set", "train.lr=1e15", "--out", "new",
        "--set", "train.max_skipped=0",
    )  # fmt: skip
    assert (done.code, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("error: The loss of step 2 is not finite, and nothing of it was saved: ")
    assert last.endswith("there is no checkpoint yet.")


def test_a_hub_without_a_network_costs_a_line(here: Path, tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts"), "titans")
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env = {**clean, "HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path / "hub")}
    before = contents(here)
    done = subprocess.run(
        [str(script), "language", "train", *TINY, "--data", "hf:nobody/nothing", "--out", "new"],
        env=env | {"TITANS_DEBUG": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    sentence = "The data set 'nobody/nothing' could not be opened"
    assert_refused(Done(done.returncode, done.stdout, done.stderr), sentence)
    assert contents(here) == before
