"""The shared trainer: exact resumption, accumulation, clipping, and a task of somebody else."""

import json
import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_language import CPU, DOCUMENTS, assert_same_runs, rows_of, tiny_config, write_documents
from torch import Tensor, nn

from titans_core.files import load_tensors
from titans_domains.checkpoints import REST, WEIGHTS, latest, load_checkpoint
from titans_domains.domain import Step
from titans_domains.language import DOMAIN, load_run
from titans_domains.language.streams import Batch, Corpus
from titans_domains.language.task import LanguageTask
from titans_domains.log import read_table, trim_metrics
from titans_domains.runs import resume_run, train_run
from titans_domains.train_config import TrainConfig
from titans_domains.training import TrainingModule, train


class KilledError(Exception):
    pass


def kill_at(step: int) -> Callable[[int, dict[str, Any]], None]:
    def show(now: int, row: dict[str, Any]) -> None:
        if now == step:
            raise KilledError

    return show


RESUMED = {
    "memory": [],
    "accumulated": ["train.accumulate=2"],
    "attention over all": ["model.mixer=attention"],
    "attention with window and convolution": [
        "model.mixer=attention", "model.attention.window=20", "model.attention.conv_size=4",
    ],
    "fresh for every batch": ["train.carry=false"],
    "validated, at other steps than saved": ["train.valid_every=3"],
    "bf16": ["train.precision=bf16"],
    "bpe": ["data.tokenizer=bpe", "data.vocab_size=300"],
}  # fmt: skip


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, settings: list[str]) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), *settings)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train_run(DOMAIN, config, straight, device=CPU)
    assert [row["step"] for row in rows_of(straight)] == ["1", "2", "3", "4", "5", "6"]
    # The log is ahead of the checkpoint, which is of step 2; then killed again, with one of step 4.
    with pytest.raises(KilledError):
        train_run(DOMAIN, config, killed, device=CPU, show=kill_at(3))
    assert latest(killed / "checkpoints").name == "step-0000002"
    with pytest.raises(KilledError):
        resume_run(DOMAIN, killed, device=CPU, show=kill_at(5))
    torch.rand(7)
    steps: list[int] = []
    resume_run(DOMAIN, killed, device=CPU, show=lambda step, row: steps.append(step))
    assert steps == [5, 6]
    assert_same_runs(straight, killed)


def test_resumption_rests_on_carried_state_and_cursor(tmp_path: Path) -> None:
    """Without either of them the run would not be the same: the test above would see it."""
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    for change in ("carried", "cursor", "random"):
        checkpoint = load_checkpoint(latest(tmp_path / "run/checkpoints"))
        assert change in checkpoint
    state = checkpoint["carried"]
    assert state[0][0][0][0].abs().sum() > 0  # a memory that has read
    assert checkpoint["cursor"]["next"] > 2


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    steps: list[int] = []
    said: list[str] = []
    resume_run(
        DOMAIN, tmp_path / "run", device=CPU,
        show=lambda step, row: steps.append(step), talk=said.append,
    )  # fmt: skip
    assert not steps
    assert said[0].endswith("trained to its last step, 6: nothing is left to do.")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("setting", "value"), [("chunk_size", 8), ("forget", "zero"), ("max_surprise", 0.5)]
)
def test_a_run_whose_model_was_edited_is_neither_read_nor_trained_on(
    tmp_path: Path, setting: str, value: Any
) -> None:
    """Settings under which every weight has the shape it had."""
    run = tmp_path / "run"
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, run, device=CPU)
    load_run(run, CPU)
    path = run / "config.json"
    table = json.loads(path.read_text())
    was = table["config"]["model"]["memory"][setting]
    table["config"]["model"]["memory"][setting] = value
    path.write_text(json.dumps(table))
    words = (
        f"was trained with backbone.memory.{setting} = {was!r}, and the configuration has {value!r}"
    )
    with pytest.raises(ValueError, match=words):
        load_run(run, CPU)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=words):
        resume_run(DOMAIN, run, device=CPU)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_run_without_a_checkpoint_goes_on_from_its_start(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, tmp_path / "straight", device=CPU)
    with pytest.raises(KilledError):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU, show=kill_at(1))
    said: list[str] = []
    resume_run(DOMAIN, tmp_path / "run", device=CPU, talk=said.append)
    assert said[0].endswith("checkpoints yet: training from the start.")
    assert_same_runs(tmp_path / "straight", tmp_path / "run")


