"""Inspection's figures against the reference recurrence, token by token in float64, in every domain."""

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from inspection_runs import CPU, READ, listen, made_once, opened
from torch import Tensor

from titans_core import MemoryConfig
from titans_core.listening import Heard, heard, memories_of
from titans_core.memory import Recall
from titans_core.memory_facts import half_life
from titans_domains.dna.task import load_model
from titans_domains.inspection.along import Along, Track, read_along
from titans_domains.inspection.along_page import along_page
from titans_domains.inspection.along_table import as_table, rank_correlation, written
from titans_domains.inspection.charts import levels, limits, path_of, percent, short
from titans_domains.inspection.compare import compare_table, side_of
from titans_domains.inspection.facts import facts
from titans_domains.inspection.memory_page import distance, memory_table
from titans_domains.inspection.recall import (
    BETWEEN,
    EDGE,
    Recalled,
    Watched,
    heads,
    read_watched,
)
from titans_domains.inspection.recall import _chosen as chosen_of
from titans_domains.inspection.states import fresh
from titans_domains.inspection.subject import Run
from titans_domains.inspection.tokens import edges, token, visible
from titans_domains.language.reading import read_stream, stream_of
from titans_domains.language.tokenizers import ByteTokenizer
from titans_kernels import memory_update
from titans_kernels.memory_update.reference import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory)


class Direct(NamedTuple):
    """What one memory did, by the definition."""

    recall: Recall
    k: Tensor  # [B, T, H, D]
    v: Tensor
    surprise: Tensor  # [B, T, H, L]
    gates: tuple[Tensor, ...]
    memory: Any

    def weights(self, row: int, deviation: Any) -> list[Tensor]:
        return [
            base + m[row] for base, m in zip(self.recall.initial, deviation, strict=True)
        ]  # fmt: skip


def direct(recall: Recall, x: Tensor) -> Direct:
    """One token at a time, with the gradient by autograd."""
    recall = copy.deepcopy(recall).double()
    x = x.detach().double()
    norm = (recall.norm_gain, recall.norm_bias)
    with torch.no_grad():
        start = recall.fresh_state(len(x))
        q, k, v, _ = recall._project(x, start.conv_tail)
        gates = recall._gates(x)
    state, surprise = start.memory, []
    for t in range(x.shape[1]):
        at = [
            (base + m).detach().requires_grad_()
            for base, m in zip(recall.initial, state.chunk_memory, strict=True)
        ]
        loss = (read(tuple(at), k[:, t], norm, recall.rule) - v[:, t]).square().sum()
        grads = torch.autograd.grad(loss, at)
        surprise.append(torch.stack([g.flatten(2).norm(dim=-1) for g in grads], -1))
        part = slice(t, t + 1)
        with torch.no_grad():
            _, state = memory_update(
                q[:, part], k[:, part], v[:, part], *(gate[:, part] for gate in gates),
                tuple(recall.initial), rule=recall.rule, norm=norm, state=state, backend="reference",
            )  # fmt: skip
    return Direct(recall, k, v, torch.stack(surprise, 1), gates, state)


def directs(run: Run, file: Path, record: str | None) -> dict[str, Direct]:
    recalls = memories_of(run.subject.model)
    return {name: direct(recalls[name], x) for name, x in listen(run, file, record).items()}


def by_unit(run: Run, found: dict[str, Tensor], skip: int) -> np.ndarray:
    """[B, T, H, L] of each memory as [T, U]."""
    rows = []
    for reading in range(len(run.subject.readings)):
        row = torch.cat([x[reading, skip:].flatten(1) for x in found.values()], 1).numpy()
        rows.append(row[::-1] if reading in run.subject.mirrored else row)
    return np.concatenate(rows, 1)


RECORDS = {"text": None, "series": "price", "causal": "two", "classes": "two"}


