"""What a request asks of a language model, and its text as it comes."""

import codecs
from dataclasses import dataclass

import torch

from titans_domains.language.generate import check_sampling


@dataclass(frozen=True, kw_only=True)
class Sampling:
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of them

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_p)

    def random(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)


class TextOut:
    """Text of the bytes that tokens stand for, as soon as nothing that comes can take it back."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, piece: bytes) -> str:
        return self._out(self._decoder.decode(piece), last=False)

    def end(self) -> str:
        """What was held back, at the end of a text that no stop string has ended."""
        return self._out(self._decoder.decode(b"", final=True), last=True)

    def _out(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_begun(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _begun(text: str, stop: str) -> int:
    """Letters at the end of the text with which a stop string may have begun."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