def test_a_run_killed_while_saving_goes_on_from_the_one_before(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, tmp_path / "straight", device=CPU)
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    newest = latest(tmp_path / "run/checkpoints")
    newest.rename(newest.with_name(newest.name + ".tmp"))
    resume_run(DOMAIN, tmp_path / "run", device=CPU)
    assert_same_runs(tmp_path / "straight", tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp"))


def test_seeds_repeat_and_differ(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "text.jsonl")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(len(name))
        train_run(DOMAIN, tiny_config(source, f"seed={seed}"), tmp_path / name, device=CPU)
    assert_same_runs(tmp_path / "a", tmp_path / "b")
    assert rows_of(tmp_path / "a") != rows_of(tmp_path / "c")


def test_a_document_goes_on_with_its_memory(tmp_path: Path) -> None:
    """Two sequences with the state carried cost what one twice as long does."""
    source = write_documents(tmp_path / "text.jsonl")
    task = LanguageTask(tiny_config(source), CPU)
    tokens = torch.randint(256, (2, 65))

    def batch(first: int, last: int) -> Batch:
        return Batch(tokens[:, first:last], tokens[:, first + 1 : last + 1], None, None)

    whole = task.step(batch(0, 64), None)
    one = task.step(batch(0, 32), task.fresh_state())
    two = task.step(batch(32, 64), one.state)
    assert (one.loss + two.loss).item() / 2 == pytest.approx(whole.loss.item(), rel=1e-5)
    alone = LanguageTask(tiny_config(source, "train.carry=false"), CPU)
    assert alone.step(batch(32, 64), one.state).loss.item() != pytest.approx(two.loss.item())
    assert alone.step(batch(32, 64), None).state == ()
    assert (whole.tokens, one.tokens) == (128, 64)
    assert one.log["bits_per_byte"] == pytest.approx(one.loss.item() / math.log(2))


def test_padding_counts_no_tokens_and_bpe_counts_bytes(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "text.jsonl")
    task = LanguageTask(tiny_config(source, "data.tokenizer=bpe", "data.vocab_size=400"), CPU)
    assert task.bytes_per_token is not None
    assert task.bytes_per_token > 1.2
    tokens = torch.randint(256, (2, 32))
    mask = torch.arange(32).expand(2, 32) < 20
    step = task.step(Batch(tokens, tokens, mask, None), task.fresh_state())
    assert step.tokens == 40
    expected = step.loss.item() / math.log(2) / task.bytes_per_token
    assert step.log["bits_per_byte"] == pytest.approx(expected)


def test_the_corpus_takes_a_byte_of_memory_for_a_byte_of_text(tmp_path: Path) -> None:
    source = LanguageTask(tiny_config(write_documents(tmp_path / "text.jsonl")), CPU).streams.source
    assert isinstance(source, Corpus)
    assert {text.itemsize for text in source.texts} == {1}


RAGGED = [text[: 17 + 29 * i % 211] for i, text in enumerate(DOCUMENTS * 4)]
"""Documents that end anywhere in a sequence, so that parts of a step count different numbers of tokens."""


@pytest.mark.parametrize("mixer", ["lmm", "mac"])
def test_accumulation_is_a_larger_batch(tmp_path: Path, mixer: str) -> None:
    source = write_documents(tmp_path / "text.jsonl", RAGGED)
    losses, weights = [], []
    for rows, parts in ((6, 1), (2, 3)):
        config = tiny_config(
            source, f"model.mixer={mixer}", f"train.batch_size={rows}", f"train.accumulate={parts}",
            "train.steps=20", "train.precision=float64", "train.checkpoint_every=20", "train.clip=0.3",
            "model.hybrid.segment_len=16",
        )  # fmt: skip
        out = tmp_path / str(parts)
        train_run(DOMAIN, config, out, device=CPU)
        losses.append([float(row["loss"]) for row in rows_of(out)])
        weights.append(load_tensors(latest(out / "checkpoints") / WEIGHTS))
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-9)
    for name, weight in weights[0].items():
        assert weight.dtype == torch.float64
        assert (weight - weights[1][name]).abs().max() < 1e-9, name


