"""Many requests on one model: each is answered as it would be alone."""

import threading
from typing import Any

import pytest
import torch
from memory_problems import assert_same_result
from small_mixers import held
from tiny_language import VOCAB, tiny_model

from titans_domains.language.generate import generate, pick, pick_rows, read
from titans_domains.language.model import LanguageModel
from titans_domains.language.reading import stream_of
from titans_domains.language.tokenizers import ByteTokenizer
from titans_domains.serving import engine as module
from titans_domains.serving.engine import PIECE, Engine
from titans_domains.serving.jobs import Done, Event, Failed, Job, NotFiniteError, StoppedError, Text
from titans_domains.serving.sampling import Sampling, TextOut

BYTES = ByteTokenizer()


class Told:
    """Collects what an engine tells, and waits for the end of jobs."""

    def __init__(self) -> None:
        self.events: dict[Job, list[Event]] = {}
        self.changed = threading.Condition()

    def __call__(self, events: list[tuple[Job, Event]]) -> None:
        with self.changed:
            for job, event in events:
                self.events.setdefault(job, []).append(event)
            self.changed.notify()

    def end(self, job: Job) -> Any:
        def over() -> bool:
            return isinstance(self.events.get(job, [None])[-1], Done | Failed)

        with self.changed:
            assert self.changed.wait_for(over, 30)
            return self.events[job][-1]

    def text(self, job: Job) -> str:
        end = self.end(job)
        pieces = [event.text for event in self.events[job] if isinstance(event, Text)]
        return "".join(pieces) + end.text


def started(model: LanguageModel, rows: int = 8) -> tuple[Engine, Told]:
    told = Told()
    engine = Engine(model, BYTES, told, rows=rows)
    engine.start()
    return engine, told


def prompts(count: int) -> list[bytes]:
    lengths = torch.randint(1, 60, (count,)).tolist()
    lengths[1] = 3 * PIECE + 5
    return [bytes(torch.randint(32, 127, (n,)).tolist()) for n in lengths]


def job_of(prompt: bytes, state: Any = None, **settings: Any) -> Job:
    flags = {name: settings.pop(name) for name in ("write", "keep", "stream") if name in settings}
    return Job(stream_of(BYTES, prompt, state), state, Sampling(**settings), **flags)


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag"])
def test_an_answer_in_a_crowd_is_the_one_that_comes_alone(mixer: str) -> None:
    model = tiny_model(mixer=mixer, num_layers=1).double()
    engine, told = started(model, rows=6)
    asked = []
    for number, prompt in enumerate(prompts(20)):
        settings = {
            "max_tokens": 1 + number * 7 % 33, "temperature": (0.0, 1.0, 0.7)[number % 3],
            "top_p": (1.0, 0.9)[number % 2], "seed": number,
        }  # fmt: skip
        job = job_of(prompt, keep=number % 4 == 0, stream=number % 2 == 0, **settings)
        engine.submit(job)
        asked.append((job, prompt, settings))
    for job, prompt, settings in asked:
        pieces = list(generate(model, BYTES, prompt, **settings))
        text, end = told.text(job), told.end(job)
        assert text == b"".join(pieces).decode(errors="replace")
        assert end.tokens == len(pieces)
        assert end.reason == ("length" if len(pieces) == settings["max_tokens"] else "stop")
        if job.keep:
            _, wanted = read(model, BYTES, prompt + b"".join(pieces))
            assert_same_result((0, held(end.state)), (0, held(wanted)))
        else:
            assert end.state is None
    assert engine.tokens_made == sum(told.end(job).tokens for job, *_ in asked)
    assert engine.tokens_read == sum(len(prompt) + 1 for _, prompt, _ in asked)
    engine.stop()


@pytest.mark.parametrize("write", [True, False])
def test_a_state_is_read_on(write: bool) -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model)
    _, state = read(model, BYTES, b"what came before")
    others = [job_of(prompt, max_tokens=12) for prompt in prompts(4)]
    job = job_of(b" and on", state, max_tokens=9, temperature=0, write=write, keep=True)
    for one in (*others, job):
        engine.submit(one)
    ids, wanted = list(b" and on"), state
    with torch.no_grad():
        for _ in range(10):
            logits, wanted = model(torch.tensor([ids]), wanted, write=write)
            ids = [int(logits[0, -1].argmax())]
    end = told.end(job)
    assert_same_result((0, held(end.state)), (0, held(wanted)))
    assert write != torch.equal(end.state[0].memory.memory[0], state[0].memory.memory[0])
    engine.stop()


