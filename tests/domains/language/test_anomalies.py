"""What surprises a memory far more than the rest of a text does."""

import pytest
import torch
from tiny_language import SENTENCES, tiny_model

from titans_core.memory import Recall
from titans_domains.language.anomalies import (
    FAR,
    Usual,
    anomalies,
    surprises_of,
    unit_names,
    usual_of,
)
from titans_domains.language.surprise import surprise_of
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer

BYTES = ByteTokenizer()
MEMORIES = ("lmm", "mac", "mag", "mal", "mac+mal", "lmm/gla")


@pytest.mark.parametrize("mixer", MEMORIES)
def test_every_unit_has_a_figure_and_their_mean_is_the_surprise(mixer: str) -> None:
    model = tiny_model(mixer=mixer).double()
    text = (SENTENCES[0].encode() * 2)[:50]
    found = surprises_of(model, BYTES, text)
    assert found.shape == (50, len(unit_names(model)))
    assert torch.allclose(found.mean(1), surprise_of(model, BYTES, text), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", ["lmm", "mac", "mag"])
@pytest.mark.parametrize("piece", [13, 24, 49])
def test_a_text_is_read_in_pieces(mixer: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(mixer=mixer).double()
    text = (SENTENCES[0].encode() * 2)[:97]
    whole = surprises_of(model, BYTES, text)
    monkeypatch.setattr("titans_domains.language.anomalies.PIECE", piece)
    read: list[int] = []
    found = surprises_of(model, BYTES, text, progress=read.append)
    # The last token may be alone.
    assert len(read) == -(-98 // piece)
    assert sum(read) == 98
    assert torch.allclose(found, whole, rtol=0, atol=1e-10)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_rows_of_a_state_stand_at_one_place() -> None:
    memory = next(m for m in tiny_model().modules() if isinstance(m, Recall))
    state = memory.fresh_state(2)
    position = torch.tensor([0, 3])
    state = state._replace(memory=state.memory._replace(position=position))
    with pytest.raises(ValueError, match=r"all rows at one place of a chunk: got \[0, 3\]"):
        memory.surprise_from(torch.zeros(2, 5, 16), state)


def test_outliers_are_those_above_the_median_by_so_many_deviations() -> None:
    text = b"0123456789"
    surprise = torch.tensor([[1.0, 5.0]] * 10) + 0.1 * torch.arange(10)[:, None]
    surprise[3, 0] = 40.0
    surprise[4, 1] = 90.0
    surprise[7, 0] = 9.0
    # By hand: both units have their median at the fifth of ten values.
    for k in (2.0, 25.0, 50.0, 150.0, 500.0):
        median = surprise.sort(0).values[4]
        deviation = (surprise - median).abs().sort(0).values[4]
        scores = (surprise - median) / deviation
        wanted = [token for token in range(10) if (scores[token] > k).any()]
        found = anomalies(BYTES, text, surprise, far=k)
        assert [token for a in found for token in range(a.start, a.end)] == wanted
        for a in found:
            block = scores[a.start : a.end]
            assert a.score == pytest.approx(float(block.max()))
            assert float(block[:, a.unit].max()) == float(block.max())
            assert a.tokens == a.end - a.start
    assert [(a.start, a.end) for a in anomalies(BYTES, text, surprise, far=50.0)] == [(3, 5)]


def test_a_few_outliers_do_not_move_what_is_usual() -> None:
    surprise = torch.rand(1000, 3)
    usual = usual_of(surprise)
    poisoned = surprise.clone()
    poisoned[:100] = 1e6
    other = usual_of(poisoned)
    assert torch.allclose(usual.median, other.median, atol=0.1)
    assert torch.allclose(usual.deviation, other.deviation, atol=0.1)


def test_texts_that_surprise_alike_have_no_anomaly() -> None:
    assert anomalies(BYTES, b"aaaa", torch.ones(4, 2)) == []
    nearly = torch.ones(4, 2)
    nearly[2] += 1e-6
    assert anomalies(BYTES, b"aaaa", nearly) == []
    nearly[2] += 1
    assert [a.start for a in anomalies(BYTES, b"aaaa", nearly)] == [2]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("begin", [3, 10, 19])
def test_what_is_not_finite_is_infinitely_far_out(broken: float, begin: int) -> None:
    surprise = torch.rand(20, 3)
    surprise[begin:, 1] = broken
    [found] = anomalies(BYTES, b"x" * 20, surprise)
    assert (found.start, found.end, found.unit) == (begin, 20, 1)
    assert found.score == torch.inf
    # The finite ones are judged by each other.
    surprise[:, 1] = broken
    surprise[5, 2] = 1e6
    [found] = anomalies(BYTES, b"x" * 20, surprise)
    assert (found.tokens, found.score) == (20, torch.inf)
    calm = torch.rand(20, 1)
    assert usual_of(calm) == usual_of(torch.cat([calm, torch.full((9, 1), broken)]))


def test_what_is_usual_may_come_from_another_text() -> None:
    trusted = Usual(torch.tensor([1.0]), torch.tensor([0.1]))
    # Of a text that is poisoned throughout, every token.
    poisoned = torch.full((5, 1), 50.0)
    assert anomalies(BYTES, b"abcde", poisoned) == []
    [found] = anomalies(BYTES, b"abcde", poisoned, usual=trusted)
    assert (found.start, found.end, found.tokens) == (0, 5, 5)


def test_what_is_strange_in_a_text_is_found() -> None:
    torch.manual_seed(1)
    model = tiny_model(num_layers=1)
    with torch.no_grad():
        # A letter that stands for what no other does, and is written far more strongly.
        model.embedding.weight[:, 0] = 0
        model.embedding.weight[ord("@")] = 0
        model.embedding.weight[ord("@"), 0] = 1
        qkv = model.backbone.blocks[0].mixer.recall.qkv
        qkv.weight[2 * 16 :, 0] += 30
    text = SENTENCES[0].encode() * 6
    at = 3 * len(SENTENCES[0]) + 7
    poisoned = text[:at] + b"@" + text[at:]
    calm = anomalies(BYTES, text, surprises_of(model, BYTES, text), far=FAR)
    found = anomalies(BYTES, poisoned, surprises_of(model, BYTES, poisoned), far=FAR)
    assert [a for a in found if a.start <= at < a.end]
    assert len(found) <= len(calm) + 2


def test_places_are_those_of_bytes() -> None:
    text = "Größe 日本語 Größe".encode()
    tokenizer = BPETokenizer.train([text], 270)
    ids = tokenizer.encode(text).tolist()
    surprise = torch.ones(len(ids), 1)
    surprise[2] = surprise[-1] = 100.0
    found = anomalies(tokenizer, text, surprise)
    assert [text[a.start : a.end] for a in found] == [
        tokenizer.decode([ids[2]]), tokenizer.decode([ids[-1]]),
    ]  # fmt: skip


def test_what_cannot_be_judged_is_said() -> None:
    with pytest.raises(ValueError, match="has no memory that could be surprised: its mixer is att"):
        surprises_of(tiny_model(mixer="attention"), BYTES, b"text")
    with pytest.raises(ValueError, match="text is empty: give at least one byte"):
        surprises_of(tiny_model(), BYTES, b"")
    nowhere = Usual(torch.tensor([torch.nan]), torch.ones(1))
    with pytest.raises(ValueError, match="usual must be finite: take it from a text"):
        anomalies(BYTES, b"a", torch.ones(1, 1), usual=nowhere)
    with pytest.raises(ValueError, match="far must be above 0 deviations: got nan"):
        anomalies(BYTES, b"a", torch.ones(1, 1), far=float("nan"))
