"""One request after the other, for models that answer a request as a whole."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Response

from titans_domains.serving.asgi import Receive, Send, send_json, when_left
from titans_domains.serving.errors import ServiceError, job_error, stopping
from titans_domains.serving.service import Service

log = logging.getLogger("titans.serving")

Work = Callable[[], dict[str, Any]]


class Queue:
    """A thread that owns the model; what waits goes when its client does."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="titans-model")
        self.running = 0

    def answer(self, work: Work) -> Response:
        return WorkAnswer(self, work)

    def stop(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def measure(self) -> None:
        metrics = self.service.metrics
        metrics.set("titans_active", self.running)
        metrics.set("titans_queued", max(0, self.service.at_work - self.running))


class Queued:
    """The life of a backend whose requests wait in a queue, and which keeps nothing of them."""

    def __init__(self, service: Service) -> None:
        self.service, self.queue = service, Queue(service)

    def start(self) -> None:
        """Nothing runs before the first request."""

    def stop(self) -> None:
        self.queue.stop()

    def close(self) -> None:
        """Nothing is kept."""

    @property
    def healthy(self) -> bool:
        return True

    def measure(self) -> None:
        self.queue.measure()


class WorkAnswer(Response):
    """Does the work of a request, and sends what has come of it."""

    def __init__(self, queue: Queue, work: Work) -> None:
        super().__init__()
        self.queue, self.work = queue, work

    def _work(self) -> dict[str, Any]:
        self.queue.running += 1
        try:
            return self.work()
        finally:
            self.queue.running -= 1

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        with self.queue.service.place():
            try:
                work = asyncio.get_running_loop().run_in_executor(self.queue.thread, self._work)
            except RuntimeError:
                raise stopping() from None
            left = asyncio.ensure_future(when_left(receive, lambda: work.cancel()))
            try:
                content = await work
            except ServiceError:
                raise
            except asyncio.CancelledError:
                if left.done():
                    return
                if self.queue.service.stopping:
                    raise stopping() from None
                raise
            except Exception as error:
                log.error("A request failed: %s: %s", type(error).__name__, error)
                raise job_error(error) from error
            finally:
                left.cancel()
            await send_json(send, content)
