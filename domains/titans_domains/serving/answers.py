"""One request for a completion, from its session's memory to the last word of the answer."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import Response

from titans_domains.language.reading import stream_of
from titans_domains.serving.asgi import (
    Receive,
    Send,
    finally_in_thread,
    in_thread,
    send_json,
    when_left,
)
from titans_domains.serving.bodies import CompletionBody
from titans_domains.serving.errors import ServiceError, job_error, stopping
from titans_domains.serving.jobs import Done, Event, Failed, Job, StoppedError, Text
from titans_domains.serving.sampling import Sampling
from titans_domains.serving.sessions import checked_store, name_of
from titans_domains.serving.turns import Turn

if TYPE_CHECKING:
    from titans_domains.serving.completions import Completions

Inbox = asyncio.Queue[Event | None]
"""What comes of a job; None where the client has left."""

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")
]  # fmt: skip


class Answer(Response):
    """Does all of a request, so that its session and its place are given back in one place."""

    def __init__(self, to: "Completions", body: CompletionBody, owner: str) -> None:
        super().__init__()
        self.to, self.asked = to, body
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        store = None if body.session is None else checked_store(to.store)
        self.turn = Turn(store, name_of(owner, body.session or ""), body.session)
        self.prompt_tokens = 0
        self.left: Callable[[], bool] = lambda: False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        with self.to.service.place():
            try:
                job = await in_thread(self._prepare)
                await self._run(job, receive, send, began)
            finally:
                if self.turn.store is not None:
                    await finally_in_thread(self.turn.drop)

    def _prepare(self) -> Job:
        """The job of this request, with its session taken."""
        asked, limits, turn = self.asked, self.to.service.config, self.turn
        most = min(16, limits.max_tokens) if asked.max_tokens is None else asked.max_tokens
        if most > limits.max_tokens:
            raise ServiceError(
                400, f"max_tokens must be at most {limits.max_tokens}: got {most}.",
                param="max_tokens", code="too_many_tokens",
            )  # fmt: skip
        try:
            text = asked.prompt.encode()
        except UnicodeEncodeError as error:
            raise ServiceError(
                400, f"prompt must be text: letter {error.start} is half of one.", param="prompt"
            ) from None
        try:
            ids = stream_of(self.to.tokenizer, text, state=())
        except ValueError as error:
            raise ServiceError(400, str(error), param="prompt", code="invalid_value") from None
        self.prompt_tokens = len(ids)
        if len(ids) > limits.max_prompt:
            raise ServiceError(
                400, f"prompt must have at most {limits.max_prompt} tokens: got {len(ids)}. Read a long "
                "text into a session, a piece at a time with max_tokens 0.",
                param="prompt", code="context_length_exceeded",
            )  # fmt: skip
        turn.take()
        if turn.begins:
            ids = stream_of(self.to.tokenizer, text)
        if not len(ids):
            raise ServiceError(
                400, "prompt is empty: give at least one character to go on from.", param="prompt"
            )
        sampling = Sampling(
            max_tokens=most,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            stop=asked.stops,
        )
        return Job(
            ids, turn.state, sampling,
            write=not turn.frozen, keep=turn.kept, stream=bool(asked.stream),
        )  # fmt: skip

    async def _run(self, job: Job, receive: Receive, send: Send, began: float) -> None:
        inbox: Inbox = asyncio.Queue()
        self.to.inboxes[job] = inbox
        left = asyncio.ensure_future(when_left(receive, lambda: inbox.put_nowait(None)))
        self.left = left.done
        try:
            self._submit(job)
            first = await inbox.get()
            if isinstance(first, Text | Done):
                seconds = time.perf_counter() - began
                self.to.service.metrics.observe("titans_first_token_seconds", seconds)
            if self.asked.stream:
                await self._stream(first, inbox, send)
            elif first is not None:
                await self._whole(first, send)
        finally:
            left.cancel()
            del self.to.inboxes[job]
            self.to.engine.cancel(job)

    def _submit(self, job: Job) -> None:
        try:
            self.to.engine.submit(job)
        except StoppedError:
            raise stopping() from None

    async def _whole(self, event: Event, send: Send) -> None:
        if (done := await self._settled(event)) is None:
            return
        content = {**self._object(done.text, done.reason), "usage": self._usage(done)}
        await send_json(send, content)

    async def _stream(self, event: Event | None, inbox: Inbox, send: Send) -> None:
        """Server-sent events; what fails before the first is answered as any other failure is."""
        begun = False

        async def data(content: dict[str, Any] | str) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
            text = content if isinstance(content, str) else json.dumps(content)
            await send(
                {
                    "type": "http.response.body",
                    "body": f"data: {text}\n\n".encode(),
                    "more_body": True,
                }
            )

        options = self.asked.stream_options
        counted = bool(options and options.include_usage)
        empty = {"usage": None} if counted else {}
        try:
            while isinstance(event, Text):
                await data({**self._object(event.text, None), **empty})
                event = await inbox.get()
            if event is None:
                return
            if (done := await self._settled(event)) is None:
                return
            await data({**self._object(done.text, done.reason), **empty})
            if counted:
                await data({**self._object("", None), "choices": [], "usage": self._usage(done)})
            await data("[DONE]")
        except ServiceError as error:
            if not begun:
                raise
            await data(error.content)
        await send({"type": "http.response.body", "body": b""})

    async def _settled(self, event: Event) -> Done | None:
        """The end, once the session has been given back; None where the client left before that."""
        if isinstance(event, Failed):
            raise job_error(event.error)
        assert isinstance(event, Done)
        # The engine may be far ahead of what the client has been sent.
        if self.left():
            return None
        await in_thread(lambda: self.turn.keep(event.state))
        return event

    def _object(self, text: str, reason: str | None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
        found = {
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.to.service.config.name, "choices": [choice],
        }  # fmt: skip
        return found if self.asked.session is None else {**found, "session": self.asked.session}

    def _usage(self, done: Done) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": done.tokens,
            "total_tokens": self.prompt_tokens + done.tokens,
        }  # fmt: skip
