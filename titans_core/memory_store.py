"""Memories of many sessions, by name: in process, and the least recently used of them on disk.

What a session has read is somebody's data. So no session sees another's, each is used by one at a time,
what fails changes none, and a forgotten one can be shown to be gone.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from titans_core.backbone import Backbone
from titans_core.memory_file import checked_tensors, identity_of
from titans_core.session_files import SessionFiles
from titans_core.session_table import Entry, SessionTable
from titans_core.sessions import (
    About,
    FrozenSessionError,
    Listed,
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
        limits = (max_sessions, in_process if folder is None else None)
        self.most = min((n for n in limits if n is not None), default=None)
        self._lock = threading.RLock()
        self._files = None if folder is None else SessionFiles(folder, model, identity_of(model))
        self._table = SessionTable(self._files, in_process, clock())

    def create(self, name: str, *, label: str | None = None) -> None:
        """A new session, which has read nothing; `listed` shows it as `label`, by default its name."""
        with self._lock:
            key = self._swept(name)
            if key in self._table.entries:
                raise SessionExistsError(
                    f"There is a session {name!r} already: choose another name."
                )
            if self.most is not None and len(self._table.entries) >= self.most:
                raise StoreFullError(
                    f"The store is full with {self.most} sessions: delete one, or raise its limit."
                )
            self._table.make_room(1)
            label = name if label is None else label
            entry = Entry(self.model.fresh_state(1), self.clock(), saved=False, label=label)
            if self.durable:
                self._table.save(key, entry)
            self._table.put_last(key, entry)

    def take(self, name: str, *, write: bool = True) -> Any:
        """The state that the session goes on from; nobody else gets it until it is given back.

        Without `write`, others may read it meanwhile, and nobody can write to it or forget it.
        """
        with self._lock:
            entry = self._alone(name) if write else self._readable(name)
            if write and entry.frozen:
                raise FrozenSessionError(
                    f"The session {name!r} is frozen, so nothing can be written to it: take it with "
                    "write=False, or thaw it."
                )
            self._table.load(key_of(name), entry)
            if write:
                entry.in_use = True
            else:
                entry.readers += 1
            return entry.state

    def give(self, name: str, state: Any) -> None:
        """Gives a taken session back with the state that it goes on from now.

        Where that cannot be kept the session stays taken: `release` it then.
        """
        with self._lock:
            key, taken = key_of(name), self._taken(name)
            if not taken.in_use:
                raise ValueError(f"The session {name!r} was taken without write: release it.")
            state = detach(state)
            checked_tensors(state, self.model, caches=True)
            if (rows := rows_of(state)) != 1:
                raise ValueError(f"state must have one row, that of the session: got {rows}.")
            entry = Entry(state, self.clock(), saved=False, label=taken.label)
            if self.durable:
                try:
                    self._table.save(key, entry)
                except BaseException:
                    # What is on disk may be the new one, which is not kept.
                    taken.saved = False
                    raise
            self._table.put_last(key, entry)
            self._trim()

    def release(self, name: str) -> None:
        """Gives a taken session back as it was taken."""
        with self._lock:
            entry = self._taken(name)
            if entry.in_use:
                entry.in_use = False
            else:
                entry.readers -= 1
            self._used(key_of(name), entry)
            self._trim()

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
        """The state that a session goes on from, for those who only read it; it may be gone meanwhile."""
        with self._lock:
            entry, key = self._readable(name), key_of(name)
            self._table.load(key, entry)
            self._used(key, entry)
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
        """Deletes a session in process and on disk, and shows that neither is left."""
        with self._lock:
            entry, key = self._alone(name), key_of(name)
            # What cannot be read can be deleted all the same.
            read, deleted = None, None
            with suppress(UnreadableSessionError, OSError):
                state = self._table.state_of(key, entry)
                read, deleted = positions_of(state), state_hash(state)
                del state
            self._table.remove(key)
            del entry
            fresh = state_hash(self.model.fresh_state(1))
            return Receipt(read, self.fingerprint(name), fresh, deleted)

    def fingerprint(self, name: str) -> str:
        """SHA-256 of the state from which the name goes on: of an unknown one, a fresh state."""
        with self._lock:
            key = key_of(name)
            if (entry := self._table.entries.get(key)) is not None:
                return state_hash(self._table.state_of(key, entry))
            if self._files is not None and self._files.holds(key):
                raise UnreadableSessionError(
                    f"There is a file of the session {name!r} that is not this store's: delete it."
                )
            return state_hash(self.model.fresh_state(1))

    def about(self, name: str) -> About:
        with self._lock:
            entry = self._known(name)
            state = self._table.state_of(key_of(name), entry)
            return About(
                positions_of(state), state_bytes(state), entry.frozen, entry.busy, state_hash(state)
            )

    def listed(self, prefix: str = "", *, after: str = "", most: int | None = None) -> list[Listed]:
        """By label the sessions whose label begins with `prefix`, the first `most` that come after `after`.

        Those of files that an earlier version wrote have none, and are not listed.
        """
        with self._lock:
            self._sweep()
            found = [
                Listed(entry.label, entry.positions, entry.frozen, entry.busy)
                for entry in self._table.entries.values()
                if entry.label is not None
                and entry.label.startswith(prefix)
                and entry.label > after
            ]
        return sorted(found, key=lambda one: one.label)[:most]

    def count(self) -> tuple[int, int]:
        """How many sessions are held in this process, and how many on disk alone."""
        with self._lock:
            held = len(self._table.held)
            return held, len(self._table.entries) - held

    def sweep(self) -> int:
        """Forgets the sessions whose time is over, as every use of the store does; says how many.

        OSError at the end where one of them could not be removed.
        """
        with self._lock:
            gone, failed = self._sweep()
            for error in failed.values():
                raise error
            return gone

    def flush(self) -> None:
        """Brings every session to the disk as it was given last, those that are taken as well."""
        with self._lock:
            self._table.save_all()

    def close(self) -> None:
        """Flushes, and lets another store have the folder."""
        with self._lock:
            if self._files is not None:
                try:
                    self.flush()
                finally:
                    self._files.close()

    def _sweep(self) -> tuple[int, dict[str, OSError]]:
        return (0, {}) if self.ttl is None else self._table.sweep(self.clock() - self.ttl)

    def _swept(self, name: str) -> str:
        """The name's key, once what is over is gone; of what could not go, only its own is told."""
        key = key_of(name)
        _, failed = self._sweep()
        if key in failed:
            raise failed[key]
        return key

    def _entry(self, name: str) -> Entry:
        entry = self._table.entries.get(key_of(name))
        if entry is None:
            raise UnknownSessionError(f"There is no session {name!r}: create it first.")
        return entry

    def _known(self, name: str) -> Entry:
        self._swept(name)
        return self._entry(name)

    def _readable(self, name: str) -> Entry:
        entry = self._known(name)
        if entry.in_use:
            raise _in_use(name)
        return entry

    def _alone(self, name: str) -> Entry:
        entry = self._known(name)
        if entry.busy:
            raise _in_use(name)
        return entry

    def _taken(self, name: str) -> Entry:
        entry = self._entry(name)
        if not entry.busy:
            raise ValueError(f"The session {name!r} must be taken before it is given back.")
        return entry

    def _used(self, key: str, entry: Entry) -> None:
        entry.used = self.clock()
        self._table.put_last(key, entry)
        if self.durable:
            # As it was given last; where not even its time can be written, that is tried again.
            with suppress(OSError):
                self._table.save(key, entry)

    def _trim(self) -> None:
        # What cannot be put on disk now stays held.
        with suppress(OSError):
            self._table.make_room(0)

    def _set_frozen(self, name: str, frozen: bool) -> None:
        with self._lock:
            entry, key = self._readable(name), key_of(name)
            if entry.frozen == frozen:
                return
            if self._files is not None:
                # Whole on disk first: the file's name says that it is frozen.
                self._table.save(key, entry)
                self._files.mark(key, frozen=frozen)
            entry.frozen = frozen


def _in_use(name: str) -> SessionInUseError:
    return SessionInUseError(f"The session {name!r} is in use: wait until it has been given back.")


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
