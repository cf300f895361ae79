"""What a `MemoryStore` says of a session, and why it refuses one."""

import hashlib
from typing import Any, NamedTuple

from titans_core.memory_file import content_hash
from titans_core.state import named_tensors

MOST_LETTERS = 128


class UnknownSessionError(ValueError):
    """There is no such session, or there is none any more."""


class SessionExistsError(ValueError):
    """There is a session of this name already."""


class SessionInUseError(ValueError):
    """Somebody has taken the session, or reads it, and has not given it back."""


class FrozenSessionError(ValueError):
    """The session is protected from being written."""


class UnreadableSessionError(ValueError):
    """The session's file is damaged, gone, or of another model."""


class StoreFullError(ValueError):
    """There is no room for another session."""


class About(NamedTuple):
    positions: int  # tokens read since its document began
    size: int  # bytes of its state
    frozen: bool
    in_use: bool
    sha256: str  # of the state that it goes on from


class Listed(NamedTuple):
    label: str  # its name, or what it was given to be listed as
    positions: int | None  # tokens read since its document began; None where its file does not say
    frozen: bool
    in_use: bool


class Receipt(NamedTuple):
    """That nothing of a session is left: what its name goes on from now, beside a fresh session."""

    positions: int | None  # tokens that were forgotten; None where its file could not be read
    sha256: str
    fresh_sha256: str
    deleted_sha256: (
        str | None
    )  # of the state that was forgotten, as `about` shows it; None as above


class Session:
    """A session that is taken: the state it goes on from, to be replaced by the one it comes to."""

    def __init__(self, state: Any) -> None:
        self.state = state


def key_of(name: str) -> str:
    """What a session is kept under: of its name the SHA-256, so that no name leaves a folder."""
    printable = isinstance(name, str) and name.isascii() and name.isprintable()
    if not printable or not 1 <= len(name) <= MOST_LETTERS:
        raise ValueError(
            f"A session's name must be 1 to {MOST_LETTERS} printable ASCII characters: got {name!r}."
        )
    return hashlib.sha256(name.encode()).hexdigest()


def state_hash(state: Any) -> str:
    """SHA-256 of the names, shapes, dtypes and numbers of a state."""
    return content_hash(named_tensors(state))


def positions_of(state: Any) -> int:
    """Tokens that the one row of a state has read; every layer has read them all."""
    return int(next(x for name, x in named_tensors(state).items() if name.endswith("position"))[0])
