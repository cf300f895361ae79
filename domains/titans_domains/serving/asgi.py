"""What the layers of the app share: the types of ASGI, an answer in JSON, and work in threads."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from titans_domains.serving.errors import ServiceError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")


async def send_json(
    send: Send, content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    body = json.dumps(content, allow_nan=False).encode()
    lines = {
        "content-type": "application/json", "content-length": str(len(body)), **(headers or {})
    }  # fmt: skip
    raw = [(name.lower().encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ServiceError) -> None:
    await send_json(send, error.content, error.status, error.headers)


async def in_thread(work: Callable[[], T]) -> T:
    """For what waits for the disk or a lock, so that nobody else waits with it."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def finally_in_thread(work: Callable[[], T]) -> T:
    """As `in_thread`, to its end, even where the request is cancelled meanwhile."""
    return await asyncio.shield(asyncio.ensure_future(in_thread(work)))


async def when_left(receive: Receive, then: Callable[[], object]) -> None:
    """Waits for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass
    then()