def test_accumulation_counts_optimiser_steps(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), "train.accumulate=3")
    task = LanguageTask(config, CPU)
    calls = []
    step = task.step
    task.step = lambda *args: calls.append(1) or step(*args)  # type: ignore[method-assign, func-returns-value]
    train(task, config.train, tmp_path, device=CPU)
    assert len(calls) == 18
    assert [row["step"] for row in rows_of(tmp_path)] == list("123456")


def test_loss_falls_on_a_text_that_repeats(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("and on and on it goes; " * 100)
    config = tiny_config(tmp_path / "text.txt", "train.steps=50", "train.lr=0.03")
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "run")]
    assert losses[0] > 5
    assert losses[-1] < 1


def test_bf16_is_finite_and_keeps_its_weights_in_float32(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), "train.precision=bf16")
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    assert all(math.isfinite(float(row["loss"])) for row in rows_of(tmp_path / "run"))
    weights = load_tensors(latest(tmp_path / "run/checkpoints") / WEIGHTS)
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())
    exact = tiny_config(tmp_path / "text.jsonl")
    train_run(DOMAIN, exact, tmp_path / "exact", device=CPU)
    assert rows_of(tmp_path / "run") != rows_of(tmp_path / "exact")


def test_validation_and_samples_at_their_steps_and_at_the_end(tmp_path: Path) -> None:
    config = tiny_config(
        write_documents(tmp_path / "text.jsonl"),
        "train.steps=5", "train.valid_every=2", "train.sample_every=4",
        "model.num_layers=1",
    )  # fmt: skip
    shown: dict[int, dict[str, Any]] = {}
    train_run(DOMAIN, config, tmp_path / "run", device=CPU, show=shown.__setitem__)
    figure = "valid_bits_per_byte"
    assert [step for step, row in shown.items() if figure in row] == [2, 4, 5]
    assert [step for step, row in shown.items() if "sample" in row] == [4, 5]
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if row[figure]] == ["2", "4", "5"]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in shown.values()]
    assert "sample" not in rows[0]
    samples = (tmp_path / "run/samples.txt").read_bytes().decode()
    expected = [f"--- step {step}\n{shown[step]['sample']}\n" for step in (4, 5)]
    assert samples == "".join(expected)


