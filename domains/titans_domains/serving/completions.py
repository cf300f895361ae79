"""POST /v1/completions: OpenAI's shape, on sessions whose memories go on from request to request."""

import asyncio
import logging

from fastapi import FastAPI, Request, Response

from titans_core import MemoryStore
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer
from titans_domains.serving.answers import Answer, Inbox
from titans_domains.serving.asgi import in_thread
from titans_domains.serving.bodies import CompletionBody
from titans_domains.serving.engine import Engine
from titans_domains.serving.jobs import Event, Job
from titans_domains.serving.service import Service
from titans_domains.serving.sessions import SessionRoutes

SWEEP_SECONDS = 60.0

log = logging.getLogger("titans.serving")


class Completions:
    """A language model behind its routes."""

    domain = "language"

    def __init__(
        self,
        service: Service,
        model: LanguageModel,
        tokenizer: Tokenizer,
        store: MemoryStore | None,
    ) -> None:
        self.service, self.model, self.tokenizer, self.store = service, model, tokenizer, store
        self.engine = Engine(model, tokenizer, self._tell, rows=service.config.concurrency)
        self.inboxes: dict[Job, Inbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add_routes(self, app: FastAPI) -> None:
        @app.post("/v1/completions", response_model=None)
        async def complete(body: CompletionBody, request: Request) -> Response:
            """Goes on from a prompt, in OpenAI's shape; with `session` from what that has read, too."""
            body.check_supported()
            self.service.check_model(body.model)
            return Answer(self, body, request.scope["titans.owner"])

        SessionRoutes(self.store).add_routes(app)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.engine.start()
        if self.store is not None and self.store.ttl is not None:
            self._sweeping = asyncio.ensure_future(self._sweep(self.store, self.store.ttl))

    async def _sweep(self, store: MemoryStore, ttl: float) -> None:
        """Forgets sessions in time, though nobody asks for any."""
        while True:
            await asyncio.sleep(min(ttl / 4, SWEEP_SECONDS))
            try:
                await in_thread(store.sweep)
            except OSError as error:
                log.error("Sessions could not be forgotten: %s", error)

    def stop(self) -> None:
        """Ends what is running; then the sessions are as they were given last."""
        self.engine.stop()

    def close(self) -> None:
        if self.store is not None:
            self.store.close()

    @property
    def healthy(self) -> bool:
        return self.engine.alive

    def measure(self) -> None:
        """What the metrics show beside what is counted; waits for the store."""
        metrics, engine = self.service.metrics, self.engine
        metrics.set("titans_tokens_total", engine.tokens_read, kind="prompt")
        metrics.set("titans_tokens_total", engine.tokens_made, kind="completion")
        metrics.set("titans_active", engine.active)
        metrics.set("titans_queued", engine.waiting)
        if self.store is not None:
            for where, count in zip(("process", "disk"), self.store.count(), strict=True):
                metrics.set("titans_sessions", count, where=where)

    def _tell(self, events: list[tuple[Job, Event]]) -> None:
        # One call for all: each wakes the loop.
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._sort, events)

    def _sort(self, events: list[tuple[Job, Event]]) -> None:
        for job, event in events:
            if job in self.inboxes:
                self.inboxes[job].put_nowait(event)
