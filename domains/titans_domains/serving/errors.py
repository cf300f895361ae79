"""What is answered where a request fails: one sentence, in OpenAI's shape, and nothing of our insides."""

import errno
import json
from typing import Any

from titans_core.sessions import (
    FrozenSessionError,
    SessionExistsError,
    SessionInUseError,
    StoreFullError,
    UnknownSessionError,
    UnreadableSessionError,
)
from titans_domains.serving.jobs import NotFiniteError, StoppedError

STATUSES = {
    400: "the request says what cannot be done",
    401: "the key is missing or wrong",
    403: "a page of another site asks, or another host name is asked for",
    404: "there is no such session, model or route",
    405: "the route has no such method",
    408: "the body did not come in time",
    409: "the session is in use, is there already, was frozen just now, or cannot be read",
    413: "the body is too long",
    429: "too many requests: ask again after Retry-After",
    500: "the model or the disk failed: nothing was changed",
    503: "the service is stopping",
    507: "no room for a session: too many, or the disk is full",
}
"""What each status means, for those who ask."""


class ServiceError(Exception):
    """A refusal with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    @property
    def content(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    @property
    def body(self) -> bytes:
        return json.dumps(self.content).encode()


NO_USE = {"X-Should-Retry": "false"}
"""What OpenAI's client heeds, which else repeats every 409."""


def stopping() -> ServiceError:
    return ServiceError(
        503, "The service is stopping: ask again in a while.", code="stopping",
        headers={"Retry-After": "5"},
    )  # fmt: skip


SESSION_ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    UnknownSessionError: (
        404,
        "session_not_found",
        "There is no session {!r}: create it by POST /v1/sessions.",
    ),
    SessionExistsError: (409, "session_exists", "There is a session {!r} already: choose another."),
    SessionInUseError: (
        409,
        "session_in_use",
        "The session {!r} is in use by another request: wait for its end.",
    ),
    FrozenSessionError: (409, "session_frozen", "The session {!r} was frozen just now: ask again."),
    UnreadableSessionError: (
        409,
        "session_unreadable",
        "The session {!r} cannot be read, since its file is damaged or of another model: delete it.",
    ),
    StoreFullError: (507, "store_full", "There is no room for the session {!r}: delete another."),
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def session_error(error: Exception, session: str) -> ServiceError | None:
    """What to answer where a session could not be used."""
    for kind, (status, code, sentence) in SESSION_ERRORS.items():
        if isinstance(error, kind):
            headers = {} if kind is SessionInUseError else NO_USE
            message = sentence.format(session)
            return ServiceError(status, message, code=code, param="session", headers=headers)
    if isinstance(error, OSError):
        if error.errno in FULL:
            return ServiceError(
                507, "The disk is full, so no session could be changed.", code="disk_full"
            )
        return ServiceError(500, f"The session {session!r} could not be read or written.")
    return None


def job_error(error: Exception) -> ServiceError:
    """What to answer where the model could not be used."""
    if isinstance(error, StoppedError):
        return stopping()
    if isinstance(error, NotFiniteError):
        return ServiceError(
            500, "The model's answer is not finite after this prompt: nothing of it was kept.",
            code="not_finite",
        )  # fmt: skip
    return ServiceError(500, "The model could not answer: nothing was changed.")
