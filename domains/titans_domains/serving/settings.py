"""What a service allows."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    name: str = "titans"  # of the model, as clients have it
    keys: tuple[tuple[str, str], ...] = ()  # API keys, each with whose sessions it opens
    hosts: tuple[str, ...] = ()  # names under which one without keys is asked; none: any
    max_body: int = 2**20  # bytes of a request
    max_prompt: int = 32_768  # tokens of a prompt
    max_tokens: int = 4096  # tokens made by a request
    concurrency: int = 64  # requests that are worked on at once
    queue: int = 256  # requests that wait
    grace: float = 30.0  # seconds that running requests have when the service stops
    body_seconds: float = 30.0  # that a client has to send its request

    def __post_init__(self) -> None:
        for name in ("max_body", "max_prompt", "max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}.")
        if self.queue < 0:
            raise ValueError(f"queue must be 0 or more: got {self.queue}.")
        for name in ("grace", "body_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 seconds or more: got {getattr(self, name)}.")


KEY = "TITANS_API_KEY"


def read_keys(path: Path | None) -> tuple[tuple[str, str], ...]:
    """The keys of a file, or that of the environment variable TITANS_API_KEY.

    A line holds a key, or a name and a key: sessions belong to the name, so that a key can be changed.
    Lines that begin with # are passed over.
    """
    if path is None:
        text, where = os.environ.get(KEY, ""), KEY
        if not text:
            return ()
    else:
        text, where = path.read_text(encoding="utf-8"), str(path)
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) > 2 or parts[-1].startswith("#") or not "".join(parts).isascii():
            # Nothing of it is shown: it may hold a key.
            raise ValueError(
                f"{where}, line {number}, must hold an ASCII key, or a name and a key: no key begins "
                "with #."
            )
        if parts[-1] in keys:
            raise ValueError(f"{where}, line {number}, holds a key twice: give each owner another.")
        keys[parts[-1]] = parts[0] if len(parts) == 2 else ""
    if not keys:
        raise ValueError(
            f"{where} holds no key: write an ASCII key, or a name and a key, in each line."
        )
    return tuple(keys.items())