def test_a_prompt_alone_is_read() -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model)
    job = job_of(b"a document", max_tokens=0, keep=True)
    engine.submit(job)
    end = told.end(job)
    assert (end.text, end.tokens, end.reason) == ("", 0, "length")
    assert_same_result((0, held(end.state)), (0, held(read(model, BYTES, b"a document")[1])))
    engine.stop()


def test_a_long_prompt_holds_up_no_other() -> None:
    model = tiny_model(num_layers=1)
    engine, told = started(model)
    calls: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    running = job_of(b"x", max_tokens=80)
    engine.submit(running)
    long, short = job_of(b"y" * 40 * PIECE, max_tokens=1), job_of(b"z", max_tokens=1)
    engine.submit(long)
    engine.submit(short)
    for job in (running, long, short):
        told.end(job)
    engine.stop()
    between = 0
    for rows, tokens in calls[: calls.index((1, PIECE))] + calls:
        between = between + tokens if rows == 1 and tokens > 1 else 0
        assert between <= PIECE
    # The short one came last and did not wait for the long one.
    assert list(told.events).index(short) < list(told.events).index(long)


def test_what_is_cancelled_goes_and_the_others_stay() -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model, rows=3)
    endless = [job_of(b"w", max_tokens=10**9, temperature=1, stream=True) for _ in range(5)]
    last = job_of(b"x", max_tokens=20, temperature=0)
    for job in (*endless, last):
        engine.submit(job)
    with told.changed:
        assert told.changed.wait_for(lambda: len(told.events) >= 3, 30)
    for job in endless:
        engine.cancel(job)
        told.events.pop(job, None)
    pieces = generate(model, BYTES, b"x", max_tokens=20, temperature=0)
    assert told.text(last) == b"".join(pieces).decode(errors="replace")
    assert engine.active == 0
    assert len(engine.slots[True]) == 0
    engine.stop()


class BrokenError(Exception):
    pass


def test_a_prompt_that_fails_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model)

    def check(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if (inputs[0] == 7).any():
            raise BrokenError

    model.register_forward_pre_hook(check)
    good, bad = job_of(b"x", max_tokens=30, temperature=0), job_of(b"a\x07", max_tokens=3)
    engine.submit(good)
    engine.submit(bad)
    assert isinstance(told.end(bad).error, BrokenError)
    pieces = generate(model, BYTES, b"x", max_tokens=30, temperature=0)
    assert told.text(good) == b"".join(pieces).decode(errors="replace")
    engine.stop()


def test_logits_that_are_not_finite_fail_one_row() -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model)

    def spoil(_: Any, inputs: tuple[torch.Tensor, ...], outputs: Any) -> Any:
        logits, state = outputs
        odd = (inputs[0] == BYTES.encode(b"!")[0]).any(1)
        return logits.masked_fill(odd[:, None, None], torch.nan), state

    handle = model.register_forward_hook(spoil)
    jobs = [job_of(prompt, max_tokens=200, temperature=1, seed=n) for n, prompt in enumerate(
        [b"fine so far", b"bad!", *(b"x" * n for n in range(1, 6))]
    )]  # fmt: skip
    for job in jobs:
        engine.submit(job)
    ends = [told.end(job) for job in jobs]
    handle.remove()
    failed = [isinstance(end, Failed) for end in ends]
    assert failed[1]
    # Each that failed would have read the odd letter, and no other failed.
    for n, end in enumerate(ends):
        prompt = bytes(job_prompt(n))
        text = b"".join(
            generate(model, BYTES, prompt, max_tokens=200, temperature=1, top_p=1, seed=n)
        )
        assert isinstance(end, Failed) == (b"!" in (prompt + text)[:-1])
        if isinstance(end, Failed):
            assert isinstance(end.error, NotFiniteError)
    assert not all(failed)
    engine.stop()


def job_prompt(number: int) -> bytes:
    return [b"fine so far", b"bad!", *(b"x" * n for n in range(1, 6))][number]


