"""What `serving.py` has locust do: clients that ask for completions, with and without a session.

Of 64 clients half go on with a session of their own and half begin anew each time; every other request is
streamed. What a client asks for is drawn by its number alone, so that two runs ask for the same.
"""

import http.client
import itertools
import json
import random
import time
from typing import Any
from urllib.parse import urlsplit

from locust import User, constant, events, task

TEXT = (
    "the memory of a text that was read before it is asked and what nobody has said of winter rivers "
    "or long roads where children learn to write their names in sand until the tide has come"
)
WORDS = TEXT.split()
NUMBERS = itertools.count()


class Client(User):
    wait_time = constant(0)

    def on_start(self) -> None:
        number = next(NUMBERS)
        self.lots = random.Random(number)
        at = urlsplit(self.host)
        self.connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=600)
        self.session = f"client-{number}" if number % 2 else None
        if self.session:
            self.call("/v1/sessions", {"id": self.session}, "session", stream=False)

    @task
    def complete(self) -> None:
        lots = self.lots
        body = {
            "prompt": " ".join(lots.choices(WORDS, k=lots.choice([2, 8, 24, 80]))) + " ",
            "max_tokens": lots.choice([16, 64, 128, 256]),
            "temperature": lots.choice([0, 1]),
            "seed": lots.randrange(2**31),
            "stream": lots.random() < 0.5,
        }
        if self.session:
            body["session"] = self.session
        self.call("/v1/completions", body, "completion", stream=bool(body["stream"]))

    def call(self, path: str, body: dict[str, Any], name: str, *, stream: bool) -> None:
        """One request; its time, that of its first token, and as its length the tokens made."""
        began, tokens, error = time.perf_counter(), 0, None
        try:
            headers = {"Content-Type": "application/json"}
            self.connection.request("POST", path, json.dumps(body), headers)
            response = self.connection.getresponse()
            if stream and response.status == 200:
                tokens = self.read_stream(response, began)
            else:
                content = json.loads(response.read())
                tokens = content.get("usage", {}).get("completion_tokens", 0)
                if response.status >= 300:
                    error = RuntimeError(f"{response.status}: {content['error']['message']}")
        except (OSError, http.client.HTTPException, ValueError, RuntimeError) as caught:
            error = caught
            self.connection.close()
        fire(name, began, tokens, error)

    def read_stream(self, response: http.client.HTTPResponse, began: float) -> int:
        """The tokens of a stream, which are counted by the letters: of bytes, each is one."""
        tokens, last = 0, b""
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if not tokens:
                fire("first token", began, 0, None)
            tokens, last = tokens + 1, line.strip()
        if last != b"data: [DONE]":
            raise RuntimeError(f"a stream ended with {last[:200]!r}")
        return tokens - 1


def fire(name: str, began: float, length: int, error: Exception | None) -> None:
    events.request.fire(
        request_type="POST", name=name, response_time=1000 * (time.perf_counter() - began),
        response_length=length, exception=error, context={},
    )  # fmt: skip
