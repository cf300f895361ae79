"""The outermost layer of the app: key, size of the body, and what is measured of every request."""

import asyncio
import logging
import time
from contextlib import ExitStack

from starlette.routing import BaseRoute, Match

from titans_domains.serving.asgi import App, Message, Receive, Scope, Send, send_error
from titans_domains.serving.errors import ServiceError, stopping
from titans_domains.serving.service import Service

OPEN = ("/healthz", "/docs", "/openapi.json")
"""What is answered without a key: it says nothing of a session or of the model."""
WHILE_STOPPING = ("/healthz", "/metrics")

log = logging.getLogger("titans.serving")


class Guard:
    """Wraps an ASGI app."""

    def __init__(self, app: App, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        except ServiceError as error:
            if not status:
                await send_error(watched, error)
        except Exception as error:
            log.error("Internal error: %s: %s", type(error).__name__, error)
            if not status:
                await send_error(watched, ServiceError(500, "Something failed on our side."))
        finally:
            self._measure(scope, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.service.stopping and scope["path"] not in WHILE_STOPPING:
            raise stopping()
        scope["titans.owner"] = ""
        if scope["path"] not in OPEN:
            scope["titans.owner"] = self.service.owner(headers.get(b"authorization"))
            self.service.check_site(headers.get(b"host", ""), headers.get(b"origin"))
        with ExitStack() as held:
            body = await self._body(headers.get(b"content-length", "0"), receive, held)
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _body(self, announced: str, receive: Receive, held: ExitStack) -> bytes:
        """All of the body; 413 where it is too long, 408 where it does not come, 429 beside too many."""
        most = self.service.config.max_body
        too_long = ServiceError(
            413,
            f"The body must have at most {most} bytes: send less at once.",
            code="body_too_long",
        )
        if announced.isdecimal() and int(announced[:20]) > most:
            raise too_long
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.service.config.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ServiceError(400, "The client left before its request was complete.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_long
                    more = message.get("more_body", False)
                    # From its first bytes on.
                    if more and size == len(parts[-1]) > 0:
                        held.enter_context(self.service.receiving())
        except TimeoutError:
            raise ServiceError(408, "The body did not come in time: send it at once.") from None
        return b"".join(parts)

    def _measure(self, scope: Scope, status: int, seconds: float) -> None:
        # Of routes that are not there, names would be without end.
        route = getattr(scope.get("route") or _route(scope), "path", "other")
        # A client that has left has no status; proxies write 499.
        self.service.metrics.count("titans_requests_total", route=route, status=str(status or 499))
        self.service.metrics.observe("titans_request_seconds", seconds, route=route)


def _route(scope: Scope) -> BaseRoute | None:
    """The route of a request that was refused before it came to one."""
    routes = scope["app"].router.routes if "app" in scope else ()
    return next((one for one in routes if one.matches(scope)[0] is not Match.NONE), None)