def test_figures_that_are_never_wanted_are_never_made(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    assert list(rows_of(tmp_path / "run")[0]) == ["step", "loss", "bits_per_byte", "lr"]
    assert not (tmp_path / "run/samples.txt").exists()


def test_samples_of_steps_that_come_again_are_not_repeated(tmp_path: Path) -> None:
    config = tiny_config(
        write_documents(tmp_path / "text.jsonl"), "train.sample_every=1", "train.steps=4"
    )
    train_run(DOMAIN, config, tmp_path / "straight", device=CPU)
    with pytest.raises(KilledError):
        train_run(DOMAIN, config, tmp_path / "killed", device=CPU, show=kill_at(3))
    resume_run(DOMAIN, tmp_path / "killed", device=CPU)
    straight = (tmp_path / "straight/samples.txt").read_bytes()
    assert straight.count(b"--- step ") == 4
    assert (tmp_path / "killed/samples.txt").read_bytes() == straight


@pytest.mark.parametrize("end", ["\n", "\r\n\n", "2,1.5", "2"])
def test_a_log_with_a_last_line_that_is_none_is_mended(tmp_path: Path, end: str) -> None:
    """An editor adds blank lines; a kill leaves half of one, which is written again."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,lr\n1,3.0,0.1\n2,2.0,0.1\n3,1.0,0.1\n" + end, newline="")
    assert trim_metrics(path, 2) == ["step", "loss", "lr"]
    assert read_table(path) == [["step", "loss", "lr"], ["1", "3.0", "0.1"], ["2", "2.0", "0.1"]]


@pytest.mark.parametrize("row", ["one,3.0", "2", "2,3.0,4.0", "-1,3.0", ",3.0"])
def test_a_log_with_a_row_that_is_none_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "metrics.csv"
    content = f"step,loss\n{row}\n3,1.0\n"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"metrics.csv is damaged: '{row}' is no row of step,loss"):
        trim_metrics(path, 5)
    assert path.read_text() == content
    path.write_bytes(b"step,loss\n\xff,2\n")
    with pytest.raises(ValueError, match="is damaged: 'utf-8' codec"):
        trim_metrics(path, 5)


def test_ctrl_c_comes_out_as_it_went_in_and_may_come_again(tmp_path: Path) -> None:
    def interrupt(step: int, row: dict[str, Any]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU, show=interrupt)
    assert signal.getsignal(signal.SIGINT) is before

    def leave(step: int, row: dict[str, Any]) -> None:
        raise SystemExit(7)

    with pytest.raises(SystemExit) as end:
        resume_run(DOMAIN, tmp_path / "run", device=CPU, show=leave)
    assert end.value.code == 7


def test_a_run_that_grows_without_bound_stops_and_keeps_what_was_good(tmp_path: Path) -> None:
    config = tiny_config(
        write_documents(tmp_path / "text.jsonl"), "train.lr=1e15", "train.checkpoint_every=1",
        "train.max_skipped=0",
    )  # fmt: skip
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="of step [12] is not finite, and nothing of it was saved"):
        train_run(DOMAIN, config, run, device=CPU)
    for path in run.glob("checkpoints/*"):
        weights = load_tensors(path / WEIGHTS)
        assert all(w.isfinite().all() for w in weights.values())


# What follows is a domain as a third party would write it: it knows of nothing but the protocol.


class Running(NamedTuple):
    total: Tensor
    nothing: None


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(3))
        self.matrix = nn.Parameter(torch.ones(2, 2))


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    train: TrainConfig = field(default_factory=TrainConfig)
    steepness: float = 1.0


class ToyTask:
    """The loss is a multiple of the vector's sum, so that every gradient is known."""

    data_sha256 = None

    def __init__(self, config: ToyConfig) -> None:
        self.config, self.model = config, Weights()
        self.seen: list[tuple[int, float]] = []

    def describe(self) -> str:
        return "three numbers"

    def batches(self, cursor: dict[str, Any] | None) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        number, rows = 0 if cursor is None else cursor["next"], self.config.train.rows
        while True:
            yield torch.arange(number, number + rows), {"next": number + rows}
            number += rows

    def fresh_state(self) -> Running:
        return Running(torch.zeros(self.config.train.rows), None)

    def step(self, batch: Tensor, state: Running | None) -> Step:
        """Of a single row: every row is a part of its own."""
        total = torch.zeros(1) if state is None else state.total
        self.seen.append((batch.item(), total.item()))
        loss = self.config.steepness * self.model.vector.sum() + 0 * self.model.matrix.sum()
        figures = {"loss": loss.item(), "batch": batch.item()}
        return Step(loss, Running(total + batch, None), 1, figures)

    def validate(self) -> dict[str, float]:
        return {"sum": self.model.vector.sum().item()}

    def sample(self) -> None:
        return None

    def save_extras(self, folder: Path) -> None:
        (folder / "extra.txt").write_text("toy")


class ToyDomain:
    name = "toy"
    config_type = ToyConfig
    presets = {"one": ToyConfig()}  # noqa: RUF012

    def absolute(self, config: ToyConfig) -> ToyConfig:
        return config

    def task(self, config: ToyConfig, device: torch.device, folder: Path | None = None) -> ToyTask:
        assert folder is None or (folder / "extra.txt").read_text() == "toy"
        self.made = ToyTask(config)
        return self.made


def toy_config(steepness: float = 1.0, **settings: Any) -> ToyConfig:
    settings = {
        "steps": 6, "batch_size": 1, "warmup": 2, "lr": 0.1, "weight_decay": 0.0, "valid_every": 3,
        "checkpoint_every": 2, **settings,
    }  # fmt: skip
    return ToyConfig(train=TrainConfig(**settings), steepness=steepness)


class BrokenTask(ToyTask):
    """Finite until the fourth batch; then what is named is not."""

    broken = ""

    def step(self, batch: Tensor, state: Running | None) -> Step:
        step = super().step(batch, state)
        if batch < 3:
            return step
        if self.broken == "loss":
            return step._replace(loss=step.loss * math.nan)
        if self.broken == "gradient":
            # Infinite at 0, where the root itself is 0.
            return step._replace(loss=step.loss + (0 * self.model.matrix.sum()).sqrt())
        if self.broken == "carried state":
            return step._replace(state=Running(torch.tensor([math.inf]), None))
        if self.broken == "weights":
            self.model.matrix.data.fill_(math.inf)
        return step


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("broken", ["loss", "gradient", "carried state", "weights"])
def test_what_is_not_finite_stops_before_it_is_saved(
    tmp_path: Path, broken: str, accumulate: int
) -> None:
    config = toy_config(accumulate=accumulate, checkpoint_every=1, valid_every=0, max_skipped=0)
    task = BrokenTask(config)
    task.broken = broken
    step = 4 if accumulate == 1 else 2
    kept = tmp_path / f"checkpoints/step-{step - 1:07d}"
    sentence = (
        f"The {broken} of step {step} is not finite, and nothing of it was saved: train anew with a "
        f"smaller train.lr or train.clip; the last good checkpoint is {kept}."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train(task, config.train, tmp_path, device=CPU)
    assert latest(tmp_path / "checkpoints") == kept
    assert task.model.vector.isfinite().all()


def test_what_is_not_finite_before_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    task = BrokenTask(toy_config(checkpoint_every=6, max_skipped=0))
    task.broken = "loss"
    with pytest.raises(ValueError, match="loss of step 4 .* there is no checkpoint yet"):
        train(task, task.config.train, tmp_path, device=CPU)
    assert not (tmp_path / "checkpoints").exists()


class OnceBrokenTask(BrokenTask):
    """As a BrokenTask, but good again after the fourth batch."""

    def step(self, batch: Tensor, state: Running | None) -> Step:
        if batch <= 3:
            return super().step(batch, state)
        return ToyTask.step(self, batch, state)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    tmp_path: Path, broken: str, accumulate: int
) -> None:
    config = toy_config(
        accumulate=accumulate, checkpoint_every=1, valid_every=0, max_skipped=1, warmup=0, clip=0.0
    )
    for name in ("straight", "run"):
        (tmp_path / name).mkdir()
    straight = ToyTask(config)
    train(straight, config.train, tmp_path / "straight", device=CPU)
    task = OnceBrokenTask(config)
    task.broken = broken
    said: list[str] = []
    train(task, config.train, tmp_path / "run", device=CPU, talk=said.append)
    assert sum("was left out: its " + broken in line for line in said) == 1
    assert [row.get("skipped", "") for row in rows_of(tmp_path / "run")] == (
        [""] * (3 // accumulate) + ["1"] * (6 - 3 // accumulate)
    )
    # Its rows have moved on in their documents: what they carried does not fit what comes.
    last_lost = 3
    carried = load_checkpoint(latest(tmp_path / "run/checkpoints"))["carried"][0]
    assert carried.sum() == sum(range(last_lost + 1, 6 * accumulate))
    assert task.model.vector.isfinite().all()
    assert (task.model.vector > straight.model.vector).all()
    # It is counted through a resumption, and one more is too many.
    shutil.rmtree(latest(tmp_path / "run/checkpoints"))
    task.step = BrokenTask.step.__get__(task)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"The {broken} of step 6 .* after 1 steps that were left"):
        train(task, config.train, tmp_path / "run", device=CPU, resume=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_its_step_first(tmp_path: Path, number: int) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), "train.checkpoint_every=100")
    train_run(DOMAIN, config, tmp_path / "straight", device=CPU)

    def ask(step: int, row: dict[str, Any]) -> None:
        if step == 3:
            signal.raise_signal(number)

    before, said = signal.getsignal(number), []
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        train_run(DOMAIN, config, tmp_path / "run", device=CPU, show=ask, talk=said.append)
    assert getattr(end.value, "code", 130) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert latest(tmp_path / "run/checkpoints").name == "step-0000003"
    assert said[-1].startswith("stopped after step 3")
    assert signal.getsignal(number) is before
    resume_run(DOMAIN, tmp_path / "run", device=CPU)
    assert_same_runs(tmp_path / "straight", tmp_path / "run")


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), "train.checkpoint_every=100")

    def ask(step: int, row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU, show=ask)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["device", "cpu"],
)
def test_too_little_memory_is_said(tmp_path: Path, error: RuntimeError) -> None:
    class LargeTask(ToyTask):
        def step(self, batch: Tensor, state: Running | None) -> Step:
            raise error

    task = LargeTask(toy_config())
    with pytest.raises(MemoryError, match="There is not enough memory to train this: take a"):
        train(task, task.config.train, tmp_path, device=CPU)


