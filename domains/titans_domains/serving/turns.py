"""A session's part in a request: taken once, and given back once, whatever happens in between."""

import threading
from typing import Any

from titans_core import MemoryStore
from titans_core.sessions import positions_of
from titans_domains.serving.errors import ServiceError, session_error


class Turn:
    """Its methods wait for the disk, so they are called in threads; they come in any order.

    Without a session there is nothing to take, and the document begins with the request.
    """

    def __init__(self, store: MemoryStore | None, name: str, shown: str | None) -> None:
        self.store, self.name, self.shown = store, name, shown
        self.state: Any = None
        self.frozen = False
        self._lock = threading.Lock()
        self._over = False

    @property
    def kept(self) -> bool:
        """Whether the state at the end is asked for."""
        return self.state is not None and not self.frozen

    @property
    def begins(self) -> bool:
        """Whether a document begins with this request."""
        return self.state is None or positions_of(self.state) == 0

    def take(self) -> None:
        if self.store is None or self.shown is None:
            return
        with self._lock:
            if self._over:
                return
            try:
                # Of a frozen one nothing changes, so that many may read it at once.
                frozen = self.store.is_frozen(self.name)
                self.state, self.frozen = self.store.take(self.name, write=not frozen), frozen
            except (ValueError, OSError) as error:
                raise self._said(error) from error

    def keep(self, state: Any) -> None:
        """Gives the session back with what it has read; as it was where that fails."""
        with self._lock:
            if self._over or not self.kept:
                return
            self._over = True
            assert self.store is not None
            try:
                self.store.give(self.name, state)
            except BaseException as error:
                self.store.release(self.name)
                if isinstance(error, ValueError | OSError):
                    raise self._said(error) from error
                raise

    def drop(self) -> None:
        """Gives the session back as it was, unless it was given back already."""
        with self._lock:
            if self._over:
                return
            self._over = True
            if self.state is not None and self.store is not None:
                self.store.release(self.name)

    def _said(self, error: Exception) -> ServiceError:
        return session_error(error, self.shown or "") or ServiceError(
            500, "What the session has come to is not finite, so it stays as it was.",
            code="not_finite",
        )  # fmt: skip
