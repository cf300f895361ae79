"""What a store lists of its sessions, and what it says of those that are gone or cannot be written."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_mixers import SETTINGS, inputs

from titans_core import Backbone, MemoryStore
from titans_core.memory_file import notes_of, save_memory
from titans_core.sessions import Listed, key_of, state_hash


@pytest.fixture(scope="module")
def model() -> Backbone:
    torch.manual_seed(0)
    plain = replace(SETTINGS["lmm plain"].config(), num_layers=1)
    return Backbone(plain).double().requires_grad_(False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def store(model: Backbone, folder: Path) -> Iterator[MemoryStore]:
    store = MemoryStore(model, folder, in_process=2)
    yield store
    store.close()


def read(store: MemoryStore, name: str, tokens: int) -> None:
    with store.session(name) as session:
        session.state = store.model(inputs(1, tokens, 0), session.state)[1]


def test_sessions_are_listed_wherever_they_are(
    model: Backbone, folder: Path, store: MemoryStore
) -> None:
    for number, name in enumerate("dacb"):
        store.create(name, label=f"ann {name}" if name != "d" else None)
        read(store, name, 3 + number)
    store.freeze("b")
    store.take("c")
    wanted = [
        Listed("ann a", 4, False, False), Listed("ann b", 6, True, False),
        Listed("ann c", 5, False, True), Listed("d", 3, False, False),
    ]  # fmt: skip
    assert store.listed() == wanted
    assert store.listed("ann ") == wanted[:3]
    assert store.listed("ann ", after="ann a", most=1) == wanted[1:2]
    assert store.listed("bob ") == []
    store.release("c")
    store.forget("a")
    store.close()
    again = MemoryStore(model, folder, in_process=1)
    assert again.listed() == [wanted[1], wanted[2]._replace(in_use=False), wanted[3]]
    # A label goes on with what is read.
    read(again, "c", 2)
    read(again, "d", 1)
    assert [(one.label, one.positions) for one in again.listed()] == [
        ("ann b", 6), ("ann c", 7), ("d", 4),
    ]  # fmt: skip
    again.close()
    MemoryStore(model, folder).close()


def test_files_of_an_earlier_version_are_used_and_not_listed(
    model: Backbone, folder: Path, store: MemoryStore
) -> None:
    store.create("old")
    read(store, "old", 5)
    state = store.peek("old")
    store.close()
    path = folder / f"{key_of('old')}.memory"
    save_memory(path, state, model, caches=True)
    assert notes_of(path) == {}
    again = MemoryStore(model, folder)
    assert again.listed() == []
    assert again.about("old").positions == 5
    assert again.forget("old").positions == 5
    again.close()


def test_what_cannot_be_read_has_no_notes(folder: Path, store: MemoryStore) -> None:
    store.create("a")
    store.flush()
    path = folder / f"{key_of('a')}.memory"
    whole = path.read_bytes()
    assert notes_of(path) == {"label": "a", "positions": 0}
    for content in (
        b"",
        b"\xff" * 8,
        whole[:40],
        whole[:8] + b"[" * 10_000,
        b"\x02" + bytes(7) + b"{}",
    ):
        path.write_bytes(content)
        assert notes_of(path) == {}
    assert notes_of(folder) == {}
    assert notes_of(folder / "nowhere") == {}


def test_a_receipt_names_what_was_deleted(folder: Path, store: MemoryStore) -> None:
    for name in "ab":
        store.create(name)
        read(store, name, 4)
    shown = store.about("a").sha256
    receipt = store.forget("a")
    assert receipt.deleted_sha256 == shown != receipt.sha256
    assert receipt.sha256 == receipt.fresh_sha256 == state_hash(store.model.fresh_state(1))
    # One that cannot be read has no hash.
    for name in "cd":
        store.create(name)
        read(store, name, 1)
    (folder / f"{key_of('b')}.memory").write_bytes(b"")
    assert store.forget("b").deleted_sha256 is None


def test_sessions_that_could_not_be_written_are_named(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        store.create(name, label=f" {name}")
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"2 sessions .*: No space left on device \(a, b\)\."):
            store.close()


def test_not_too_many_are_named(
    model: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(model, folder)
    for number in range(30):
        store.create(f"s{number:02}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "Full")))
        with pytest.raises(OSError, match=r"30 sessions .*s19, \.\.\.\)\.$"):
            store.close()
