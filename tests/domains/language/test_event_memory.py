"""EM-LLM's way of reading: its definition written out slowly, streams, and a fact that is looked up."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_core import AttentionConfig, BackboneConfig
from titans_core.attention import Heads
from titans_domains.language.event_memory import EventMemory, EventState
from titans_domains.language.events import (
    EventSettings,
    conductance,
    modularity,
    neighbours,
    refined,
    surprising,
)
from titans_domains.language.model import LanguageModel

VOCAB = 23
SMALL = EventSettings(
    local=12,
    sinks=3,
    block=4,
    similar=2,
    contiguous=1,
    gamma=0.5,
    surprise_window=16,
    min_event=2,
    max_event=6,
    representatives=2,
)
GROUPED = {"num_heads": 4, "num_kv_heads": 2}


def build(layers: int = 2, **attention: Any) -> LanguageModel:
    """A model whose tokens differ in surprise, and whose attention is far from even."""
    torch.manual_seed(0)
    config = BackboneConfig(
        dim=16,
        num_layers=layers,
        mixer="attention",
        attention=AttentionConfig(**{"num_heads": 2, **attention}),
    )
    model = LanguageModel(config, VOCAB).double()
    with torch.no_grad():
        model.embedding.weight.mul_(2)
        for name, p in model.named_parameters():
            if "qkv" in name:
                p.mul_(3)
    return model.eval()


def tokens(length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(
    memory: EventMemory, x: Tensor, cuts: list[int], state: EventState | None = None
) -> tuple[Tensor, EventState]:
    parts = []
    for first, last in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        logits, state = memory.read(x[:, first:last], state)
        parts.append(logits)
    assert state is not None
    return torch.cat(parts, 1), state


class Slow:
    """The definition, token by token and key by key."""

    def __init__(self, model: LanguageModel, settings: EventSettings) -> None:
        self.model, self.settings = model, settings
        layers = range(model.backbone.config.num_layers)
        self.k: list[list[Tensor]] = [[] for _ in layers]
        self.v: list[list[Tensor]] = [[] for _ in layers]
        self.q: list[list[Tensor]] = [[] for _ in layers]
        self.paid: list[list[Tensor]] = [[] for _ in layers]
        self.found: list[list[Tensor]] = [[] for _ in layers]
        self.queue: list[list[int]] = [[] for _ in layers]
        self.chosen: list[list[int]] = [[] for _ in layers]
        self.spans: list[tuple[int, int]] = []
        self.nats: list[float] = []
        self.begins: list[bool] = []
        self.cut = settings.sinks

    @property
    def stored(self) -> int:
        return self.spans[-1][1] if self.spans else self.settings.sinks

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for t, token in enumerate(x[0].tolist()):
            if t % self.settings.block == 0:
                self.form_events(t)
            outputs.append(self.token(t, token))
            if t:
                self.nats.append(-outputs[-2].log_softmax(-1)[token].item())
                window = torch.tensor(self.nats[:-1][-self.settings.surprise_window :]).double()
            limit = torch.inf
            if t > 2:
                limit = (window.mean() + self.settings.gamma * window.std()).item()
            self.begins.append(t > 2 and self.nats[-1] > limit)
        return torch.stack(outputs)[None]

    def token(self, t: int, token: int) -> Tensor:
        backbone = self.model.backbone
        x = self.model.embedding.weight[token]
        for layer, block in enumerate(backbone.blocks):
            heads = block.mixer.core.heads
            q, k, v, _ = heads(block.mixer_norm(x)[None, None], None, None, None)
            self.q[layer].append(q[0, 0])
            group = heads.count // heads.kv_count
            self.k[layer].append(k[0, 0].repeat_interleave(group, 0))
            self.v[layer].append(v[0, 0].repeat_interleave(group, 0))
            self.paid[layer].append(torch.zeros(heads.count).double())
            x = x + block.mixer.out(self.attention(t, layer, heads).flatten())
            x = x + block.ffn(block.ffn_norm(x)[None, None])[0, 0]
        return self.model.embedding.weight @ backbone.norm(x)

    def attention(self, t: int, layer: int, heads: Heads) -> Tensor:
        local = self.settings.local
        if t % self.settings.block == 0:
            self.retrieve(layer, heads)
        events = [self.spans[e] for e in self.chosen[layer]]
        looked_up = {s for a, b in events for s in range(a, b)}
        scores, seen = [], []
        for s in range(t + 1):
            far = s < self.settings.sinks or s >= self.stored or s in looked_up
            if t - s < local or far:
                q = turned(heads, self.q[layer][t], min(t - s, local))
                scores.append((q * self.k[layer][s]).sum(-1) / heads.width**0.5)
                seen.append(s)
        weights = torch.stack(scores).softmax(0)
        for s, weight in zip(seen, weights, strict=True):
            if 0 < t - s < local:
                self.paid[layer][s] += weight
        return sum(w[:, None] * self.v[layer][s] for s, w in zip(seen, weights, strict=True))

    def retrieve(self, layer: int, heads: Heads) -> None:
        ask = torch.stack(self.q[layer][-self.settings.block :]).mean(0)
        ask = turned(heads, ask, self.settings.local)
        likeness = [(ask * found).sum().item() for found in self.found[layer]]
        order = sorted(range(len(likeness)), key=lambda e: -likeness[e])
        similar, size = order[: self.settings.similar], self.settings.contiguous
        self.queue[layer] = list(neighbours(tuple(self.queue[layer]), similar, len(order), size))
        self.chosen[layer] = sorted({*similar, *self.queue[layer]})

    def form_events(self, t: int) -> None:
        settings, horizon = self.settings, t - self.settings.local + 1
        while True:
            start, cut = self.stored, None
            for s in range(start + settings.min_event, start + settings.max_event):
                if s < t and s > self.cut and self.begins[s]:
                    cut = s
                    break
            end = start + settings.max_event if cut is None else cut
            if end > horizon:
                return
            if cut is not None:
                self.cut = cut
                end = self.refined(start, cut)
            self.spans.append((start, end))
            for layer, paid in enumerate(self.paid):
                own = torch.stack(paid[start:end])
                keys = torch.stack(self.k[layer][start:end])
                heads = range(own.shape[1])
                count = min(settings.representatives, end - start)
                best = [own[:, h].topk(count).indices for h in heads]
                self.found[layer].append(torch.stack([keys[best[h], h].mean(0) for h in heads]))

    def refined(self, start: int, cut: int) -> int:
        if self.settings.refine == "off":
            return cut
        last = cut + (cut - start) // 2
        # A key that a group of heads shares counts once.
        heads = self.model.backbone.blocks[0].mixer.core.heads
        group = heads.count // heads.kv_count
        weights = torch.zeros(last - start, last - start).double()
        for k in self.k:
            keys = torch.stack(k[start:last])[:, ::group].flatten(1)
            weights += keys @ keys.T
        if weights.sum() <= 0:
            return cut
        cuts = range(self.settings.min_event, cut - start + 1)
        cuts = [s for s in cuts if s < last - start]
        if self.settings.refine == "modularity":
            return start + max(cuts, key=lambda s: slow_modularity(weights, s))
        return start + min(cuts, key=lambda s: slow_conductance(weights, s))


def turned(heads: Heads, x: Tensor, at: int) -> Tensor:
    return heads.turn(x[None, None], torch.tensor([[at]]))[0, 0]


def slow_modularity(weights: Tensor, cut: int) -> float:
    size, two_m = len(weights), weights.sum().item()
    side = [s >= cut for s in range(size)]
    found = 0.0
    for i in range(size):
        for j in range(size):
            if side[i] == side[j]:
                expected = weights[i].sum() * weights[:, j].sum() / two_m
                found += (weights[i, j] - expected).item()
    return found / (2 * two_m)


def slow_conductance(weights: Tensor, cut: int) -> float:
    inside = min(weights[:cut, :cut].sum().item(), weights[cut:, cut:].sum().item())
    return weights[:cut, cut:].sum().item() / inside if inside > 0 else torch.inf


@pytest.mark.parametrize("attention", [{}, {**GROUPED, "conv_size": 3}, {"window": 40}], ids=str)
def test_a_text_within_the_window_is_read_as_the_model_reads_it(attention: dict[str, int]) -> None:
    model, x = build(**attention), tokens(40)
    memory = EventMemory(model, replace(SMALL, local=40, block=8))
    logits, state = memory.read(x)
    assert torch.allclose(logits, model(x)[0], rtol=0, atol=1e-10)
    assert state.spans == ()
    # One token more, and its first is no longer at its place.
    assert not torch.allclose(memory.read(tokens(60))[0], build()(tokens(60))[0])


CASES: dict[str, tuple[dict[str, int], EventSettings]] = {
    "modularity": ({}, SMALL),
    "conductance": (GROUPED, replace(SMALL, refine="conductance", sinks=0)),
    "surprise alone": (GROUPED, replace(SMALL, refine="off", contiguous=2, block=1)),
    "by similarity alone": ({}, replace(SMALL, contiguous=0, block=12, gamma=1.0)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_it_is_the_definition(case: tuple[dict[str, int], EventSettings]) -> None:
    model, x = build(**case[0]), tokens(75)
    logits, state = EventMemory(model, case[1]).read(x)
    slow = Slow(model, case[1])
    wanted = slow.read(x)
    assert list(state.spans) == slow.spans
    assert len({end - start for start, end in state.spans}) > 2
    assert [layer.chosen for layer in state.layers] == [tuple(part) for part in slow.chosen]
    assert torch.allclose(logits, wanted, rtol=0, atol=1e-9)
    # Layers choose for themselves, and what they chose is not simply the latest.
    assert len({*state.layers[0].chosen, *state.layers[1].chosen}) > len(state.layers[0].chosen)


@every_case
@settings(max_examples=5)
@given(data=st.data())
def test_a_text_may_be_cut_anywhere(
    case: tuple[dict[str, int], EventSettings], data: st.DataObject
) -> None:
    memory, x = EventMemory(build(**case[0], conv_size=2), case[1]), tokens(70)
    cuts = data.draw(st.lists(st.integers(1, 69), max_size=5, unique=True).map(sorted))
    wanted, whole = memory.read(x)
    got, state = in_pieces(memory, x, cuts)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-10)
    assert state.spans == whole.spans
    more = tokens(20, seed=2)
    assert torch.allclose(
        memory.read(more, state)[0], memory.read(more, whole)[0], rtol=0, atol=1e-10
    )


def test_one_token_at_a_time_at_a_bounded_cache_and_a_growing_store() -> None:
    memory, x = EventMemory(build(), SMALL), tokens(90)
    state, parts, cached = memory.fresh_state(), [], []
    for token in x.split(1, 1):
        logits, state = memory.read(token, state)
        parts.append(logits)
        cached.append(state.layers[0].keys.shape[1])
    assert torch.allclose(torch.cat(parts, 1), memory.read(x)[0], rtol=0, atol=1e-10)
    assert max(cached) <= SMALL.local + SMALL.block + SMALL.max_event
    layer = state.layers[0]
    kept = sum(event.keys.shape[1] for event in layer.events)
    assert kept == state.stored - SMALL.sinks > 90 - max(cached) - SMALL.sinks - 1
    assert len(layer.representatives) == len(layer.events) == len(state.spans)
    assert layer.queries.shape[1] == SMALL.block - 1


@pytest.mark.parametrize("at", [0, 3, 12, 30, 47, 48, 59])
def test_no_logit_depends_on_a_later_token(at: int) -> None:
    memory, x = EventMemory(build(), SMALL), tokens(60)
    changed = x.clone()
    changed[:, at] = (x[:, at] + 1) % VOCAB
    before, after = memory.read(x)[0], memory.read(changed)[0]
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.allclose(before[:, at:], after[:, at:])


NEEDLES, QUERY, FILLERS = range(10, 20), 20, 10


def lookup_model(dim: int = 64) -> LanguageModel:
    """One layer that at a query copies the needle it attends to; fillers look at needles a little."""
    config = BackboneConfig(
        dim=dim,
        num_layers=1,
        mixer="attention",
        ffn_dim=1,
        attention=AttentionConfig(num_heads=1),
    )
    model = LanguageModel(config, VOCAB).double()
    rows = torch.eye(dim, dtype=torch.float64)[:VOCAB]
    block: Any = model.backbone.blocks[0]
    qkv = torch.zeros(3, dim, dim, dtype=torch.float64)
    # In the pair of numbers that turns the least, so that no distance matters.
    slowest = dim // 2 - 1
    qkv[0, slowest, QUERY] = 12.0
    qkv[0, slowest, :FILLERS] = 1.0
    for needle in NEEDLES:
        qkv[1, slowest, needle] = 1.5
        qkv[2, needle, needle] = 1.0
    with torch.no_grad():
        model.embedding.weight.copy_(rows)
        block.mixer.core.heads.qkv.weight.copy_(qkv.flatten(0, 1))
        block.mixer.out.weight.copy_(4 * torch.eye(dim))
        block.ffn.out.weight.zero_()
    return model.eval()


def haystack(needle: int, at: int, length: int = 125, queries: int = 1) -> Tensor:
    x = torch.randint(FILLERS, (1, length), generator=torch.Generator().manual_seed(needle))
    x[:, at], x[:, -queries:] = needle, QUERY
    return x


LOOK_UP = EventSettings(
    local=32, sinks=4, block=1, similar=1, contiguous=0, min_event=4, max_event=16
)


@pytest.mark.parametrize("block", [1, 5])
def test_a_fact_far_beyond_the_window_is_looked_up(block: int) -> None:
    model = lookup_model()
    cases = {
        "retrieved": replace(LOOK_UP, block=block),
        "nothing retrieved": replace(LOOK_UP, block=block, similar=0),
        "seen": replace(LOOK_UP, block=block, local=200, similar=0),
    }
    found: dict[str, list[int]] = {name: [] for name in cases}
    for name, case in cases.items():
        for needle, at in ((11, 17), (14, 50), (18, 77)):
            logits, _ = EventMemory(model, case).read(haystack(needle, at, queries=block))
            found[name].append(int(logits[0, -1, list(NEEDLES)].argmax()) + NEEDLES[0])
    assert found["retrieved"] == found["seen"] == [11, 14, 18]
    # Whoever does not see the needle has nothing to tell it by.
    assert len(set(found["nothing retrieved"])) == 1


def test_a_batch_is_read_row_by_row_and_padding_is_not_read() -> None:
    memory, x = EventMemory(build(), SMALL), tokens(120).view(3, 40)
    lengths = [40, 0, 27]
    mask = torch.arange(40) < torch.tensor(lengths)[:, None]
    logits, states = memory(x, mask=mask)
    more, _ = memory(x[:, :9], states)
    for row, length in enumerate(lengths):
        wanted, state = memory.read(x[row : row + 1, :length])
        assert torch.equal(logits[row, :length], wanted[0])
        assert not logits[row, length:].any()
        assert torch.equal(more[row], memory.read(x[row : row + 1, :9], state)[0][0])
    with pytest.raises(ValueError, match="padded on the right"):
        memory(x, mask=mask.flip(1))


def test_neighbours_bring_what_stood_beside() -> None:
    model, x = lookup_model(), haystack(NEEDLES[0], at=60)
    x[:, 61:75] = NEEDLES[3]
    alone = EventMemory(model, replace(LOOK_UP, max_event=8))
    beside = EventMemory(model, replace(LOOK_UP, max_event=8, contiguous=2))
    one, three = (memory.read(x)[1].layers[0].chosen for memory in (alone, beside))
    assert len(one) == 1
    assert three == (one[0] - 1, one[0], one[0] + 1)


def test_the_contiguity_buffer_forgets_the_oldest() -> None:
    assert neighbours((), [5], 10, 4) == (4, 6)
    assert neighbours((4, 6), [0], 10, 4) == (4, 6, 1)
    assert neighbours((4, 6, 1), [9, 2], 10, 4) == (6, 1, 3, 8)
    # What is similar itself is in sight already.
    assert neighbours((4, 6), [4], 10, 4) == (6, 3, 5)
    assert neighbours((4, 6), [4], 10, 0) == ()


def test_surprise_is_more_than_gamma_deviations_above_what_came_before() -> None:
    nats = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    history = torch.cat([torch.full((5,), torch.nan), nats[:3]]).double()
    wanted = []
    for t in range(3, 50):
        window = nats[max(0, t - 8) : t]
        wanted.append(bool(nats[t] > window.mean() + 0.8 * window.std()))
    got = surprising(history, nats[3:], 0.8).tolist()
    assert got == wanted
    assert 3 < sum(wanted) < 25
    assert not surprising(torch.full((4,), torch.nan).double(), nats[:2], 0.0).any()


def test_graphs_are_scored_as_defined_and_a_boundary_moves_to_where_keys_change() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 7, generator=generator).double()
    weights = weights + weights.T
    for cut in range(1, 7):
        assert modularity(weights)[cut - 1].item() == pytest.approx(slow_modularity(weights, cut))
        assert conductance(weights)[cut - 1].item() == pytest.approx(slow_conductance(weights, cut))
    keys = torch.zeros(15, 4)
    keys[:6, 0], keys[6:, 1] = 1.0, 1.0
    keys += 0.1 * torch.randn(15, 4, generator=generator)
    for metric in ("modularity", "conductance"):
        assert refined(keys, 10, 2, metric) == 6  # type: ignore[arg-type]
        assert refined(keys, 10, 8, metric) == 8  # type: ignore[arg-type]
        assert refined(keys[:1], 1, 1, metric) == 1  # type: ignore[arg-type]


def test_float32_is_near_float64_and_weights_are_only_read() -> None:
    model, x = build(), tokens(50)
    before = [p.clone() for p in model.parameters()]
    wanted, _ = EventMemory(model, SMALL).read(x)
    assert not wanted.requires_grad
    assert all(map(torch.equal, before, model.parameters()))
    got, state = EventMemory(model.float(), SMALL).read(x)
    assert got.dtype == state.layers[0].representatives.dtype == torch.float32
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_what_cannot_be_read_is_refused() -> None:
    lmm = LanguageModel(BackboneConfig(dim=16, num_layers=1), VOCAB)
    with pytest.raises(ValueError, match="must have attention for its mixer"):
        EventMemory(lmm)
    with pytest.raises(ValueError, match=r"attention\.window = 8: got 12"):
        EventMemory(build(window=8), SMALL)
    with pytest.raises(ValueError, match=r"of one text, shape \[1, T\]: got \[2, 3\]"):
        EventMemory(build(), SMALL).read(tokens(6).view(2, 3))
    for wrong, message in {
        ("local", 0): "local must be at least 1",
        ("similar", -1): "similar must be at least 0",
        ("refine", "both"): "refine must be",
        ("max_event", 13): "max_event must be from min_event",
        ("max_event", 1): "max_event must be from min_event",
        ("block", 13): "block must be at most events.local",
        ("gamma", "1"): "gamma must be a number",
    }.items():
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **{wrong[0]: wrong[1]})  # type: ignore[arg-type]
