"""/v1/sessions: making memories, looking at them, protecting and deleting them."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from titans_core import MemoryStore
from titans_domains.serving.asgi import T, in_thread
from titans_domains.serving.bodies import SessionBody
from titans_domains.serving.errors import ServiceError, session_error

Limit = Annotated[int, Query(ge=1, le=1000)]


class SessionRoutes:
    def __init__(self, store: MemoryStore | None) -> None:
        self.store = store

    def add_routes(self, app: FastAPI) -> None:
        @app.post("/v1/sessions", status_code=201)
        async def create(request: Request, body: SessionBody | None = None) -> dict[str, Any]:
            """A new memory; without `id` under a name that cannot be guessed."""
            # One that is given out cannot be guessed.
            session = (body and body.id) or f"sess-{secrets.token_hex(16)}"
            label = label_of(request.scope["titans.owner"], session)
            await self._use(request, session, lambda store, name: store.create(name, label=label))
            return await self._shown(request, session)

        @app.get("/v1/sessions")
        async def every(request: Request, limit: Limit = 100, after: str = "") -> dict[str, Any]:
            """The asker's own, by name: at most `limit`, from the first that comes after `after` on."""
            mine = label_of(request.scope["titans.owner"], "")
            store = checked_store(self.store)
            # One more, to know whether there is.
            try:
                found = await in_thread(
                    lambda: store.listed(mine, after=mine + after, most=limit + 1)
                )
            except OSError as error:
                raise session_error(error, "") or error from error
            data = [
                {
                    "id": one.label.removeprefix(mine), "object": "session",
                    "positions": one.positions, "frozen": one.frozen, "in_use": one.in_use,
                }
                for one in found[:limit]
            ]  # fmt: skip
            return {"object": "list", "data": data, "has_more": len(found) > limit}

        @app.get("/v1/sessions/{session}")
        async def look(request: Request, session: str) -> dict[str, Any]:
            """What a session has read, as numbers: positions, bytes, SHA-256."""
            return await self._shown(request, session)

        @app.post("/v1/sessions/{session}/freeze")
        async def freeze(request: Request, session: str) -> dict[str, Any]:
            """Protects it from being written; then many may read it at once."""
            await self._use(request, session, lambda store, name: store.freeze(name))
            return await self._shown(request, session)

        @app.post("/v1/sessions/{session}/thaw")
        async def thaw(request: Request, session: str) -> dict[str, Any]:
            """Ends that."""
            await self._use(request, session, lambda store, name: store.thaw(name))
            return await self._shown(request, session)

        @app.delete("/v1/sessions/{session}")
        async def delete(request: Request, session: str) -> JSONResponse:
            """Forgets it, with a receipt: the hash of what was deleted, and of what its name is now."""
            receipt = await self._use(request, session, lambda store, name: store.forget(name))
            return JSONResponse(
                {"id": session, "object": "session.deleted", "deleted": True, **receipt._asdict()}
            )

    async def _shown(self, request: Request, session: str) -> dict[str, Any]:
        about = await self._use(request, session, lambda store, name: store.about(name))
        return {
            "id": session, "object": "session", "positions": about.positions, "bytes": about.size,
            "frozen": about.frozen, "in_use": about.in_use, "sha256": about.sha256,
        }  # fmt: skip

    async def _use(self, request: Request, session: str, use: Callable[[MemoryStore, str], T]) -> T:
        store = checked_store(self.store)
        name = name_of(request.scope["titans.owner"], session)
        try:
            return await in_thread(lambda: use(store, name))
        except (ValueError, OSError) as error:
            raise session_error(error, session) or error from error


def label_of(owner: str, session: str) -> str:
    """What a session is listed as: no owner's name holds a blank."""
    return f"{owner} {session}"


def name_of(owner: str, session: str) -> str:
    """What a session is kept under: one owner's never has the name of another's."""
    return hashlib.sha256(f"{owner}\n{session}".encode("utf-8", "surrogateescape")).hexdigest()


def checked_store(store: MemoryStore | None) -> MemoryStore:
    if store is None:
        raise ServiceError(
            400, "This model has no memory of bounded size that a session could keep: leave session "
            "away.", code="no_sessions", param="session",
        )  # fmt: skip
    return store