class UnevenTask(ToyTask):
    """Batch n has n + 1 tokens and the figure n."""

    def step(self, batch: Tensor, state: Running | None) -> Step:
        step = super().step(batch, state)
        return step._replace(tokens=batch.item() + 1, log={"loss": float(batch)})


def test_the_log_of_a_step_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    task = UnevenTask(toy_config(accumulate=2, valid_every=0, steps=2))
    train(task, task.config.train, tmp_path, device=CPU)
    losses = [float(row["loss"]) for row in rows_of(tmp_path)]
    assert losses == pytest.approx([(0 * 1 + 1 * 2) / 3, (2 * 3 + 3 * 4) / 7])


def test_what_is_carried_goes_on_where_the_model_is(tmp_path: Path) -> None:
    task = ToyTask(toy_config())
    task.model.to("meta")
    module = TrainingModule(task, task.config.train, tmp_path)
    module.on_load_checkpoint(
        {
            "optimizer_states": [{}],
            "lr_schedulers": [{}],
            "carried": (torch.ones(1), None),
            "cursor": {"next": 3},
            "skipped": 0,
            "random": torch.get_rng_state(),
        }  # fmt: skip
    )
    (carried,) = module.carried
    assert isinstance(carried, Running)
    assert carried.total.device.type == "meta"


