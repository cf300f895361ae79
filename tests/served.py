"""A service in this process, asked as a client would ask it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from tiny_language import tiny_model

from titans_core import MemoryStore
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import ByteTokenizer
from titans_domains.serving.app import Backend, create_app
from titans_domains.serving.completions import Completions
from titans_domains.serving.service import Service
from titans_domains.serving.settings import ServeConfig

BYTES = ByteTokenizer()
AT = "/v1/completions"


def language(
    folder: Path | None = None, *, mixer: str = "lmm", **settings: Any
) -> Callable[[Service], Completions]:
    """A backend of a small model in float64; `settings` are the store's."""
    model = tiny_model(mixer=mixer, num_layers=1).double().requires_grad_(False)
    for parameter in model.parameters():
        # What was read has to show in what is said, and that in letters of one byte.
        parameter += 0.3 * torch.randn_like(parameter)
    model.embedding.weight[128:] = 0

    def make(service: Service) -> Completions:
        bounded = model.backbone.config.remembers
        store = MemoryStore(model.backbone, folder, **settings) if bounded else None
        return Completions(service, model, BYTES, store)

    return make


class Asked:
    """A service and a client of it."""

    def __init__(self, service: Service, backend: Any, client: httpx.AsyncClient, app: Any) -> None:
        self.service, self.backend, self.client, self.app = service, backend, client, app

    @property
    def model(self) -> LanguageModel:
        return self.backend.model

    async def complete(self, prompt: str = "a text", **body: Any) -> httpx.Response:
        return await self.client.post(AT, json={"prompt": prompt, **body})

    async def text(self, prompt: str = "a text", **body: Any) -> str:
        done = await self.complete(prompt, **body)
        assert done.status_code == 200, done.text
        return str(done.json()["choices"][0]["text"])

    async def session(self, name: str) -> dict[str, Any]:
        found = await self.client.get(f"/v1/sessions/{name}")
        return dict(found.json())

    async def create(self, name: str) -> None:
        made = await self.client.post("/v1/sessions", json={"id": name})
        assert made.status_code == 201, made.text


def run(
    make: Callable[[Service], Backend], test: Callable[[Asked], Awaitable[None]], **settings: Any
) -> None:
    """Runs a test against a service with these settings, and closes it."""

    async def all_of_it() -> None:
        async with running(make, **settings) as asked:
            await asyncio.wait_for(test(asked), 60)

    asyncio.run(all_of_it())


@asynccontextmanager
async def running(make: Callable[[Service], Backend], **settings: Any) -> AsyncIterator[Asked]:
    service = Service(ServeConfig(name="tiny", **settings))
    backend = make(service)
    app = create_app(service, backend)
    try:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=True),
                base_url="http://service",
            ) as client,
        ):
            yield Asked(service, backend, client, app)
    finally:
        backend.close()


def events(response: httpx.Response) -> list[Any]:
    """What a stream of server-sent events holds."""
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    texts = [part.removeprefix("data: ") for part in parts]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def assert_refused(response: httpx.Response, status: int, sentence: str) -> None:
    """One sentence in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert sentence in error["message"], error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text
    assert error["message"].endswith(".")
