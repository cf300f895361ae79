"""What a language model is asked for, and what comes of it."""

from typing import Any, NamedTuple

import torch

from titans_domains.serving.sampling import Sampling, TextOut


class StoppedError(Exception):
    """The service stops before the request is answered."""


class NotFiniteError(Exception):
    """The model has no answer but NaN or infinity: something that was read has broken its memory."""


class Text(NamedTuple):
    """What has been added to the answer; nothing of it is taken back."""

    text: str


class Done(NamedTuple):
    """The answer is complete, and `state` has read the prompt and every token of it."""

    text: str  # what was not told before
    reason: str  # stop: by the model's end of the document or a stop string; length: by max_tokens
    tokens: int
    state: Any


class Failed(NamedTuple):
    error: Exception


Event = Text | Done | Failed


class Job:
    """A prompt to read on from a state (None: a fresh one) and to go on from.

    `keep` asks for the state at the end, `stream` for the text as it comes.
    """

    def __init__(
        self,
        ids: torch.Tensor,
        state: Any,
        sampling: Sampling,
        *,
        write: bool = True,
        keep: bool = False,
        stream: bool = False,
    ) -> None:
        self.ids, self.state, self.sampling = ids, state, sampling
        self.write, self.keep, self.stream = write, keep, stream
        self.out = TextOut(sampling.stop)
        self.text = ""  # what is still to be told
        self.random: Any = None
        self.tokens = 0
        self.last = 0  # the token that is not yet read
        self.reason: str | None = None  # why it ends, once it does
        self.cancelled = False