def test_another_domain_trains_and_goes_on(tmp_path: Path) -> None:
    config, domain = toy_config(), ToyDomain()
    train_run(domain, config, tmp_path / "straight", device=CPU)
    assert domain.made.seen == [(0, 0), (1, 0), (2, 1), (3, 3), (4, 6), (5, 10)]
    with pytest.raises(KilledError):
        train_run(domain, config, tmp_path / "killed", device=CPU, show=kill_at(5))
    resume_run(domain, tmp_path / "killed", asked=config, device=CPU)
    assert domain.made.seen == [(4, 6), (5, 10)]
    assert_same_runs(tmp_path / "straight", tmp_path / "killed")
    assert list(rows_of(tmp_path / "straight")[0]) == ["step", "loss", "batch", "lr", "valid_sum"]
    table = json.loads((tmp_path / "straight/config.json").read_text())
    assert (table["domain"], table["data_sha256"]) == ("toy", None)
    with pytest.raises(ValueError, match="is a run of the domain 'toy', not of 'language'"):
        resume_run(DOMAIN, tmp_path / "killed", device=CPU)


def test_the_optimiser_takes_the_scheduled_steps(tmp_path: Path) -> None:
    # Under a gradient that stays, Adam moves by the learning rate.
    config = toy_config(clip=0.0)
    task = ToyTask(config)
    train(task, config.train, tmp_path, device=CPU)
    moved = 0.1 * sum(config.train.rate(step) for step in range(6))
    assert task.model.vector.tolist() == pytest.approx([-moved] * 3, rel=1e-5)
    rates = [float(row["lr"]) for row in rows_of(tmp_path)]
    assert rates == pytest.approx([0.1 * config.train.rate(step) for step in range(6)])
    assert task.model.matrix.tolist() == [[1, 1], [1, 1]]


