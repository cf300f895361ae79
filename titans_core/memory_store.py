"""Memories of many sessions, by name: in process, and the least recently used of them on disk.

What a session has read is somebody's data. So no session sees another's, each is used by one at a time,
what fails changes none, and a forgotten one can be shown to be gone.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from titans_core.backbone import Backbone
from titans_core.memory_file import checked_tensors, identity_of
from titans_core.session_files import SessionFiles
from titans_core.sessions import (
    About,
    FrozenSessionError,
    Receipt,
    Session,
    SessionExistsError,
    SessionInUseError,
    StoreFullError,
    UnknownSessionError,
    UnreadableSessionError,
    key_of,
    positions_of,
    state_hash,
)
from titans_core.state import detach, rows_of, state_bytes


class _Entry:
    """A session. Without a state it is on disk; `saved` is whether what is there is its newest."""

    def __init__(self, state: Any, used: float, *, saved: bool, frozen: bool = False) -> None:
        self.state, self.used, self.saved, self.frozen = state, used, saved, frozen
        self.in_use = False


class MemoryStore:
    """States of one row of `model`, by names of 1 to 128 printable ASCII characters.

    At most `in_process` idle sessions are held in this process; with a `folder` the others are files
    there, which come back bit for bit, as after `flush` or `close` every session does. `durable` writes
    each change at once. Without a folder, or with `max_sessions`, a full store takes no new session.
    `ttl` forgets sessions that were idle for as many seconds. The model's weights must not change.
    """

    def __init__(
        self,
        model: Backbone,
        folder: Path | None = None,
        *,
        in_process: int = 64,
        max_sessions: int | None = None,
        ttl: float | None = None,
        durable: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check_limits(folder, in_process, max_sessions, ttl, durable)
        self.model, self.ttl, self.durable, self.clock = model, ttl, durable, clock
        self.in_process = in_process
        limits = (max_sessions, in_process if folder is None else None)
        self.most = min((n for n in limits if n is not None), default=None)
        self._lock = threading.RLock()
        # The one that was used the longest ago stands first.
        self._entries: dict[str, _Entry] = {}
        self._files = None if folder is None else SessionFiles(folder, model, identity_of(model))
        for file in self._files.found() if self._files else ():
            self._entries[file.key] = _Entry(None, file.used, saved=True, frozen=file.frozen)

    def create(self, name: str) -> None:
        """A new session, which has read nothing."""
        with self._lock:
            self.sweep()
            key = key_of(name)
            if key in self._entries:
                raise SessionExistsError(
                    f"There is a session {name!r} already: choose another name."
                )
            if self.most is not None and len(self._entries) >= self.most:
                raise StoreFullError(
                    f"The store is full with {self.most} sessions: delete one, or raise its limit."
                )
            self._make_room()
            entry = _Entry(self.model.fresh_state(1), self.clock(), saved=False)
            if self.durable:
                self._save(key, entry)
            self._entries[key] = entry

    def take(self, name: str) -> Any:
        """The state that the session goes on from; nobody else gets it until it is given back."""
        with self._lock:
            entry = self._idle(name)
            if entry.frozen:
                raise FrozenSessionError(
                    f"The session {name!r} is frozen, so nothing can be written to it: `peek` at it and "
                    "read with write=False, or thaw it."
                )
            self._load(key_of(name), entry)
            entry.in_use = True
            return entry.state

    def give(self, name: str, state: Any) -> None:
        """Gives a taken session back with the state that it goes on from now.

        Where that cannot be kept the session stays taken: `release` it then.
        """
        with self._lock:
            key = key_of(name)
            self._taken(name)
            state = detach(state)
            checked_tensors(state, self.model, caches=True)
            if (rows := rows_of(state)) != 1:
                raise ValueError(f"state must have one row, that of the session: got {rows}.")
            entry = _Entry(state, self.clock(), saved=False)
            if self.durable:
                self._save(key, entry)
            self._put_last(key, entry)

    def release(self, name: str) -> None:
        """Gives a taken session back as it was taken."""
        with self._lock:
            entry = self._taken(name)
            entry.in_use, entry.used = False, self.clock()
            self._put_last(key_of(name), entry)

    @contextmanager
    def session(self, name: str) -> Iterator[Session]:
        """Takes a session and gives it back; as it was where the body or the giving back fails."""
        taken = Session(self.take(name))
        try:
            yield taken
            self.give(name, taken.state)
        except BaseException:
            self.release(name)
            raise

    def peek(self, name: str) -> Any:
        """The state that an idle session goes on from, for those who only read it."""
        with self._lock:
            entry, key = self._idle(name), key_of(name)
            self._load(key, entry)
            entry.used = self.clock()
            self._put_last(key, entry)
            return entry.state

    def is_frozen(self, name: str) -> bool:
        with self._lock:
            return self._known(name).frozen

    def freeze(self, name: str) -> None:
        """Protects a session from being written, also after a restart, until `thaw`."""
        self._set_frozen(name, True)

    def thaw(self, name: str) -> None:
        self._set_frozen(name, False)

    def forget(self, name: str) -> Receipt:
        """Deletes a session in process and on disk, and shows that it is gone."""
        with self._lock:
            entry, key = self._idle(name), key_of(name)
            try:
                read = positions_of(self._state_of(key, entry))
            except UnreadableSessionError:
                # What cannot be read can be deleted all the same.
                read = 0
            if self._files is not None:
                self._files.delete(key)
            del self._entries[key], entry
            return Receipt(read, self.fingerprint(name), state_hash(self.model.fresh_state(1)))

    def fingerprint(self, name: str) -> str:
        """SHA-256 of the state from which the name goes on: of an unknown one, a fresh state."""
        with self._lock:
            key = key_of(name)
            if (entry := self._entries.get(key)) is not None:
                return state_hash(self._state_of(key, entry))
            if self._files is not None and self._files.holds(key):
                raise UnreadableSessionError(
                    f"There is a file of the session {name!r} that is not this store's: delete it."
                )
            return state_hash(self.model.fresh_state(1))

    def about(self, name: str) -> About:
        with self._lock:
            entry = self._known(name)
            state = self._state_of(key_of(name), entry)
            return About(
                positions_of(state), state_bytes(state), entry.frozen, entry.in_use,
                state_hash(state),
            )  # fmt: skip

    def count(self) -> tuple[int, int]:
        """How many sessions are held in this process, and how many on disk alone."""
        with self._lock:
            held = sum(entry.state is not None for entry in self._entries.values())
            return held, len(self._entries) - held

    def sweep(self) -> int:
        """Forgets the sessions whose time is over, as every use of the store does; says how many."""
        with self._lock:
            if self.ttl is None:
                return 0
            over = self.clock() - self.ttl
            gone = [k for k, e in self._entries.items() if e.used < over and not e.in_use]
            for key in gone:
                if self._files is not None:
                    self._files.delete(key)
                del self._entries[key]
            return len(gone)

    def flush(self) -> None:
        """Brings every session to the disk as it was given last, those that are taken as well."""
        with self._lock:
            for key, entry in self._entries.items():
                self._save(key, entry)

    def close(self) -> None:
        """Flushes, and lets another store have the folder."""
        with self._lock:
            if self._files is not None:
                try:
                    self.flush()
                finally:
                    self._files.close()

    def _known(self, name: str) -> _Entry:
        self.sweep()
        entry = self._entries.get(key_of(name))
        if entry is None:
            raise UnknownSessionError(f"There is no session {name!r}: create it first.")
        return entry

    def _idle(self, name: str) -> _Entry:
        entry = self._known(name)
        if entry.in_use:
            raise SessionInUseError(
                f"The session {name!r} is in use: wait until it has been given back."
            )
        return entry

    def _taken(self, name: str) -> _Entry:
        entry = self._known(name)
        if not entry.in_use:
            raise ValueError(f"The session {name!r} must be taken before it is given back.")
        return entry

    def _put_last(self, key: str, entry: _Entry) -> None:
        del self._entries[key]
        self._entries[key] = entry

    def _state_of(self, key: str, entry: _Entry) -> Any:
        if entry.state is not None:
            return entry.state
        assert self._files is not None
        return self._files.load(key, frozen=entry.frozen)

    def _load(self, key: str, entry: _Entry) -> None:
        """Brings a session into the process, where there must be room before anything is changed."""
        if entry.state is None:
            self._make_room()
            entry.state = self._state_of(key, entry)

    def _make_room(self) -> None:
        """Puts sessions that are not in use on disk, until one more may be held."""
        if self._files is None:
            return
        held = [(key, entry) for key, entry in self._entries.items() if entry.state is not None]
        idle = [(key, entry) for key, entry in held if not entry.in_use]
        for key, entry in idle[: max(len(held) + 1 - self.in_process, 0)]:
            self._save(key, entry)
            entry.state = None

    def _save(self, key: str, entry: _Entry) -> None:
        if self._files is None or entry.state is None:
            return
        if not entry.saved:
            self._files.save(key, entry.state, frozen=entry.frozen)
            entry.saved = True
        self._files.touch(key, entry.used, frozen=entry.frozen)

    def _set_frozen(self, name: str, frozen: bool) -> None:
        with self._lock:
            entry, key = self._idle(name), key_of(name)
            if entry.frozen == frozen:
                return
            if self._files is not None:
                # Whole on disk first: the file's name says that it is frozen.
                self._save(key, entry)
                self._files.mark(key, frozen=frozen)
            entry.frozen = frozen


def _check_limits(
    folder: Path | None,
    in_process: int,
    max_sessions: int | None,
    ttl: float | None,
    durable: bool,
) -> None:
    for name, value in (("in_process", in_process), ("max_sessions", max_sessions)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}.")
    if ttl is not None and not ttl > 0:
        raise ValueError(f"ttl must be above 0 seconds, or None: got {ttl}.")
    if durable and folder is None:
        raise ValueError("durable needs a folder: give one, or leave it away.")
