"""The routes that every domain has, around those of one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from titans_core import __version__
from titans_domains.serving.asgi import in_thread
from titans_domains.serving.bodies import sentence_of
from titans_domains.serving.errors import ServiceError
from titans_domains.serving.guard import Guard
from titans_domains.serving.pages import add_pages
from titans_domains.serving.service import Service


class Backend(Protocol):
    """A model behind its routes."""

    domain: str

    def add_routes(self, app: FastAPI) -> None: ...

    def start(self) -> None:
        """Called in the event loop before the first request."""
        ...

    def stop(self) -> None:
        """Ends what is running."""
        ...

    def close(self) -> None:
        """Brings to the disk what has to outlive the process."""
        ...

    @property
    def healthy(self) -> bool: ...

    def measure(self) -> None:
        """Brings the metrics up to date; called in a thread."""
        ...


def create_app(service: Service, backend: Backend) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend.start()
        yield
        await in_thread(backend.stop)

    app = FastAPI(
        title="titans", version=__version__, lifespan=lifespan, redirect_slashes=False,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.add_middleware(Guard, service=service)
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_there)
    _add_common(app, service, backend)
    backend.add_routes(app)
    add_pages(app, service.config)
    return app


def _add_common(app: FastAPI, service: Service, backend: Backend) -> None:
    model = {
        "id": service.config.name, "object": "model", "created": service.begun,
        "owned_by": "titans", "domain": backend.domain,
    }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """It again, by its name."""
        service.check_model(name)
        return model

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """Whether it answers: 200, or 503."""
        if service.stopping or not backend.healthy:
            word = "stopping" if service.stopping else "failed"
            return JSONResponse({"status": word}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counters and times, as Prometheus reads them."""
        await in_thread(backend.measure)
        text = service.metrics.text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return JSONResponse(error.content, error.status, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, sentence_of(error.errors()))


async def _not_there(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: another path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    sentence = {
        404: f"There is no {request.url.path} here: see /docs.",
        405: f"{request.method} is not for {request.url.path}: see /docs.",
    }.get(error.status_code, "The body is no JSON: send a JSON object.")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_json")
    headers = dict(error.headers or {})
    refused = ServiceError(error.status_code, sentence, code=code, headers=headers)
    return await _refused(request, refused)