def test_only_matrices_decay(tmp_path: Path) -> None:
    config = toy_config(steepness=0.0, weight_decay=0.5)
    task = ToyTask(config)
    task.model.vector.data.fill_(1)
    train(task, config.train, tmp_path, device=CPU)
    left = math.prod(1 - 0.5 * 0.1 * config.train.rate(step) for step in range(6))
    assert task.model.matrix.flatten().tolist() == pytest.approx([left] * 4)
    assert task.model.vector.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 10 * 3**0.5), (0.5, 0.5), (100.0, 10 * 3**0.5)])
def test_the_gradient_is_clipped_to_a_norm(tmp_path: Path, clip: float, norm: float) -> None:
    task = ToyTask(toy_config(steepness=10.0, clip=clip))
    train(task, task.config.train, tmp_path, device=CPU)
    assert task.model.vector.grad is not None
    assert task.model.vector.grad.norm().item() == pytest.approx(norm, rel=1e-4)


def forged(change: Callable[[dict[str, Any]], None], path: Path) -> None:
    """A checkpoint whose table is another, with checksums that fit."""
    table = json.loads((path / REST).read_text())
    items = dict(table["checkpoint"]["items"])
    change(items)
    table["checkpoint"]["items"] = list(map(list, items.items()))
    del table["sha256"]["checkpoint"]
    (path / REST).write_text(json.dumps(table))


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "cursor": lambda items: items.update(cursor={"items": []}),
    "cursor of another kind": lambda items: items.update(cursor=3),
    "loops": lambda items: items.update(loops={"items": []}),
    "optimisers": lambda items: items.update(optimizer_states=[3]),
    "no optimiser": lambda items: items.update(optimizer_states=[]),
    "random numbers": lambda items: items.update(random=7),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_checkpoint_that_fits_in_itself_but_not_the_run_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"))
    train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    newest = latest(tmp_path / "run/checkpoints")
    forged(change, newest)
    before = (tmp_path / "run/metrics.csv").read_bytes()
    with pytest.raises(ValueError, match="does not fit this run|on to another") as caught:
        resume_run(DOMAIN, tmp_path / "run", device=CPU)
    assert str(newest) in str(caught.value)
    assert (tmp_path / "run/metrics.csv").read_bytes() == before


@pytest.mark.parametrize("setting", ["model.dim=1048576", "model.ffn_dim=1000000000000"])
def test_a_model_that_this_machine_cannot_hold_leaves_no_run(tmp_path: Path, setting: str) -> None:
    config = tiny_config(write_documents(tmp_path / "text.jsonl"), setting)
    with pytest.raises(MemoryError, match="To train .* parameters takes .* GiB, and cpu has"):
        train_run(DOMAIN, config, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()
