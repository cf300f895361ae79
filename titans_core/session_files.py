"""Sessions of one model in a folder: a memory file for each, whose name also says whether it is frozen."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from titans_core.backbone import Backbone
from titans_core.files import lock_file, sync_folder, write_whole
from titans_core.memory_file import ModelIdentity, load_memory, notes_of, save_memory
from titans_core.sessions import UnreadableSessionError, positions_of

SCHEMA = 1
MODEL = "model.json"
LOCK = ".lock"
NAME = re.compile(r"([0-9a-f]{64})(\.frozen)?\.memory")
DRAFT = re.compile(r"\.(model\.json|[0-9a-f]{64}(\.frozen)?\.memory)\.\d+\.tmp")


class SessionFile(NamedTuple):
    key: str
    path: Path
    used: float  # when the session was used last: the file's time of change
    frozen: bool

    def notes(self) -> tuple[str | None, int | None]:
        """Label and positions; None where an earlier version wrote the file, or it is damaged."""
        found = notes_of(self.path)
        label, positions = found.get("label"), found.get("positions")
        return (
            label if isinstance(label, str) else None,
            positions if type(positions) is int else None,
        )


class SessionFiles:
    """The folder is this store's alone, and its model's, as long as it is open."""

    def __init__(self, folder: Path, model: Backbone, identity: ModelIdentity) -> None:
        self.folder, self.model, self.identity = folder, model, identity
        # What was read is somebody's data, and nobody else's on this machine.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lock = lock_file(
            folder / LOCK,
            f"{folder} is in use by another process: stop it, or take another folder for sessions.",
        )
        try:
            self._check_model()
        except BaseException:
            self.close()
            raise

    def _check_model(self) -> None:
        path, ours = self.folder / MODEL, {"schema": SCHEMA, **self.identity._asdict()}
        if not path.exists():
            write_whole(path, json.dumps(ours, indent=1) + "\n")
            return
        try:
            theirs = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            theirs = None
        if theirs != ours:
            raise ValueError(
                f"{self.folder} holds the sessions of another model, or of this one at another point of "
                "its training: take another folder, or serve the model that they are of."
            )

    def close(self) -> None:
        self.lock.close()

    def found(self) -> list[SessionFile]:
        """The sessions, that which was used the longest ago first; removes what a crash left half written."""
        files = {}
        for path in sorted(self.folder.iterdir()):
            if DRAFT.fullmatch(path.name):
                path.unlink()
            elif match := NAME.fullmatch(path.name):
                key, frozen = match[1], match[2] is not None
                # A frozen one stays so beside a copy that a backup has put back.
                if key not in files or frozen:
                    files[key] = SessionFile(key, path, path.stat().st_mtime, frozen)
        return sorted(files.values(), key=lambda file: file.used)

    def path(self, key: str, *, frozen: bool) -> Path:
        return self.folder / f"{key}{'.frozen' * frozen}.memory"

    def save(self, key: str, state: Any, *, frozen: bool, label: str | None) -> None:
        path = self.path(key, frozen=frozen)
        # The draft that `write_whole` goes on with: at no time may anybody else open it.
        path.with_name(f".{path.name}.{os.getpid()}.tmp").touch(mode=0o600)
        notes: dict[str, str | int] = {"positions": positions_of(state)}
        if label is not None:
            notes["label"] = label
        save_memory(path, state, self.model, caches=True, identity=self.identity, notes=notes)

    def load(self, key: str, *, frozen: bool) -> Any:
        """The state that was saved; `UnreadableSessionError` where it cannot be read."""
        try:
            return load_memory(self.path(key, frozen=frozen), self.model, identity=self.identity)
        except (ValueError, FileNotFoundError, IsADirectoryError) as error:
            raise UnreadableSessionError(
                "A session cannot be read: its file is damaged, gone, or of another model. Delete the "
                "session and create it anew."
            ) from error

    def touch(self, key: str, used: float, *, frozen: bool) -> None:
        os.utime(self.path(key, frozen=frozen), (used, used))

    def mark(self, key: str, *, frozen: bool) -> None:
        os.replace(self.path(key, frozen=not frozen), self.path(key, frozen=frozen))
        sync_folder(self.folder)

    def delete(self, key: str) -> None:
        for frozen in (False, True):
            self.path(key, frozen=frozen).unlink(missing_ok=True)
        sync_folder(self.folder)

    def holds(self, key: str) -> bool:
        """Whether anything of a session is there."""
        return any(self.path(key, frozen=frozen).exists() for frozen in (False, True))