@pytest.mark.parametrize("name", READ)
def test_surprise_and_gates_are_those_of_the_definition(folder: Path, name: str) -> None:
    run, file = opened(folder, name), folder / READ[name]
    along = read_along(run, file, record=RECORDS[name])
    found = directs(run, file, RECORDS[name])
    skip = int(name in ("text", "causal"))
    size = next(iter(found.values())).k.shape[1] - skip
    assert len(along.labels) == along.tokens == size > 8
    wanted = by_unit(run, {n: d.surprise for n, d in found.items()}, skip)
    assert wanted.shape == (size, len(run.units))
    np.testing.assert_allclose(along.measure("surprise"), wanted, rtol=2e-3, atol=1e-4)
    for number, gate in enumerate(("step_size", "momentum", "forget")):
        wanted = by_unit(run, {n: d.gates[number] for n, d in found.items()}, skip)
        np.testing.assert_allclose(along.measure(gate), wanted, rtol=1e-4, atol=1e-7)
    limit = run.memory.max_surprise
    assert limit is not None
    by_hand = along.measure("step_size") * np.minimum(along.measure("surprise"), limit)
    np.testing.assert_allclose(written(along), by_hand, rtol=1e-6)


@pytest.mark.parametrize("name", READ)
def test_facts_of_a_memory_are_those_of_its_matrices(folder: Path, name: str) -> None:
    run, file = opened(folder, name), folder / READ[name]
    watched = read_watched(run, file, RECORDS[name])
    found = directs(run, file, RECORDS[name])
    rows = {row["unit"]: row for row in facts(run, watched.memories)}
    assert [unit.name for unit in run.units] == list(rows)
    for unit in run.units:
        one = found[unit.memory]
        reading = run.subject.readings.index(unit.reading)
        at = (reading, unit.head)
        learned = one.memory.memory[unit.layer][at]
        weight = one.recall.initial[unit.layer][unit.head] + learned
        row = rows[unit.name]
        assert row["distance"] == pytest.approx(learned.norm().item(), rel=2e-3)
        assert row["norm"] == pytest.approx(weight.norm().item(), rel=1e-4)
        values = np.linalg.svd(learned.detach().numpy(), compute_uv=False)
        p = values / values.sum()
        assert row["learned_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=5e-3)
        surprise = one.memory.surprise[unit.layer][at].norm().item()
        assert row["surprise"] == pytest.approx(surprise, rel=5e-3, abs=1e-6)
    # Nothing was read, and so nothing learned, which has no rank.
    for row in facts(run, fresh(run)):
        assert (row["distance"], row["surprise"], row["learned_rank"]) == (0, 0, None)


@pytest.mark.parametrize("name", READ)
def test_what_keys_return_is_what_the_definition_reads(folder: Path, name: str) -> None:
    run, file = opened(folder, name), folder / READ[name]
    watched = read_watched(run, file, RECORDS[name])
    found = directs(run, file, RECORDS[name])
    table = memory_table(run, watched.memories, path=file, watched=watched)
    numbers = watched.numbers
    for row in table["heads"]:
        one = found[row["memory"]]
        reading = run.subject.readings.index(row["reading"])
        k, v = one.k[reading, numbers], one.v[reading, numbers, row["head"]]
        with torch.no_grad():
            answers = [
                read(
                    tuple(w[None].expand(len(k), -1, -1, -1) for w in weights),
                    k, (one.recall.norm_gain, one.recall.norm_bias), one.recall.rule,
                )[:, row["head"]]
                for weights in (one.weights(reading, one.memory.memory), one.recall.initial)
            ]  # fmt: skip
        now, before = (torch.cosine_similarity(a, v, dim=-1) for a in answers)
        assert row["recall"] == pytest.approx(now.mean().item(), abs=2e-3)
        assert row["before"] == pytest.approx(before.mean().item(), abs=1e-4)
        cosines = torch.cosine_similarity(answers[0][:, None], v[None], dim=-1)
        off = ~torch.eye(len(k), dtype=torch.bool)
        assert row["others"] == pytest.approx(cosines[off].mean().item(), abs=2e-3)
        assert row["error"] == pytest.approx(
            ((answers[0] - v).square().sum(-1) / v.square().sum(-1)).mean().item(), rel=2e-2
        )
        retain = 1 - one.gates[2][reading, :, row["head"]]
        oldest = row["retained_by_age"][0][-1]
        ages = watched.tokens - 1 - numbers.numpy()
        last = [n for n, age in zip(numbers.tolist(), ages, strict=True) if age >= _edge(ages)]
        by_hand = np.mean([retain[n + 1 :, 0].prod().item() for n in last])
        assert oldest == pytest.approx(by_hand, rel=1e-3)


def test_channels_that_forget_by_themselves_are_averaged_last() -> None:
    config = MemoryConfig(num_heads=1, depth=2, expansion=1, forget_per="channel")
    recall = Recall(8, config, "").double()
    with torch.no_grad():
        recall.gates.weight.zero_()
        forget = torch.tensor([1e-4, 0.2], dtype=torch.float64).repeat(4)
        recall._split_gates(recall.gates.bias)["forget"].copy_(forget.logit())
        read_so = heard(recall, torch.randn(1, 60, 8, dtype=torch.float64), recall.fresh_state(1))
    run: Any = SimpleNamespace(subject=SimpleNamespace(readings=("",)))
    watched = Watched(run)
    for part in (slice(0, 37), slice(37, 60)):
        watched.add({"memory": Heard(*(x[:, part] for x in read_so))})
    [row] = heads(run, watched, {(0, "memory"): Recalled(*torch.zeros(6, 60, 1))}, same=True)
    shares = [(0.9999**age + 0.8**age) / 2 for age in range(60)]
    wanted = half_life(list(range(60)), shares)
    # 0.9999^n + 0.8^n is 1 there; the mean of the gates would say ln 2 / 0.105 = 6.6.
    assert wanted == pytest.approx(26.6, abs=0.05)
    assert row["gate_half_life"] == pytest.approx([wanted] * 2, rel=1e-9)
    by_age = [
        np.mean(shares[:8]),
        np.mean(shares[8:16]),
        np.mean(shares[16:32]),
        np.mean(shares[32:]),
    ]
    for layer in range(2):
        assert row["retained_by_age"][layer] == pytest.approx(by_age, rel=1e-9)
    assert read_so.forget[0, 0, 0].tolist() == pytest.approx([0.10005] * 2)


def _edge(ages: np.ndarray) -> int:
    """The least age of the oldest bin."""
    return 8 * 2 ** int(math.log2(ages.max() / 8)) if ages.max() >= 8 else 0


def test_how_a_file_is_cut_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module, size in (
        ("text", "titans_domains.language.inspected.PIECE", 23),
        ("causal", "titans_domains.dna.inspected.PIECE", 31),
        ("series", "titans_domains.timeseries.inspected.ROWS", 37),
    ):
        run, file = opened(folder, name), folder / READ[name]
        uncut, kept = read_along(run, file), read_watched(run, file)
        with monkeypatch.context() as patch:
            patch.setattr(module, size)
            cut, again = read_along(run, file), read_watched(run, file)
        whole, parts = as_table(uncut), as_table(cut)
        for one, other in zip(uncut.records, cut.records, strict=True):
            if name == "series":
                assert len(other.bounds) > 1
                assert edges(one).tolist() == edges(other).tolist()
                np.testing.assert_array_equal(*(np.concatenate(r.values) for r in (one, other)))
        assert parts["labels"] == whole["labels"]
        assert parts["records"] == whole["records"]
        for measure in ("surprise", "forget", "before"):
            np.testing.assert_allclose(parts[measure], whole[measure], rtol=2e-3, atol=1e-4)
        if whole["bits"] is not None:
            np.testing.assert_allclose(parts["bits"], whole["bits"], rtol=1e-3, atol=1e-4)
        assert again.numbers.tolist() == kept.numbers.tolist()
        for place, one in kept.kept.items():
            for ours, theirs in zip(one.standing, again.kept[place].standing, strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-9)


def test_tokens_are_shown_as_what_they_are(folder: Path) -> None:
    text = read_along(opened(folder, "text"), folder / "text.txt")
    # A letter of two bytes stands at its second one.
    assert "".join(text.labels) == (folder / "text.txt").read_text(encoding="utf-8")
    assert text.labels.count("") == 4
    bits = text.all_bits()
    assert bits is not None
    assert bits.shape == (text.tokens,)
    assert (bits > 0).all()
    run = opened(folder, "text")
    model, tokenizer = run.subject.model, ByteTokenizer()
    wanted = read_stream(model, tokenizer, stream_of(tokenizer, (folder / "text.txt").read_bytes()))
    assert bits.mean() == pytest.approx(wanted.bits_per_byte, rel=1e-5)
    dna = read_along(opened(folder, "causal"), folder / "genome.fa")
    assert [(r.name, r.end - r.begin) for r in dna.records] == [("one", 150), ("two", 70)]
    reader = load_model(folder / "causal", CPU)
    [first] = reader.bits_per_base(["".join(dna.labels[:150])])
    found = dna.all_bits()
    assert found is not None
    np.testing.assert_allclose(found[:150], first.bits, rtol=1e-4)
    places = read_along(opened(folder, "classes"), folder / "genome.fa", record="two")
    assert "".join(places.labels) == "".join(dna.labels[150:])
    assert {len(label) for label in places.labels[:-1]} == {4}
    series = read_along(opened(folder, "series"), folder / "series.csv")
    [one, other] = series.records
    assert (one.name, other.name) == ("<b>load", "price")
    # 150 steps, of which the first patch has 4 and the last one waits.
    assert one.end - one.begin == 1 + (150 - 4 - 1) // 8
    assert series.labels[0] == "2024-01-01 00:00 to 2024-01-01 03:00"
    assert series.labels[1] == "2024-01-01 04:00 to 2024-01-01 11:00"
    values = np.concatenate(one.values)
    assert len(values) == 4 + 8 * 18
    table = np.genfromtxt(folder / "series.csv", delimiter=",", skip_header=1)[:, 1:]
    np.testing.assert_allclose(values[:, 0], table[: len(values), 0], rtol=1e-6)


@pytest.mark.parametrize("cut", [1000, 777, 1])
def test_watched_tokens_are_the_same_however_they_came(cut: int) -> None:
    numbers, total = torch.zeros(0, dtype=torch.long), 5000
    for first in range(0, total, cut):
        end = min(total, first + cut)
        numbers = torch.cat([numbers, torch.arange(first, end)])
        numbers = numbers[chosen_of(numbers, end)]
    assert numbers[:EDGE].tolist() == list(range(EDGE))
    assert numbers[-EDGE:].tolist() == list(range(total - EDGE, total))
    # Between them every sixteenth, so that there are no more than BETWEEN.
    assert set(numbers[EDGE:-EDGE].tolist()) == set(range(EDGE, total - EDGE, 16))
    assert len(numbers) <= 2 * EDGE + BETWEEN


def test_a_part_is_drawn_and_all_is_counted(folder: Path) -> None:
    run, file = opened(folder, "causal"), folder / "genome.fa"
    whole = read_along(run, file)
    part = read_along(run, file, first=140, most=30)
    assert (part.tokens, len(part.labels)) == (220, 30)
    assert [(r.name, r.begin, r.end) for r in part.records] == [("one", 0, 10), ("two", 10, 30)]
    np.testing.assert_array_equal(part.measure("surprise"), whole.measure("surprise")[140:170])
    assert part.most_surprising == whole.most_surprising
    np.testing.assert_allclose(
        part.averages.mean("surprise"), whole.measure("surprise").mean(0), rtol=1e-5
    )
    ranked = np.sort(whole.measure("surprise").mean(1))[::-1]
    np.testing.assert_allclose(
        sorted((m[0] for m in part.most_surprising), reverse=True), ranked[:12], rtol=1e-6
    )
    with pytest.raises(ValueError, match="--first must be below the 220 tokens"):
        read_along(run, file, first=220)
    series = read_along(opened(folder, "series"), folder / "series.csv", first=5, most=4)
    [record, _] = series.records
    assert np.concatenate(record.bounds).tolist() == [0, 8, 16, 24, 32]


def test_what_several_gradients_write_is_not_shown(folder: Path) -> None:
    run = opened(folder, "text")
    along = read_along(run, folder / "text.txt")
    assert as_table(along)["written"] is not None
    assert 'value="write"' in along_page(along)
    for recall in memories_of(run.subject.model).values():
        recall.config = dataclasses.replace(recall.config, inner_steps=2)
    assert as_table(along)["written"] is None
    page = along_page(along)
    assert 'value="write"' not in page
    assert 'id="chart-write"' not in page
    assert "not what they write together" in page


def test_averages_of_a_long_stream_take_no_more_room() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    whole, parts = Track(), Track()
    whole.add(0, values)
    for first in range(0, len(values), 777):
        parts.add(first, values[first : first + 777])
    assert whole.size == parts.size == 64
    assert len(parts.means()) == math.ceil(50_000 / 64)
    np.testing.assert_allclose(parts.means()[:-1], values[: 781 * 64].reshape(-1, 64).mean(1))
    np.testing.assert_allclose(parts.means(), whole.means())


def test_a_memory_is_compared_with_itself_and_with_another(folder: Path) -> None:
    run = opened(folder, "text")
    a, b = (side_of(run, folder / name) for name in ("text.txt", "other.txt"))
    found = compare_table(run, a, a)
    for row in found["matrices"]:
        assert (row["difference"], row["change"]) == (0, 0)
        assert row["cosine"] == pytest.approx(1)
        assert row["directions"] == pytest.approx(1)
    for row in found["keys"][str(folder / "text.txt")]:
        assert row["recall_a"] == row["recall_b"]
        assert row["agree"] == pytest.approx(1)
    found = compare_table(run, a, b)
    assert set(found["keys"]) == {str(folder / "text.txt"), str(folder / "other.txt")}
    row = found["matrices"][3]
    unit = run.units[3]
    ours, theirs = (
        side.memories[unit.memory].memory[unit.layer][0, unit.head].double() for side in (a, b)
    )
    apart = (ours - theirs).norm().item()
    assert row["difference"] == pytest.approx(apart, rel=1e-5)
    assert row["change"] == pytest.approx(apart / max(ours.norm(), theirs.norm()).item(), rel=1e-5)
    assert row["cosine"] == pytest.approx(
        torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).item(), rel=1e-5
    )
    assert distance(a.memories, b.memories) > 0.01


