"""RMT and ARMT: the recurrence itself, written out slowly, and what every mixer keeps along a stream."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_problems import assert_same_bits, assert_same_result, named
from small_mixers import (
    DIM,
    cuts_of,
    held,
    in_pieces,
    inputs,
    middle,
    other_contents,
    packed,
    right_padding,
    row_of,
)
from torch import Tensor

from titans_core import (
    AttentionConfig,
    Backbone,
    BackboneConfig,
    HybridConfig,
    count_parameters,
    decay_groups,
    detach,
    join,
    load_memory,
    map_state,
    save_memory,
    split,
    state_bytes,
)
from titans_core.segment_memory import Association, SegmentConfig, features
from titans_core.segments import SegmentRecurrence, build_backbone

SEGMENT, TOKENS = 8, 3
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rmt": ("rmt", {}),
    "armt": ("armt", {}),
    "rmt grouped": ("rmt", {"num_heads": 4, "num_kv_heads": 2, "conv_size": 3}),
    "armt grouped": ("armt", {"num_heads": 4, "num_kv_heads": 2, "conv_size": 3}),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def configured(kind: str, **attention: Any) -> BackboneConfig:
    return BackboneConfig(
        dim=DIM,
        num_layers=2,
        mixer=kind,
        attention=AttentionConfig(**{"num_heads": 2, **attention}),
        hybrid=HybridConfig(segment_len=SEGMENT),
        segments=SegmentConfig(num_tokens=TOKENS, key_dim=4),
    )


def build(name: str, dtype: torch.dtype = torch.float64) -> SegmentRecurrence:
    """The model with every parameter moved off its start, so that none is without effect."""
    kind, attention = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SegmentRecurrence(configured(kind, **attention)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype)


def attention_of(model: SegmentRecurrence, layer: int, x: Tensor) -> Tensor:
    """Full causal attention of one row [T, dim], by the softmax of a dense table of scores."""
    mixer = model.blocks[layer].mixer
    q, k, v, _ = mixer.core.heads(x[None], mixer.core.heads.fresh_tail(1), None, None)
    at = torch.arange(len(x))[None]
    q, k = mixer.core.heads.turn(q, at)[0], mixer.core.heads.turn(k, at)[0]
    group = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(group, 1) for part in (k, v[0]))
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
    return mixer.out(torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1))


def layer_of(model: SegmentRecurrence, layer: int, x: Tensor) -> Tensor:
    block = model.blocks[layer]
    x = x + attention_of(model, layer, block.mixer_norm(x))
    return x + block.ffn(block.ffn_norm(x)[None])[0]


def slow_rmt(model: SegmentRecurrence, x: Tensor) -> Tensor:
    memory, outputs = model.persistent, []
    for segment in x.split(SEGMENT):
        h = torch.cat([memory, segment, memory])
        for layer in range(2):
            h = layer_of(model, layer, h)
        h = model.norm(h)
        outputs.append(h[TOKENS : TOKENS + len(segment)])
        memory = h[TOKENS + len(segment) :]
    return torch.cat(outputs)


def slow_features(x: Tensor) -> Tensor:
    r = torch.cat([x.clamp_min(0), (-x).clamp_min(0)])
    size = len(r)
    phi = torch.stack([r[i] * r[i - shift] for shift in (1, 2, 3) for i in range(size)])
    return phi / phi.norm()


def slow_armt(model: SegmentRecurrence, x: Tensor) -> Tensor:
    matrices: list[Any] = [(0.0, 0.0)] * 2
    outputs = []
    for segment in x.split(SEGMENT):
        h = torch.cat([segment, model.persistent])
        for layer in range(2):
            part, (matrix, z) = model.associations[layer], matrices[layer]
            if isinstance(matrix, Tensor):
                q = [slow_features(part.queries(token)) for token in h]
                h = h + torch.stack([phi @ matrix / (phi @ z + 1e-5) for phi in q])
            h = layer_of(model, layer, h)
            after, z_after = matrix, z
            for token in h[len(segment) :]:
                phi, old, new = slow_features(part.keys(token)), 0.0, 1.0
                if isinstance(matrix, Tensor):
                    old = phi @ matrix / (phi @ z + 1e-5)
                    new = (1 - phi @ z / (phi @ phi)).clamp(0, 1).detach()
                beta = part.gates(token).sigmoid()
                after = after + beta * torch.outer(phi, part.values(token) - old)
                z_after = z_after + new * phi
            matrices[layer] = (after, z_after)
        outputs.append(model.norm(h[: len(segment)]))
    return torch.cat(outputs)


SLOW: dict[str, Callable[[SegmentRecurrence, Tensor], Tensor]] = {
    "rmt": slow_rmt,
    "armt": slow_armt,
}


def gradients(model: SegmentRecurrence, y: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad((y * weights).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@every_kind
@pytest.mark.parametrize("time", [5, 8, 9, 29])
def test_outputs_equal_full_attention_over_each_segment(name: str, time: int) -> None:
    model, x = build(name), inputs(2, time)
    y, _ = model(x)
    wanted = torch.stack([SLOW[KINDS[name][0]](model, row) for row in x])
    assert torch.allclose(y, wanted, rtol=0, atol=1e-10)


@every_kind
def test_gradients_pass_from_segment_to_segment(name: str) -> None:
    model, x = build(name), inputs(1, 3 * SEGMENT + 2)
    got = gradients(model, model(x)[0])
    wanted = gradients(model, SLOW[KINDS[name][0]](model, x[0])[None])
    for parameter, gradient in wanted.items():
        scale = gradient.abs().max()
        assert scale > 0, parameter
        assert (got[parameter] - gradient).abs().max() <= 1e-9 * scale, parameter
    x.requires_grad_()
    last = model(x)[0][:, -1].square().sum()
    (reached,) = torch.autograd.grad(last, x)
    assert reached[:, 0].any()


@every_kind
def test_every_parameter_learns_from_its_start(name: str) -> None:
    kind, attention = KINDS[name]
    torch.manual_seed(0)
    model = build_backbone(configured(kind, **attention))
    x, optimiser = inputs(2, 3 * SEGMENT).float(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        model(x)[0].square().mul(torch.linspace(0, 1, DIM)).sum().backward()
        optimiser.step()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
        assert p.grad.any(), parameter


@every_kind
@pytest.mark.parametrize("at", [0, 7, 8, 20])
@torch.no_grad()
def test_no_future_token_is_seen(name: str, at: int) -> None:
    model, x = build(name), inputs(2, 27)
    state = middle(model, [3, 10])
    changed = x.clone()
    changed[:, at] += 0.3
    before, after = model(x, state)[0], model(changed, state)[0]
    assert torch.equal(before[:, :at], after[:, :at])
    # What a token changes reaches the end, over the segments between.
    assert not torch.equal(before[:, at], after[:, at])
    assert not torch.allclose(before[:, -1], after[:, -1], rtol=0, atol=1e-9)


@every_kind
@settings(max_examples=6)
@given(data=st.data())
@torch.no_grad()
def test_a_cut_stream_equals_one_call(name: str, data: st.DataObject) -> None:
    model, time = build(name), data.draw(st.sampled_from([1, 7, 8, 33]))
    x, cuts = inputs(2, time), data.draw(cuts_of(time))
    write = data.draw(st.sampled_from([True, True, False]))
    state = middle(model, data.draw(st.sampled_from([[0, 0], [11, 11], [2, 9]])))
    assert_same_result(in_pieces(model, x, cuts, state, write=write), model(x, state, write=write))


@every_kind
@torch.no_grad()
def test_one_token_at_a_time_at_a_bounded_state(name: str) -> None:
    model, x = build(name), inputs(1, 4 * SEGMENT)
    state, outputs, sizes = None, [], []
    for token in x.split(1, 1):
        y, state = model(token, state)
        outputs.append(y)
        sizes.append(state_bytes(state))
    assert_same_result((torch.cat(outputs, 1), state), model(x))
    assert sizes[:SEGMENT] == sizes[SEGMENT : 2 * SEGMENT] == sizes[-SEGMENT:]


@every_kind
@torch.no_grad()
def test_rows_at_different_phases_equal_each_row_alone(name: str) -> None:
    model, lengths = build(name), [13, 0, 3, 8]
    first, then = inputs(4, 13), inputs(4, 26, seed=1)
    _, state = model(first, mask=right_padding(lengths, 13))
    assert_same_result(in_pieces(model, then, [1, 2, 12], state), model(then, state))
    y, state = model(then, state)
    for row, length in enumerate(lengths):
        wanted_y, wanted = model(torch.cat([first[row, :length], then[row]])[None])
        assert_same_result(
            (y[row : row + 1], held(row_of(state, row))), (wanted_y[:, length:], held(wanted))
        )
    assert state.layers[0].at.shape[1] < SEGMENT + TOKENS


@every_kind
@pytest.mark.parametrize("cuts", [[], [3, 11, 12, 30]], ids=str)
@torch.no_grad()
def test_packed_documents_equal_the_documents_alone(name: str, cuts: list[int]) -> None:
    model, rows = build(name), packed(SEGMENT)
    state = middle(model, [4, 7, 0])
    y, state = in_pieces(model, rows.x, cuts, state, mask=rows.mask, reset=rows.reset)
    for row, spans in enumerate(rows.places):
        for first, last in spans:
            wanted_y, wanted = model(rows.x[row : row + 1, first:last])
            assert_same_result((y[row : row + 1, first:last], None), (wanted_y, None))
        assert_same_result((y[:1, :0], held(row_of(state, row))), (y[:1, :0], held(wanted)))


@every_kind
@torch.no_grad()
def test_a_reset_erases_bit_for_bit(name: str) -> None:
    model, x = build(name), inputs(2, 3 * SEGMENT)
    reset = torch.zeros(2, x.shape[1], dtype=torch.bool)
    reset[0, 0] = reset[1, 2 * SEGMENT] = True
    found = []
    for seed in (1, 2):
        y, state = model(x, middle(model, [SEGMENT, 2 * SEGMENT], seed), reset=reset)
        found.append((y[0], y[1, 2 * SEGMENT :], state))
    assert_same_bits(*found)


@every_kind
@torch.no_grad()
def test_rows_do_not_meet_nor_what_stands_under_the_mask(name: str) -> None:
    model, x = build(name), inputs(3, 30)
    state, mask = middle(model, [3, 9, 0]), right_padding([30, 30, 21], 30)
    y, after = model(x, state, mask=mask)
    for row in range(2):
        others = inputs(3, 30, seed=1)
        others[row] = x[row]
        got_y, got = model(others, other_contents(state, row), mask=mask)
        assert torch.equal(got_y[row], y[row])
        assert_same_bits(row_of(got, row), row_of(after, row))
        assert not torch.equal(got_y[row - 1], y[row - 1])
    x[~mask] = torch.nan
    got_y, got = model(x, state, mask=mask)
    assert torch.equal(got_y[mask], y[mask])
    assert_same_bits(got, after)


@every_kind
@torch.no_grad()
def test_a_frozen_memory_stays_and_its_segment_goes_on(name: str) -> None:
    model, x = build(name), inputs(2, 20)
    state = middle(model, [9, 6])
    y, after = model(x, state, write=False)
    assert_same_bits(after.memory, state.memory)
    assert after.position.tolist() == [29, 26]
    # As read until the segment in which the stream stands is over.
    carried = model(x, state)[0]
    assert torch.allclose(y[1, :2], carried[1, :2], rtol=0, atol=1e-12)
    assert not torch.allclose(y[:, 10:], carried[:, 10:])
    restarted = model.restart_memory(state)
    assert not torch.allclose(y[:, 10:], model(x, restarted, write=False)[0][:, 10:])
    with pytest.raises(ValueError, match="frozen memory cannot be reset"):
        model(x, reset=torch.ones(2, 20, dtype=torch.bool) & (torch.arange(20) == 0), write=False)


@every_kind
@torch.no_grad()
def test_restarts_are_the_start_and_the_rest_goes_on(name: str) -> None:
    model = build(name)
    state, fresh = middle(model, [9, 16]), model.fresh_state(2)
    restarted = model.restart_memory(state)
    assert_same_bits(restarted.memory, fresh.memory)
    assert_same_bits(restarted._replace(memory=state.memory), state)
    again = model.restart_caches(state)
    kept, ours = named(again), named(state)
    assert all(kept[name] is ours[name] for name in ours if "layers" not in name)
    assert torch.equal(again.layers[0].position, torch.tensor([1 + model.reads, 0]))
    x = inputs(2, 20)
    assert_same_result(in_pieces(model, x, [1, 3, 9], again), model(x, again))
    # A row between two segments has nothing in its cache that could be missed.
    assert torch.allclose(model(x, again)[0][1], model(x, state)[0][1], rtol=0, atol=1e-12)


@every_kind
@torch.no_grad()
def test_states_are_kept_joined_split_and_put_down(name: str, tmp_path: Path) -> None:
    model, x = build(name), inputs(1, 10)
    state = middle(model, [13])
    save_memory(tmp_path / "memory", state, model)
    loaded = load_memory(tmp_path / "memory", model)
    assert_same_result(model(x, loaded), model(x, model.restart_caches(state)))
    both = join([state, middle(model, [4])])
    assert_same_result(model(x, split(both)[0]), model(x, state))
    assert_same_result(model(x, model.take_up(model.put_down(state))), model(x, state))


@every_kind
def test_a_carried_state_is_detached_and_the_start_goes_on_learning(name: str) -> None:
    model = build(name)
    state = model.put_down(model(inputs(2, 2 * SEGMENT))[1])
    assert not any(x.requires_grad for x in named(state).values())
    y, _ = model(inputs(2, SEGMENT), model.take_up(state))
    y.square().mul(torch.linspace(0, 1, DIM)).sum().backward()
    if name.startswith("rmt"):
        assert model.persistent is not None
        assert model.persistent.grad is not None
        assert model.persistent.grad.any()


@every_kind
def test_half_precision_trains_and_associations_stay_in_float32(name: str) -> None:
    model, x = build(name, torch.bfloat16), inputs(2, 3 * SEGMENT).bfloat16()
    y, state = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if name.startswith("armt"):
        assert {x.dtype for x in named(state.memory).values()} == {torch.float32}
    model = build(name, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x.float())
        y, _ = model(x.float(), state)
    wanted = model(x.float(), model(x.float())[1])[0]
    assert (y.float() - wanted).abs().mean() < 0.1 * wanted.abs().mean()


def test_an_empty_association_answers_nothing_and_a_key_is_replaced() -> None:
    torch.manual_seed(0)
    memory = Association(6, 4).double()
    with torch.no_grad():
        memory.values.weight.copy_(torch.eye(6))
        memory.keys.weight.copy_(torch.eye(4, 6))
        memory.queries.weight.copy_(torch.eye(4, 6))
        memory.gates.bias.fill_(40.0)
    fresh = memory.fresh_state(1)
    x = torch.randn(1, 1, 6, dtype=torch.float64)
    assert not memory.recall(x, fresh).any()
    once = memory.write(x, fresh)
    assert torch.allclose(memory.recall(x, once), x, atol=1e-4)
    # The same key with another value: the delta rule puts it in the old one's place.
    other = torch.cat([x[..., :4], torch.randn(1, 1, 2, dtype=torch.float64)], -1)
    assert torch.allclose(memory.recall(x, memory.write(other, once)), other, atol=1e-4)
    assert features(torch.zeros(3)).eq(0).all()


def test_what_is_refused_and_what_decays() -> None:
    with pytest.raises(ValueError, match="of layers here: got 'rmt', which is a memory over the"):
        Backbone(configured("rmt"))
    with pytest.raises(ValueError, match="one of lmm, .*, armt, or several of .*: got 'rmt' in"):
        configured("rmt/lmm")
    with pytest.raises(ValueError, match=r"attention\.window must be None where mixer is rmt"):
        configured("rmt", window=4)
    with pytest.raises(ValueError, match=r"segments\.num_tokens must be at least 1: got 0"):
        SegmentConfig(num_tokens=0)
    model = build("armt")
    with pytest.raises(ValueError, match=r"reset must fall on a multiple of segment_len = 8"):
        model(inputs(1, 9), reset=torch.arange(9)[None] == 3)
    with pytest.raises(TypeError, match="must be a SegmentState"):
        model(inputs(1, 3), Backbone(configured("attention")).double().fresh_state(1))
    with pytest.raises(ValueError, match="another configuration"):
        model(inputs(1, 3), map_state(lambda x: x, middle(model, [3]))._replace(settings="0"))
    exempt = {id(p) for p in list(decay_groups(model, 0.1))[1]["params"]}
    spared = {name for name, p in model.named_parameters() if id(p) in exempt}
    assert {"persistent", "associations.0.gates.weight"} <= spared
    assert not any("qkv" in name or "keys" in name for name in spared)


def test_parameters_are_those_of_attention_and_of_the_memory() -> None:
    plain = count_parameters(Backbone(configured("attention")))
    assert count_parameters(build("rmt")) == plain + TOKENS * DIM
    layer = 2 * 4 * DIM + DIM * DIM + DIM + 1
    assert count_parameters(build("armt")) == plain + TOKENS * DIM + 2 * layer


def test_the_state_that_came_in_is_untouched() -> None:
    for name in ("rmt", "armt"):
        model, x = build(name), inputs(2, 20)
        state = detach(middle(model, [9, 6]))
        before = map_state(torch.clone, state)
        model(x, state)[0].sum().backward()
        assert_same_bits(state, before)
        none, after = model(inputs(2, 0), state)
        assert none.shape == (2, 0, DIM)
        assert_same_bits(after, state)
