"""Serving a run until the process is asked to stop, and stopping so that nothing is lost."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from fastapi import FastAPI

from titans_domains.serving.app import Backend
from titans_domains.serving.asgi import in_thread
from titans_domains.serving.service import Service

TICK = 0.05
LAST_SECONDS = 5
"""For clients to take what they are told at the end."""


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them to `serve`, which lets running requests end while new ones are told to wait."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError that names the address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            stack.pop_all()
    except OSError as error:
        raise OSError(f"{host}, port {port}, cannot be listened at: {error.strerror}.") from error
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    app: FastAPI,
    service: Service,
    backend: Backend,
    listener: socket.socket,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Answers until SIGTERM or SIGINT, then ends by itself; a second signal cuts the waiting short."""
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_graceful_shutdown=LAST_SECONDS
    )
    asyncio.run(_serve(Server(config), service, backend, listener, ready))


async def _serve(
    server: Server,
    service: Service,
    backend: Backend,
    listener: socket.socket,
    ready: Callable[[], None],
) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Semaphore(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.release)
    try:
        await _answer(server, service, backend, listener, ready, asked)
    finally:
        # In the loop, where a further signal ends nothing before all is written.
        await in_thread(backend.close)


async def _answer(
    server: Server,
    service: Service,
    backend: Backend,
    listener: socket.socket,
    ready: Callable[[], None],
    asked: asyncio.Semaphore,
) -> None:
    serving = asyncio.ensure_future(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(TICK)
    if not server.started:
        raise RuntimeError("the server did not start")
    ready()
    stopping = asyncio.ensure_future(asked.acquire())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    service.stopping = True
    await _until_idle(service, asked, service.config.grace)
    # What is still running is told that the service stops, and its sessions stay as they were.
    await in_thread(backend.stop)
    await _until_idle(service, asked, LAST_SECONDS)
    server.should_exit = True
    await serving


async def _until_idle(service: Service, asked: asyncio.Semaphore, seconds: float) -> None:
    """Until nothing is at work, the time for that is over, or it is asked for again."""

    async def idle() -> None:
        while service.at_work:
            await asyncio.sleep(TICK)

    waits = {asyncio.ensure_future(idle()), asyncio.ensure_future(asked.acquire())}
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
