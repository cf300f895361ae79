"""One thread that owns a language model and answers many requests at once.

Between two steps of the batch, in which each running request gets a token, it reads pieces of the prompts
that are waiting, each in turn: so a long prompt holds up the others for no longer than a piece takes.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from titans_domains.language.generate import pick_rows
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer
from titans_domains.serving.jobs import Done, Event, Failed, Job, NotFiniteError, StoppedError, Text
from titans_domains.serving.slots import Slots

PIECE = 128
"""Tokens of a prompt that are read between two steps of the batch. A stream may be cut anywhere."""

log = logging.getLogger("titans.serving")


Tell = Callable[[list[tuple[Job, Event]]], None]


class Engine:
    """Answers jobs in a thread of its own, at most `rows` at once, and tells what has come of them.

    `tell` is called in that thread with the events of a step, in order for each job; nothing is told of a
    job after it was cancelled.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, tell: Tell, *, rows: int
    ) -> None:
        self.model, self.tokenizer, self.tell, self.rows = model.eval(), tokenizer, tell, rows
        self.slots = {write: Slots(model, write=write) for write in (True, False)}
        self.reading: deque[Job] = deque()
        self.running: list[Job] = []
        self.events: list[tuple[Job, Event]] = []
        self.tokens_read = self.tokens_made = 0
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.thread = threading.Thread(target=self._work, name="titans-engine", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def submit(self, job: Job) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Ends a job of which nothing more is to be told."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """Ends every job with `StoppedError`, and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.thread.join()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    @property
    def active(self) -> int:
        return len(self.reading) + len(self.running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _work(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._read_prompts()
                self._step()
            # A fault of ours, or no memory left: no state of the batch can be relied on.
            except Exception as error:
                self._lose(error)
            self._report()
        self.reading.extend(self._waiting)
        self._waiting.clear()
        self._lose(StoppedError())
        self._report()

    def _wait(self) -> bool:
        """Until there is work; False when the engine stops."""
        with self._changed:
            while not (self._stopping or self.reading or self.running or self._waiting):
                self._changed.wait()
            return not self._stopping

    def _admit(self) -> None:
        """Takes what has been asked for meanwhile, and leaves what is not wanted any more."""
        with self._changed:
            for job in [job for job in [*self._waiting, *self.reading] if job.cancelled]:
                (self._waiting if job in self._waiting else self.reading).remove(job)
            gone = [job for job in self.running if job.cancelled]
            while self._waiting and self.active - len(gone) < self.rows:
                self.reading.append(self._waiting.popleft())
        for job in gone:
            self._end(job)

    def _read_prompts(self) -> None:
        """Reads at most `PIECE` tokens of prompts, each in turn."""
        left = PIECE
        while self.reading and left > 0:
            job = self.reading[0]
            piece, job.ids = job.ids[:left], job.ids[left:]
            left -= len(piece)
            try:
                logits = self._read(job, piece)
                if len(job.ids):
                    self.reading.rotate(-1)
                    continue
                self._begin(job, logits)
            # Whatever one prompt runs into, the others go on.
            except Exception as error:
                self._fail(job, error)
            self.reading.remove(job)

    @torch.no_grad()
    def _read(self, job: Job, piece: torch.Tensor) -> torch.Tensor:
        if job.state is None:
            job.state = self.model.backbone.fresh_state(1)
        tokens = piece.to(self.model.embedding.weight.device)[None]
        logits, job.state = self.model(tokens, job.state, write=job.write)
        self.tokens_read += len(piece)
        return logits[0, -1]

    def _begin(self, job: Job, logits: torch.Tensor) -> None:
        """The prompt has been read: its first token, and its place in the batch."""
        if job.sampling.max_tokens == 0:
            self._finish(job, "length", job.state)
            return
        job.random = job.sampling.random(logits.device)
        state, job.state = job.state, None
        going, ended = self._choose({job: logits})
        if going:
            self.slots[job.write].enter(job, state)
            self.running.append(job)
        for _ in ended:
            self._finish(job, job.reason or "", state)

    def _step(self) -> None:
        """A token for every request that is running."""
        for write, slots in self.slots.items():
            jobs = [job for job in self.running if job.write is write]
            if not jobs:
                continue
            logits = slots.step({job: job.last for job in jobs})
            # Those whose last token has now been read, and those whose last is not to be.
            read = [job for job in jobs if job.reason is not None]
            _, ended = self._choose({job: x for job, x in logits.items() if job not in read})
            for job in [*read, *ended]:
                self._finish(job, job.reason or "", self._end(job))

    def _choose(self, logits: dict[Job, torch.Tensor]) -> tuple[list[Job], list[Job]]:
        """Picks each job's next token: the jobs of which it is to be read, and those that end at once."""
        if not logits:
            return [], []
        rows = torch.stack(list(logits.values())).float()
        finite = rows.isfinite().all(1).tolist()
        if not all(finite):
            for job, fine in zip(list(logits), finite, strict=True):
                if not fine:
                    self._break(job)
            return self._choose(
                {j: x for (j, x), f in zip(logits.items(), finite, strict=True) if f}
            )
        jobs = list(logits)
        tokens = pick_rows(
            rows,
            [job.sampling.temperature for job in jobs],
            [job.sampling.top_p for job in jobs],
            [job.random for job in jobs],
        )
        going: list[Job] = []
        ended: list[Job] = []
        for job, token in zip(jobs, tokens[:, 0].tolist(), strict=True):
            (going if self._take(job, token) else ended).append(job)
        return going, ended

    def _take(self, job: Job, token: int) -> bool:
        """Adds a token to the answer; whether it is to be read."""
        if token == self.tokenizer.end:
            job.reason = "stop"
            return False
        job.tokens, job.last = job.tokens + 1, token
        self.tokens_made += 1
        job.text += job.out.add(self.tokenizer.decode([token]))
        if job.out.stopped:
            job.reason = "stop"
        elif job.tokens == job.sampling.max_tokens:
            job.reason = "length"
        if job.stream and job.text and job.reason is None:
            self.events.append((job, Text(job.text)))
            job.text = ""
        return job.reason is None or job.keep

    def _end(self, job: Job) -> Any:
        """Takes a job out of its batch; its state, where that is asked for."""
        slots, state = self.slots[job.write], None
        if job.keep and not job.cancelled:
            state = slots.leave(job)
        else:
            slots.drop(job)
        # Only now: where that fails, all that are running are told so.
        self.running.remove(job)
        return state

    def _break(self, job: Job) -> None:
        """Fails a job that has no finite logits."""
        if job in self.running:
            self._end(job)
        self._fail(job, NotFiniteError())

    def _finish(self, job: Job, reason: str, state: Any) -> None:
        text = job.text + job.out.end()
        self.events.append((job, Done(text, reason, job.tokens, state if job.keep else None)))

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, StoppedError | NotFiniteError):
            log.error("A request failed: %s: %s", type(error).__name__, error)
        self.events.append((job, Failed(error)))

    def _lose(self, error: Exception) -> None:
        """Fails all that is worked on."""
        jobs = dict.fromkeys([*self.reading, *self.running])
        self.reading.clear()
        self.running.clear()
        for slots in self.slots.values():
            slots.clear()
        for job in jobs:
            self._fail(job, error)

    def _report(self) -> None:
        events, self.events = [e for e in self.events if not e[0].cancelled], []
        if events:
            self.tell(events)
