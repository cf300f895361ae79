"""What all routes share: the limits, who is let in, and how many are at work."""

import hashlib
import hmac
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

from titans_domains.serving.errors import ServiceError, stopping
from titans_domains.serving.metrics import Metrics
from titans_domains.serving.settings import ServeConfig


class Service:
    """Lives in the event loop's thread alone, but for its metrics."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.metrics = config, Metrics()
        self.begun = int(time.time())
        self.at_work = self.being_sent = 0
        self.stopping = False
        self._keys = [(_digest(key), owner) for key, owner in config.keys]

    def owner(self, authorization: str | None) -> str:
        """Whose sessions a request may use; 401 without the key that is asked for."""
        if not self._keys:
            return ""
        kind, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip() if kind.lower() == "bearer" else "")
        # Every key is compared, so that time tells nothing of which was close.
        found = [owner for known, owner in self._keys if hmac.compare_digest(known, given)]
        if not found:
            raise ServiceError(
                401, "The API key is missing or wrong: send it as Authorization: Bearer KEY.",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return found[0]

    @contextmanager
    def place(self) -> Iterator[None]:
        """Counts a request among those at work or waiting; 429 where there are as many as may be."""
        if self.stopping:
            raise stopping()
        self._check_room(self.at_work)
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Counts a body that is being sent, for which as many bytes may be held as for those at work."""
        self._check_room(self.being_sent)
        self.being_sent += 1
        try:
            yield
        finally:
            self.being_sent -= 1

    def check_site(self, host: str, origin: str | None) -> None:
        """403 for what a page of another site has a browser send, where no key keeps it out."""
        if self._keys:
            return
        known = self.config.hosts
        if known and _address(f"//{host}").hostname not in known:
            raise ServiceError(
                403, f"This service is asked at {known[0]}: ask there, or have it started with a key.",
                code="wrong_host",
            )  # fmt: skip
        if origin is not None and _address(origin).netloc != host:
            raise ServiceError(
                403, "A page of another site may not ask: have the service started with a key.",
                code="wrong_origin",
            )  # fmt: skip

    def _check_room(self, count: int) -> None:
        most = self.config.concurrency + self.config.queue
        if count >= most:
            raise ServiceError(
                429, f"The service is busy with {most} requests: ask again in a second.",
                code="too_many_requests", headers={"Retry-After": "1"},
            )  # fmt: skip

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.config.name:
            raise ServiceError(
                404, f"There is no model {name!r} here: the one that is served is {self.config.name!r}.",
                code="model_not_found", param="model",
            )  # fmt: skip


def _address(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def _digest(key: str) -> bytes:
    # Of one length, whatever was sent.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
