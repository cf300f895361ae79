"""The shared trainer on text: exact resumption, accumulation, validation, logs, and being asked to end."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import (
    CPU,
    DOCUMENTS,
    KilledError,
    assert_same_runs,
    kill_at,
    rows_of,
    tiny_config,
    write_documents,
)

from titans_core.files import load_tensors
from titans_domains.checkpoints import REST, WEIGHTS, latest, load_checkpoint
from titans_domains.language import DOMAIN, load_run
from titans_domains.language.streams import Batch, Corpus
from titans_domains.language.task import LanguageTask
from titans_domains.log import read_table, trim_metrics
from titans_domains.runs import resume_run, train_run
from titans_domains.training import train

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