def test_a_step_that_fails_loses_its_batch_and_not_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model)
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise MemoryError("no room")

        patch.setattr(module.Slots, "step", fail)
        jobs = [job_of(b"x", max_tokens=9) for _ in range(3)]
        for job in jobs:
            engine.submit(job)
        assert all(isinstance(told.end(job).error, MemoryError) for job in jobs)
    again = job_of(b"x", max_tokens=9, temperature=0)
    engine.submit(again)
    pieces = generate(model, BYTES, b"x", max_tokens=9, temperature=0)
    assert told.text(again) == b"".join(pieces).decode(errors="replace")
    engine.stop()
    assert "MemoryError: no room" in caplog.text


@pytest.mark.parametrize("call", ["leave", "drop"])
def test_a_row_that_cannot_leave_is_told_so(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = started(tiny_model(num_layers=1).double())
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise MemoryError("no room")

        patch.setattr(module.Slots, call, fail)
        jobs = [job_of(b"x", max_tokens=9, keep=call == "leave") for _ in range(3)]
        for job in jobs:
            engine.submit(job)
        assert all(isinstance(told.end(job).error, MemoryError) for job in jobs)
    again = job_of(b"x", max_tokens=9)
    engine.submit(again)
    assert isinstance(told.end(again), Done)
    engine.stop()


def test_a_row_that_cannot_enter_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(num_layers=1).double()
    engine, told = started(model)
    enter = module.Slots.enter

    def check(self: Any, key: Job, state: Any) -> None:
        if key.sampling.seed == 7:
            raise MemoryError("no room")
        enter(self, key, state)

    monkeypatch.setattr(module.Slots, "enter", check)
    good = job_of(b"x", max_tokens=200, temperature=0)
    bad = job_of(b"y", max_tokens=3, seed=7)
    engine.submit(good)
    engine.submit(bad)
    assert isinstance(told.end(bad).error, MemoryError)
    pieces = generate(model, BYTES, b"x", max_tokens=200, temperature=0)
    assert told.text(good) == b"".join(pieces).decode(errors="replace")
    engine.stop()


def test_a_stopped_engine_says_so_to_everybody() -> None:
    engine, told = started(tiny_model(num_layers=1), rows=2)
    jobs = [job_of(b"w", max_tokens=10**9) for _ in range(4)]
    for job in jobs:
        engine.submit(job)
    engine.stop()
    assert all(isinstance(told.end(job).error, StoppedError) for job in jobs)
    assert not engine.alive
    with pytest.raises(StoppedError):
        engine.submit(job_of(b"x"))


def test_each_row_is_drawn_in_its_own_way() -> None:
    logits = 3 * torch.randn(7, VOCAB)
    temperatures, top_ps = [0.0, 1.0, 0.5, 2.0, 0.0, 1e-40, 1.0], [1, 1, 0.5, 0.9, 0.1, 1, 1e-9]

    def randoms() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(7)]

    together = pick_rows(logits, temperatures, top_ps, randoms())
    for row, random in enumerate(randoms()):
        one = pick(logits[row : row + 1], temperatures[row], top_ps[row], random)
        assert torch.equal(one, together[row : row + 1])
    assert len(together.unique()) > 3


@pytest.mark.parametrize(
    ("stop", "pieces", "text", "stopped"),
    [
        ((), ["a", "b"], "ab", False),
        (("b",), ["a", "b", "c"], "a", True),
        (("bcd",), ["ab", "c", "e", "b"], "abceb", False),
        (("bcd", "ce"), ["ab", "c", "e"], "ab", True),
        (("aab",), ["a", "a", "a", "b"], "a", True),
        (("yz", "x"), ["uxyz"], "u", True),
        (("é",), ["a", "é", "b"], "a", True),
    ],
)
def test_a_text_ends_before_a_stop_string(
    stop: tuple[str, ...], pieces: list[str], text: str, stopped: bool
) -> None:
    for cut in (lambda x: [x], lambda x: [bytes([b]) for b in x]):
        out, found = TextOut(stop), ""
        for piece in pieces:
            for part in cut(piece.encode()):
                if not out.stopped:
                    found += out.add(part)
                    # Nothing that was given out is taken back.
                    assert text.startswith(found)
        assert found + out.end() == text
        assert out.stopped is stopped


def test_half_a_letter_at_the_end_is_shown_as_one() -> None:
    out = TextOut()
    assert out.add("é".encode()[:1]) == ""
    assert out.end() == "\N{REPLACEMENT CHARACTER}"
