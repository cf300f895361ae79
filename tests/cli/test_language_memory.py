"""`titans language read` and `generate --memory`: a memory kept in a file, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from console import TINY, Titans, assert_refused, contents
from tiny_language import SENTENCES

from titans_core import MIXERS, PATTERNS, join, load_memory, save_memory
from titans_core.mixers import RECURRENCES
from titans_domains.language import load_run
from titans_domains.language.generate import generate, read
from titans_domains.language.reading import read_stream, stream_of

CPU = torch.device("cpu")
DOCUMENT = SENTENCES[0] * 2
SMALL = (
    "model.hybrid.num_persistent=3",
    "model.hybrid.window=12",
    "model.hybrid.segment_len=16",
    "train.steps=1",
)
READ = ("language", "read", "run", "doc.txt", "--memory")
GENERATE = ("language", "generate", "run", "and so", "--max-tokens", "20", "--temperature", "0")


@pytest.fixture
def work(here: Path) -> Path:
    (here / "doc.txt").write_text(DOCUMENT)
    return here


def train(titans: Titans, mixer: str) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    done = titans(
        "language", "train", "--data", "text.jsonl", *TINY, *settings,
        "--mixer", mixer, "--out", "other",
    )  # fmt: skip
    assert done.code == 0, done.err


def test_a_document_is_read_into_a_memory_file(work: Path, titans: Titans) -> None:
    done = titans(*READ, "doc.memory")
    assert (done.code, done.out) == (0, "doc.memory\n")
    model, tokenizer, _ = load_run(work / "run", CPU)
    reading = read_stream(model, tokenizer, stream_of(tokenizer, DOCUMENT.encode()))
    size, tokens = (work / "doc.memory").stat().st_size, len(DOCUMENT) + 1
    assert done.err.splitlines() == [
        f"reading {tokens}/{tokens} ",
        f"doc.txt: {reading.bits_per_byte:.3f} bits/byte",
        f"doc.memory: {size:,} bytes, position {tokens} (tokens read, with start tokens)",
    ]
    loaded = load_memory(work / "doc.memory", model.backbone)
    expected = model.backbone.restart_caches(reading.state)
    assert torch.equal(loaded[1].memory.memory[0], expected[1].memory.memory[0])
    assert not loaded[1].conv_tail.any()


def test_generation_goes_on_from_a_memory(work: Path, titans: Titans) -> None:
    assert titans(*READ, "doc.memory", "--caches").code == 0
    done = titans(*GENERATE, "--memory", "doc.memory")
    size = (work / "doc.memory").stat().st_size
    assert done.code == 0
    position = len(DOCUMENT) + 1
    assert (
        done.err
        == f"doc.memory: {size:,} bytes, position {position} (tokens read, with start tokens)\n"
    )
    model, tokenizer, _ = load_run(work / "run", CPU)
    _, state = read(model, tokenizer, DOCUMENT.encode())
    kept = load_memory(work / "doc.memory", model.backbone)
    assert torch.equal(kept[1].conv_tail, state[1].conv_tail)
    pieces = generate(model, tokenizer, b"and so", state, max_tokens=20, temperature=0)
    assert done.out == f"and so{b''.join(pieces).decode(errors='replace')}\n"


def test_reading_goes_on_from_a_memory(work: Path, titans: Titans) -> None:
    (work / "first.txt").write_text(DOCUMENT[:50])
    (work / "second.txt").write_text(DOCUMENT[50:])
    first = titans("language", "read", "run", "first.txt", "--memory", "a", "--caches")
    assert first.code == 0
    more = ("language", "read", "run", "second.txt", "--caches", "--from", "a", "--memory")
    assert titans(*more, "b").code == 0
    assert "position 109 (tokens read, with start tokens)" in titans(*GENERATE, "--memory", "b").err
    assert titans(*READ, "whole", "--caches").code == 0
    assert titans(*GENERATE, "--memory", "b").out == titans(*GENERATE, "--memory", "whole").out
    # A memory may take its own place.
    assert titans(*more, "a", "--force").code == 0
    assert (work / "a").read_bytes() == (work / "b").read_bytes()


@pytest.mark.parametrize("mixer", ["mac", "mag", "mal", "mac+mal"])
def test_every_mixer_with_a_memory_keeps_it(work: Path, titans: Titans, mixer: str) -> None:
    train(titans, mixer)
    done = titans("language", "read", "other", "doc.txt", "--memory", "doc.memory")
    assert (done.code, done.out) == (0, "doc.memory\n"), done.err
    done = titans(
        "language", "generate", "other", "and", "--max-tokens", "9", "--memory", done.out[:-1]
    )
    assert done.code == 0
    assert done.out.startswith("and")
    assert f"position {len(DOCUMENT) + 1} (tokens read, with start tokens)" in done.err


def prepare(work: Path, titans: Titans) -> None:
    (work / "empty.txt").write_bytes(b"\n")
    (work / "binary.bin").write_bytes(bytes(range(256)))
    (work / "folder").mkdir()
    assert titans(*READ, "doc.memory").code == 0
    content = (work / "doc.memory").read_bytes()
    (work / "cut.memory").write_bytes(content[:-9])
    (work / "flipped.memory").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    model, _, _ = load_run(work / "run", CPU)
    state = model.backbone.fresh_state(1)
    save_memory(work / "two.memory", join([state, state]), model.backbone)
    model.backbone.norm.weight.data[0] += 1
    save_memory(work / "later.memory", state, model.backbone)
    wider = titans("language", "train", "--data", "text.jsonl", *TINY, "--set", "model.num_layers=1",
                   "--set", "train.steps=1", "--out", "wider")  # fmt: skip
    assert wider.code == 0
    assert titans("language", "read", "wider", "doc.txt", "--memory", "wider.memory").code == 0


FILES = {
    "missing": ("none.memory", "There is no memory file none.memory"),
    "folder": ("folder", "folder is a folder: give the path of a memory file"),
    "text": ("doc.txt", "doc.txt is no memory file of titans, or is cut short"),
    "cut": ("cut.memory", "cut.memory is no memory file of titans, or is cut short"),
    "flipped": ("flipped.memory", "flipped.memory is damaged"),
    "two": ("two.memory", "two.memory holds 2 memories"),
    "weights": (
        "run/checkpoints/step-0000004/model.safetensors",
        "model.safetensors is no memory file of titans",
    ),
    "model": ("wider.memory", "wider.memory is the memory of a model with another configuration"),
    "training": (
        "later.memory",
        "of another model, or of this one at another point of its training",
    ),
}
CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    **{
        f"from {name}": ((*READ, "x", "--from", file), says) for name, (file, says) in FILES.items()
    },
    **{f"on {name}": ((*GENERATE, "--memory", file), says) for name, (file, says) in FILES.items()},
    "no prompt": (
        ("language", "generate", "run", "--memory", "doc.memory"),
        "What goes on from --memory needs a PROMPT: give at least one character",
    ),
    "no document": (
        ("language", "read", "run", "none.txt", "--memory", "x"),
        "There is no document 'none.txt'",
    ),
    "empty": (("language", "read", "run", "empty.txt", "--memory", "x"), "empty.txt is empty"),
    "binary": (
        ("language", "read", "run", "binary.bin", "--memory", "x"),
        "binary.bin must be UTF-8 text",
    ),
    "a folder of documents": (
        ("language", "read", "run", "folder", "--memory", "x"),
        "folder is a folder: give the path of one document",
    ),
    "no run": (("language", "read", "none", "doc.txt", "--memory", "x"), "There is no run folder"),
    "there": ((*READ, "doc.memory"), "doc.memory is there already: choose another --memory"),
    "no memory": ((*READ, "text.jsonl", "--force"), "text.jsonl is not a memory file, so --force"),
    "into a folder": ((*READ, "folder", "--force"), "folder is a folder: give the path of a file"),
    "nowhere": ((*READ, "none/x"), "There is no folder none: make it first"),
}


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(("args", "sentence"), CALLS.values(), ids=CALLS)
def test_a_mistake_costs_a_line_and_no_file(
    work: Path, titans: Titans, args: tuple[str, ...], sentence: str, prepared: dict[str, Any]
) -> None:
    if not prepared:
        before = contents(work)
        prepare(work, titans)
        made = {name: x for name, x in contents(work).items() if name not in before}
        prepared.update(made)
    for name, content in sorted(prepared.items()):
        if content is None:
            (work / name).mkdir(parents=True, exist_ok=True)
        else:
            (work / name).write_bytes(content)
    before = contents(work)
    assert_refused(titans(*args), sentence)
    assert contents(work) == before


def test_attention_has_no_memory_to_keep(work: Path, titans: Titans) -> None:
    train(titans, "attention")
    before = contents(work)
    done = titans("language", "read", "other", "doc.txt", "--memory", "x")
    assert_refused(done, "other has no memory that could be kept: its mixer is attention")
    assert contents(work) == before


def test_a_full_disk_leaves_the_memory_before(
    work: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert titans(*READ, "doc.memory").code == 0
    before = contents(work)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = titans(*READ, "doc.memory", "--caches", "--force")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == "error: doc.memory: No space left on device"
    assert contents(work) == before


def test_the_help_names_every_mixer(titans: Titans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    # Lines are broken behind hyphens too.
    words = " ".join(titans("language", "train", "--help").out.split()).replace("- ", "-")
    named = set(re.split(r"[,;] ", words[words.index("lmm, mac") : words.index("; or several")]))
    assert named == {*MIXERS, *PATTERNS, *RECURRENCES}
