"""Many sessions' memories: none lost, none mixed, and forgotten ones gone."""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_problems import assert_same_bits
from small_mixers import SETTINGS, inputs

from titans_core import Backbone, MemoryStore
from titans_core import memory_store as module
from titans_core.memory_file import save_memory
from titans_core.sessions import (
    FrozenSessionError,
    SessionExistsError,
    SessionInUseError,
    StoreFullError,
    UnknownSessionError,
    UnreadableSessionError,
    key_of,
    state_hash,
)
from titans_core.state import join, named_tensors, replace_tensors


def backbone(name: str = "lmm plain") -> Backbone:
    torch.manual_seed(0)
    return Backbone(replace(SETTINGS[name].config(), num_layers=1)).double().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Backbone:
    return backbone()


def read(model: Backbone, state: Any, tokens: int, seed: int) -> Any:
    return model(inputs(1, tokens, seed), state)[1]


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


class Open:
    """Stores of one folder, one after the other."""

    def __init__(self, model: Backbone, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.stores: list[MemoryStore] = []

    def __call__(self, **settings: Any) -> MemoryStore:
        self.stores.append(MemoryStore(self.model, self.folder, **settings))
        return self.stores[-1]

    def crash(self) -> None:
        """Ends the last store as a process that was killed ends it."""
        files = self.stores.pop()._files
        assert files is not None
        files.close()


@pytest.fixture
def opened(model: Backbone, tmp_path: Path) -> Iterator[Open]:
    opened = Open(model, tmp_path / "sessions")
    yield opened
    if opened.stores:
        opened.crash()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.memory")}


@pytest.mark.parametrize("durable", [False, True])
def test_hundreds_of_sessions_come_and_go_and_none_is_lost_or_mixed(
    model: Backbone, opened: Open, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thousands of files, none of which has to outlive the machine.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    lots, settings = random.Random(3), {"in_process": 7, "durable": durable}
    store, wanted, frozen = opened(**settings), {}, set()
    fresh = model.fresh_state(1)
    for step in range(900):
        name = f"user {lots.randrange(220)}"
        if name not in wanted:
            store.create(name)
            wanted[name] = fresh
        act = lots.random()
        if act < 0.08:
            receipt = store.forget(name)
            assert receipt.sha256 == receipt.fresh_sha256 == state_hash(fresh)
            assert store.fingerprint(name) == state_hash(fresh)
            del wanted[name]
            frozen.discard(name)
        elif act < 0.14:
            (store.thaw if name in frozen else store.freeze)(name)
            frozen ^= {name}
        elif name in frozen:
            assert_same_bits(store.peek(name), wanted[name])
        else:
            with store.session(name) as session:
                assert_same_bits(session.state, wanted[name])
                session.state = read(model, session.state, 1 + step % 3, step)
            wanted[name] = session.state
        assert store.count()[0] <= 7
        if step % 150 == 149:
            opened.crash() if durable else store.close()
            store = opened(**settings)
            assert store.count() == (0, len(wanted))
    assert len(wanted) > 100
    assert len({state_hash(state) for state in wanted.values()}) > 90
    store.flush()
    assert names_in(opened.folder) == {
        f"{key_of(name)}{'.frozen' * (name in frozen)}.memory" for name in wanted
    }
    for name, state in wanted.items():
        assert_same_bits(store.peek(name), state)
        assert store.is_frozen(name) == (name in frozen)
        about = store.about(name)
        assert about.sha256 == state_hash(state)
        assert about.positions == int(named_tensors(state)["0.memory.position"])


@pytest.mark.parametrize("name", ["lmm", "mac previous", "mag", "mal", "gla", "mamba"])
def test_states_of_every_kind_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = backbone(name)
    store = MemoryStore(model, tmp_path, in_process=1)
    store.create("a")
    with store.session("a") as session:
        session.state = kept = read(model, session.state, 13, 0)
    store.create("b")
    assert store.count() == (1, 1)
    assert_same_bits(store.take("a"), kept)
    store.release("a")
    store.close()


def test_a_session_is_used_by_one_at_a_time(model: Backbone) -> None:
    store = MemoryStore(model)
    for name in ("a", "b"):
        store.create(name)
    state = store.take("a")
    for use in (store.take, store.peek, store.freeze, store.thaw, store.forget):
        with pytest.raises(SessionInUseError, match="The session 'a' is in use: wait until"):
            use("a")
    assert store.about("a").in_use
    assert not store.about("b").in_use
    store.give("a", read(model, state, 3, 0))
    assert store.about("a").positions == 3
    for back in (lambda: store.give("a", state), lambda: store.release("a")):
        with pytest.raises(ValueError, match="'a' must be taken before it is given back"):
            back()


def test_threads_never_share_a_session(model: Backbone, tmp_path: Path) -> None:
    store = MemoryStore(model, tmp_path, in_process=2)
    for name in "abcd":
        store.create(name)
    done: dict[str, int] = dict.fromkeys("abcd", 0)
    odd: list[BaseException] = []

    def work(seed: int) -> None:
        lots = random.Random(seed)
        try:
            while sum(done.values()) < 60:
                name = lots.choice("abcd")
                try:
                    with store.session(name) as session:
                        session.state = read(model, session.state, 1, done[name])
                        done[name] += 1
                except SessionInUseError:
                    continue
        except BaseException as error:
            odd.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert odd == []
    for name, count in done.items():
        state = model.fresh_state(1)
        for seed in range(count):
            state = read(model, state, 1, seed)
        assert_same_bits(store.peek(name), state)
    store.close()


def test_what_fails_changes_nothing(model: Backbone, opened: Open) -> None:
    store = opened(durable=True)
    store.create("a")
    with store.session("a") as session:
        session.state = before = read(model, session.state, 5, 0)
    written = {p.name: p.read_bytes() for p in opened.folder.iterdir()}

    def failing(change: Callable[[Any], Any]) -> None:
        with store.session("a") as session:
            session.state = change(read(model, session.state, 3, 1))

    def broken(state: Any) -> Any:
        raise KeyError("body")

    def not_finite(state: Any) -> Any:
        name, x = next((n, x) for n, x in named_tensors(state).items() if x.is_floating_point())
        return replace_tensors(state, {name: torch.full_like(x, torch.nan)})

    for change, kind, sentence in (
        (broken, KeyError, "body"),
        (not_finite, ValueError, "must be finite to be kept"),
        (lambda state: state[:0], ValueError, "must be one of this model"),
        (lambda state: join([state, state]), ValueError, "must have one row.*: got 2"),
    ):
        with pytest.raises(kind, match=sentence):
            failing(change)
        assert_same_bits(store.peek("a"), before)
        assert {p.name: p.read_bytes() for p in opened.folder.iterdir()} == written
    store.close()
    assert_same_bits(opened().peek("a"), before)


def test_a_full_disk_changes_nothing_and_nothing_is_lost(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(in_process=2)
    for name in "abc":
        store.create(name)
        with store.session(name) as session:
            session.state = read(model, session.state, 4, ord(name))
    wanted = {name: store.about(name).sha256 for name in "abc"}
    assert store.count() == (2, 1)
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        for use in (store.create, store.take, store.peek):
            with pytest.raises(OSError, match="No space"):
                use("a" if use != store.create else "d")
        # What is in the process goes on, and deleting needs no room.
        with store.session("c") as session:
            session.state = read(model, session.state, 1, 9)
        assert {name: store.about(name).sha256 for name in "ab"} == {
            name: wanted[name] for name in "ab"
        }
        assert not list(opened.folder.glob("*.tmp"))
    receipt = store.forget("a")
    assert receipt.positions == 4
    assert store.about("b").sha256 == wanted["b"]
    with pytest.raises(UnknownSessionError):
        store.take("d")


def test_a_crash_leaves_what_was_there_before(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    store = opened(durable=True)
    store.create("a")
    with store.session("a") as session:
        session.state = before = read(model, session.state, 5, 0)

    def kill(*_: Any) -> None:
        raise Killed

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, kill)
            # Nothing that a process does at its end is done.
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(Killed), store.session("a") as session:
                session.state = read(model, session.state, 3, 1)
        assert list(opened.folder.glob(".*.tmp"))
        opened.crash()
        store = opened(durable=True)
        assert not list(opened.folder.glob(".*.tmp"))
        assert_same_bits(store.peek("a"), before)


def test_frozen_sessions_are_read_and_not_written(model: Backbone, opened: Open) -> None:
    store = opened()
    store.create("a")
    with store.session("a") as session:
        session.state = kept = read(model, session.state, 5, 0)
    store.freeze("a")
    store.freeze("a")
    for _ in range(2):
        with pytest.raises(FrozenSessionError, match="'a' is frozen, so nothing can be written"):
            store.take("a")
        assert_same_bits(store.peek("a"), kept)
        assert_same_bits(store.peek("a"), kept)
        assert store.about("a").frozen
        opened.crash()
        store = opened()
    store.thaw("a")
    store.thaw("a")
    opened.crash()
    assert_same_bits(opened().take("a"), kept)


def test_a_store_says_when_it_is_full(model: Backbone, opened: Open) -> None:
    alone = MemoryStore(model, in_process=2)
    for store, most in ((alone, 2), (opened(in_process=1, max_sessions=3), 3)):
        for number in range(most):
            store.create(str(number))
        with pytest.raises(StoreFullError, match=f"full with {most} sessions: delete one"):
            store.create("more")
        with pytest.raises(SessionExistsError, match="a session '0' already"):
            store.create("0")
        store.forget("0")
        store.create("more")
        with pytest.raises(UnknownSessionError, match="no session '0': create it first"):
            store.take("0")
    # Nothing was forgotten to make room.
    assert alone.count() == (2, 0)


def test_sessions_that_are_not_used_are_forgotten(model: Backbone, opened: Open) -> None:
    clock = Clock()
    settings = {"in_process": 2, "ttl": 100.0, "clock": clock}
    store = opened(**settings)
    for name in "abcd":
        store.create(name)
    state = store.take("a")
    clock.now += 60
    store.peek("b")
    clock.now += 60
    assert store.sweep() == 2
    assert store.count()[0] + store.count()[1] == 2
    assert names_in(opened.folder) <= {f"{key_of(name)}.memory" for name in "ab"}
    # One that is in use is not idle, however long that takes.
    store.give("a", read(model, state, 1, 0))
    store.close()
    store = opened(**settings)
    clock.now += 50
    with pytest.raises(UnknownSessionError):
        store.about("b")
    assert store.about("a").positions == 1
    clock.now += 51
    with pytest.raises(UnknownSessionError):
        store.take("a")
    assert names_in(opened.folder) == set()


def test_a_look_at_a_session_counts_as_its_use_after_a_restart(
    model: Backbone, opened: Open
) -> None:
    clock = Clock()
    settings = {"in_process": 1, "ttl": 100.0, "clock": clock}
    store = opened(**settings)
    for name in "ab":
        store.create(name)
    clock.now += 90
    store.peek("a")
    # Put on disk again as it came from there.
    store.peek("b")
    opened.crash()
    clock.now += 50
    store = opened(**settings)
    assert store.about("a").positions == 0


def test_names_stay_in_the_folder(model: Backbone, opened: Open) -> None:
    store = opened(durable=True)
    for name in ("../../etc/passwd", "a" * 128, " ", "C:\\x", ".", "a/b", "A", "a"):
        store.create(name)
    assert len(names_in(opened.folder)) == 8
    assert {p.name for p in opened.folder.parent.iterdir()} == {"sessions"}
    for name in ("", "a" * 129, "a\n", "\0", "ä", 3):
        for use in (store.create, store.take, store.forget, store.fingerprint):
            with pytest.raises(ValueError, match="name must be 1 to 128 printable ASCII"):
                use(name)


def test_a_file_that_cannot_be_read_is_said_and_can_be_deleted(
    model: Backbone, opened: Open
) -> None:
    store = opened()
    for name in ("cut", "other", "gone", "fine"):
        store.create(name)
    store.close()
    paths = {n: opened.folder / f"{key_of(n)}.memory" for n in ("cut", "other", "gone", "fine")}
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:-9])
    other = backbone()
    other.norm.weight += 1e-6
    save_memory(paths["other"], other.fresh_state(1), other, caches=True)
    store = opened()
    paths["gone"].unlink()
    for name in ("cut", "other", "gone"):
        for use in (store.take, store.peek, store.about, store.fingerprint):
            with pytest.raises(UnreadableSessionError, match="damaged, gone, or of another model"):
                use(name)
        receipt = store.forget(name)
        assert (receipt.positions, receipt.sha256) == (None, receipt.fresh_sha256)
    assert store.about("fine").positions == 0
    assert names_in(opened.folder) == {paths["fine"].name}


def test_a_session_that_cannot_be_written_costs_no_other(model: Backbone, opened: Open) -> None:
    store = opened()
    for name in "abc":
        store.create(name)
    store.flush()
    # Gone from the disk, and in the way there.
    (opened.folder / f"{key_of('a')}.memory").unlink()
    (opened.folder / f"{key_of('b')}.memory").unlink()
    (opened.folder / f"{key_of('b')}.memory").mkdir()
    for name in "abc":
        with store.session(name) as session:
            session.state = read(model, session.state, 7, 0)
    with pytest.raises(OSError, match=r"1 sessions could not be brought to the disk: .*\(b\)"):
        store.close()
    (opened.folder / f"{key_of('b')}.memory").rmdir()
    store = opened()
    assert [store.about(name).positions for name in "ac"] == [7, 7]


def test_room_is_made_by_those_that_can_be_written(model: Backbone, opened: Open) -> None:
    store = opened(in_process=2)
    for name in "ab":
        store.create(name)
    (opened.folder / f"{key_of('a')}.memory").mkdir()
    for name in "cde":
        store.create(name)
    assert store.count() == (2, 3)
    assert store.about("a").positions == 0


def test_a_file_that_is_gone_is_written_anew(model: Backbone, opened: Open) -> None:
    store = opened()
    store.create("a")
    store.flush()
    (opened.folder / f"{key_of('a')}.memory").unlink()
    store.close()
    assert opened().about("a").positions == 0


def test_as_many_idle_sessions_are_held_as_may_be(model: Backbone, opened: Open) -> None:
    store = opened(in_process=2)
    for name in "abcdef":
        store.create(name)
    states = {name: store.take(name) for name in "abcdef"}
    assert store.count() == (6, 0)
    for name in "abc":
        store.give(name, states[name])
    for name in "def":
        store.release(name)
    assert store.count() == (2, 4)


def test_too_few_descriptors_are_no_damage(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(in_process=1)
    for name in "ab":
        store.create(name)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", full)
        for use in (store.about, store.take):
            with pytest.raises(OSError, match="Too many open files"):
                use("a")
    assert store.about("a").positions == 0


def test_a_change_that_is_refused_is_not_on_disk_either(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(durable=True)
    store.create("a")
    before = store.about("a").sha256
    with monkeypatch.context() as patch:
        utime, failed = os.utime, []

        def full(*args: Any) -> None:
            if args[1] is not None and not failed:
                failed.append(args)
                raise OSError(errno.EIO, "Input/output error")
            utime(*args)

        patch.setattr(os, "utime", full)
        with pytest.raises(OSError, match="Input/output"), store.session("a") as session:
            session.state = read(model, session.state, 9, 0)
    assert store.about("a").sha256 == before
    opened.crash()
    assert opened(durable=True).about("a").sha256 == before


def test_a_folder_that_cannot_be_opened_fails_nothing_that_is_done(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(durable=True)
    store.create("a")

    def full(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        store.freeze("a")
        store.thaw("a")
        store.freeze("a")
    assert store.about("a").frozen
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        store.forget("a")
    assert names_in(opened.folder) == set()


def test_a_session_that_cannot_be_removed_holds_up_no_other(model: Backbone, opened: Open) -> None:
    clock = Clock()
    store = opened(ttl=10.0, clock=clock)
    for name in ("old", "older", "a"):
        store.create(name)
    store.flush()
    state = store.take("a")
    path = opened.folder / f"{key_of('old')}.memory"
    path.unlink()
    path.mkdir()
    clock.now += 20
    store.release("a")
    assert not store.about("a").in_use
    store.create("b")
    store.give("a", read(model, store.take("a"), 1, 0) if state else None)
    with pytest.raises(UnknownSessionError):
        store.about("older")
    for use in (lambda: store.about("old"), lambda: store.create("old"), store.sweep):
        with pytest.raises(OSError, match="old|directory|permitted"):
            use()
    path.rmdir()
    assert store.sweep() == 1


def test_a_session_that_is_read_is_not_forgotten(model: Backbone, opened: Open) -> None:
    clock = Clock()
    store = opened(ttl=100.0, clock=clock, in_process=1)
    store.create("a")
    store.freeze("a")
    for _ in range(2):
        store.take("a", write=False)
    assert store.about("a").in_use
    clock.now += 101
    assert store.sweep() == 0
    with pytest.raises(ValueError, match="'a' was taken without write: release it"):
        store.give("a", model.fresh_state(1))
    store.release("a")
    with pytest.raises(SessionInUseError):
        store.forget("a")
    # It may be thawed meanwhile, and is written once nobody reads it.
    store.thaw("a")
    with pytest.raises(SessionInUseError):
        store.take("a")
    store.release("a")
    with pytest.raises(ValueError, match="'a' must be taken before"):
        store.release("a")
    state = store.take("a")
    with pytest.raises(SessionInUseError):
        store.take("a", write=False)
    store.give("a", state)
    assert store.forget("a").positions == 0


def test_a_durable_session_that_is_looked_at_outlives_a_kill(model: Backbone, opened: Open) -> None:
    clock = Clock()
    settings = {"ttl": 100.0, "clock": clock, "durable": True}
    store = opened(**settings)
    for name in "ab":
        store.create(name)
    for _ in range(10):
        clock.now += 50
        store.peek("a")
        store.take("b", write=False)
        store.release("b")
    opened.crash()
    clock.now += 1
    store = opened(**settings)
    assert [store.about(name).positions for name in "ab"] == [0, 0]


def test_files_are_their_owners_alone(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.folder.mkdir()
    opened.folder.chmod(0o755)
    modes: set[int] = set()
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (modes.add(os.stat(file).st_mode & 0o177), fsync(file))
    )
    store = opened(durable=True)
    modes.clear()
    store.create("a")
    [path] = opened.folder.glob("*.memory")
    assert path.stat().st_mode & 0o777 == 0o600
    # The other is the folder's.
    assert 0 in modes
    assert modes <= {0, 0o755 & 0o177}


def test_what_a_crash_left_half_written_goes(model: Backbone, opened: Open) -> None:
    opened().close()
    (opened.folder / ".model.json.77.tmp").write_text("{")
    opened()
    assert not list(opened.folder.glob(".*.tmp"))


def test_a_folder_is_one_models_and_one_stores(model: Backbone, opened: Open) -> None:
    store = opened()
    with pytest.raises(ValueError, match="is in use by another process: stop it"):
        opened()
    store.close()
    other = backbone()
    other.norm.weight += 1e-6
    with pytest.raises(ValueError, match="holds the sessions of another model"):
        MemoryStore(other, opened.folder)
    opened().close()
    (opened.folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match="holds the sessions of another model"):
        opened()


def test_limits_are_checked(model: Backbone, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"in_process": 0}, "in_process must be at least 1: got 0"),
        ({"max_sessions": -1}, "max_sessions must be at least 1: got -1"),
        ({"ttl": 0.0}, "ttl must be above 0 seconds, or None: got 0.0"),
        ({"ttl": float("nan")}, "ttl must be above 0 seconds"),
        ({"durable": True}, "durable needs a folder"),
    ):
        with pytest.raises(ValueError, match=sentence):
            MemoryStore(model, **settings)


def test_no_weight_is_hashed_for_a_session(
    model: Backbone, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(in_process=1)
    monkeypatch.setattr(module, "identity_of", lambda model: pytest.fail("read all weights"))
    for name in "abc":
        store.create(name)
    for name in "abc":
        store.peek(name)
    store.close()