def test_figures_on_pages_are_readable() -> None:
    assert [short(x) for x in (0.0, 1234.5, 0.05678, 1e-9, None, float("nan"))] == [
        "0", "1,234", "0.0568", "1.00e-09", "-", "-",
    ]  # fmt: skip
    assert [percent(x) for x in (0.0, 0.0001, 0.5, 0.9999, 1.0)] == [
        "0.0 %", "<0.1 %", "50.0 %", ">99.9 %", "100.0 %",
    ]  # fmt: skip
    assert limits(np.full(3, 2.0))[1] > 2.0
    found = levels(np.array([0.0, 1.0, np.nan, np.inf, 0.55]))
    assert found[0] == found[2] == 0
    assert found[1] == found[3] == 9
    assert path_of([0, 1, 2], [0.0, math.nan, 1.0], 0, 1).count("M") == 2
    assert rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert rank_correlation(np.ones(5), np.arange(5.0)) is None


def test_text_stays_text() -> None:
    assert token("<script>", 3) == '<i class="s3">&lt;script&gt;</i>'
    assert token("", 0) == '<i class="s0 thin"></i>'
    assert visible("a\n\t\x00\u202e\u00df") == "a\u21b5\n\u21e5\t\u2400<202E>\u00df"


def test_a_run_without_memory_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no neural memory to inspect: its mixer is attention"):
        opened(folder, "window")


def test_along_keeps_only_what_is_drawn(folder: Path) -> None:
    along: Along = read_along(opened(folder, "text"), folder / "text.txt", most=5)
    assert {along.measure(m).shape[0] for m in ("surprise", "before", "forget")} == {5}
