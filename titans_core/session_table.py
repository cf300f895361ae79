"""The table behind a `MemoryStore`: sessions in the order of their use, in the process or on disk alone."""

from itertools import takewhile
from typing import Any

from titans_core.session_files import SessionFiles
from titans_core.sessions import positions_of

TRIES = 8
"""Sessions that are tried in turn before a disk is held to take none."""
NAMED = 20
"""Sessions that are named of those that could not be written."""


class Entry:
    """A session. Without a state it is on disk; `saved` is whether what is there is its newest."""

    def __init__(
        self,
        state: Any,
        used: float,
        *,
        saved: bool,
        frozen: bool = False,
        label: str | None = None,
        positions: int | None = None,
    ) -> None:
        self.state, self.used, self.saved, self.frozen = state, used, saved, frozen
        self.label = label
        self.positions = positions if state is None else positions_of(state)
        self.in_use, self.readers = False, 0

    @property
    def busy(self) -> bool:
        return self.in_use or self.readers > 0


class SessionTable:
    """Holds at most `in_process` sessions that nobody uses, as far as the others can be written."""

    def __init__(self, files: SessionFiles | None, in_process: int, now: float) -> None:
        self.files, self.in_process = files, in_process
        # Of all, and of those with a state, the one that was used the longest ago stands first.
        self.entries: dict[str, Entry] = {}
        self.held: dict[str, Entry] = {}
        for file in files.found() if files else ():
            # A clock that was wrong then must not keep those that come behind.
            used = min(file.used, now)
            label, positions = file.notes()
            self.entries[file.key] = Entry(
                None, used, saved=True, frozen=file.frozen, label=label, positions=positions
            )

    def put_last(self, key: str, entry: Entry) -> None:
        self.entries.pop(key, None)
        self.held.pop(key, None)
        self.entries[key] = entry
        if entry.state is not None:
            self.held[key] = entry

    def remove(self, key: str) -> None:
        if self.files is not None:
            self.files.delete(key)
        del self.entries[key]
        self.held.pop(key, None)

    def state_of(self, key: str, entry: Entry) -> Any:
        if entry.state is not None:
            return entry.state
        assert self.files is not None
        return self.files.load(key, frozen=entry.frozen)

    def load(self, key: str, entry: Entry) -> None:
        """Brings a session into the process, where there must be room before anything is changed."""
        if entry.state is None:
            self.make_room(1)
            entry.state = self.state_of(key, entry)
            entry.positions = positions_of(entry.state)
            self.held[key] = entry

    def make_room(self, more: int) -> None:
        """Puts sessions that nobody uses on disk, until so many more may be held.

        One that cannot be written is passed over; OSError where there is no room because of it.
        """
        if self.files is None or len(self.held) + more <= self.in_process:
            return
        failed: list[OSError] = []
        for key, entry in [(k, e) for k, e in self.held.items() if not e.busy]:
            if len(self.held) + more <= self.in_process:
                return
            if len(failed) == TRIES:
                break
            del self.held[key]
            try:
                self.save(key, entry)
                entry.state = None
            except OSError as error:
                failed.append(error)
            finally:
                if entry.state is not None:
                    # Others are tried before it the next time.
                    self.held[key] = entry
        if failed and len(self.held) + more > self.in_process:
            raise failed[0]

    def save(self, key: str, entry: Entry) -> None:
        if self.files is None or entry.state is None:
            return
        if not (entry.saved and self.files.path(key, frozen=entry.frozen).exists()):
            self.files.save(key, entry.state, frozen=entry.frozen, label=entry.label)
            entry.saved = True
        self.files.touch(key, entry.used, frozen=entry.frozen)

    def save_all(self) -> None:
        """Tries every session, so that one that cannot be written costs no other; OSError at the end."""
        failed: list[tuple[str, OSError]] = []
        for key, entry in self.held.items():
            try:
                self.save(key, entry)
            except OSError as error:
                failed.append(((entry.label or key).strip(), error))
        if failed:
            names, first = [name for name, _ in failed], failed[0][1]
            shown = ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
            raise OSError(
                first.errno,
                f"{len(failed)} sessions could not be brought to the disk: "
                f"{first.strerror or first} ({shown}).",
            ) from first

    def sweep(self, over: float) -> tuple[int, dict[str, OSError]]:
        """Removes the sessions that nobody has used since then: how many, and which could not be."""
        old = list(takewhile(lambda item: item[1].used < over, self.entries.items()))
        failed: dict[str, OSError] = {}
        gone = 0
        for key, entry in old:
            if entry.busy:
                continue
            try:
                self.remove(key)
                gone += 1
            except OSError as error:
                failed[key] = error
        return gone, failed
