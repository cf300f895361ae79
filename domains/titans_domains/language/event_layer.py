"""One layer of EM-LLM: attention to a window, to first tokens, and to events of its own choice.

T time, S cached tokens, N tokens of the sinks, H heads, K heads of keys and values, D width of a head,
E events.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from titans_core import Attention
from titans_core.attention import Heads
from titans_domains.language.events import EventSettings, neighbours


class Event(NamedTuple):
    keys: Float[Tensor, "1 S K D"]  # not turned
    values: Float[Tensor, "1 S K D"]


class LayerState(NamedTuple):
    keys: Float[Tensor, "1 S K D"]  # of the cached tokens, not turned
    values: Float[Tensor, "1 S K D"]
    attended: Float[Tensor, "1 S H"]  # attention that later tokens near it have paid to each
    queries: Float[Tensor, "1 Q H D"]  # of the last block less one token, not turned
    sink_keys: Float[Tensor, "1 N K D"]
    sink_values: Float[Tensor, "1 N K D"]
    conv_tail: Float[Tensor, "1 R C"] | None
    events: tuple[Event, ...]  # the store, which grows with the text
    representatives: Float[Tensor, "E H D"]
    queue: tuple[int, ...]  # the contiguity buffer
    chosen: tuple[int, ...]  # events in sight of this block


class Sight(NamedTuple):
    """Which tokens a piece's tokens see, and how."""

    at: Int[Tensor, "1 T"]
    key_at: Int[Tensor, "1 S"]
    near: Bool[Tensor, "T S"]  # at their places
    far: Bool[Tensor, "T S"]  # out of the window, and in no event yet
    sinks: Bool[Tensor, "T N"]


def fresh_layer(heads: Heads) -> LayerState:
    keys = heads.no_keys(1)
    queries = keys.new_zeros(1, 0, heads.count, heads.width)
    return LayerState(
        keys, keys, queries[..., 0], queries, keys, keys, heads.fresh_tail(1),
        (), queries[0], (), (),
    )  # fmt: skip


def attend_to_events(
    attention: Attention,
    x: Float[Tensor, "1 T dim"],
    layer: LayerState,
    sight: Sight,
    settings: EventSettings,
    *,
    opens: bool,
) -> tuple[Float[Tensor, "1 T dim"], LayerState]:
    """The attention of a piece of one block, and the layer after it; what opens a block retrieves."""
    heads = attention.core.heads
    q, k, v, tail = heads(x, layer.conv_tail, None, None)
    new = max(0, settings.sinks - layer.sink_keys.shape[1])
    recent = torch.cat([layer.queries, q], 1)
    if opens:
        asks = recent[:, : layer.queries.shape[1] + 1]
        layer = retrieve(heads, asks, layer, settings)
    layer = layer._replace(
        keys=torch.cat([layer.keys, k], 1),
        values=torch.cat([layer.values, v], 1),
        queries=recent[:, max(0, recent.shape[1] - settings.block + 1) :].clone(),
        sink_keys=torch.cat([layer.sink_keys, k[:, :new]], 1),
        sink_values=torch.cat([layer.sink_values, v[:, :new]], 1),
        conv_tail=tail,
    )
    weights = attention_weights(heads, q, layer, sight, settings.local)
    values = torch.cat([_recalled(layer, 1), layer.values], 1)
    group = heads.count // heads.kv_count
    y = torch.einsum("bhts,bshd->bthd", weights, values.repeat_interleave(group, 2))
    later = sight.near & (sight.key_at < sight.at.T)
    paid = weights[..., -later.shape[1] :].masked_fill(~later, 0).sum(2).mT
    attended = F.pad(layer.attended, (0, 0, 0, x.shape[1])) + paid
    return attention.out(y.flatten(2)), layer._replace(attended=attended)


def attention_weights(
    heads: Heads, q: Float[Tensor, "1 T H D"], layer: LayerState, sight: Sight, local: int
) -> Float[Tensor, "1 H T S"]:
    """One softmax over the sinks, the events in sight, and the cached tokens."""
    group = heads.count // heads.kv_count

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(group, 2))

    far = heads.turn(q, torch.full_like(sight.at, local))
    near = heads.turn(q, sight.at)
    recalled = scores(far, _recalled(layer, 0))
    seen = F.pad(sight.sinks, (0, recalled.shape[-1] - sight.sinks.shape[1]), value=True)
    cached = torch.where(
        sight.near,
        scores(near, heads.turn(layer.keys, sight.key_at)),
        scores(far, layer.keys),
    ).masked_fill(~(sight.near | sight.far), -torch.inf)
    both = torch.cat([recalled.masked_fill(~seen, -torch.inf), cached], -1)
    return (both * heads.width**-0.5).softmax(-1)


def retrieve(
    heads: Heads, asks: Float[Tensor, "1 Q H D"], layer: LayerState, settings: EventSettings
) -> LayerState:
    """The events most like the mean of the last block of queries, and the neighbours of such."""
    events = len(layer.events)
    ask = asks[:, -settings.block :].mean(1, keepdim=True)
    ask = heads.turn(ask, torch.full((1, 1), settings.local, device=ask.device))
    likeness = torch.einsum("hd,ehd->e", ask[0, 0], layer.representatives)
    similar = likeness.topk(min(settings.similar, events)).indices.tolist()
    queue = neighbours(layer.queue, similar, events, settings.contiguous)
    return layer._replace(queue=queue, chosen=tuple(sorted({*similar, *queue})))


def with_event(layer: LayerState, span: slice, representatives: int) -> LayerState:
    """The layer with one more event of cached tokens, found by the keys of its most attended ones."""
    keys, attended = layer.keys[:, span].clone(), layer.attended[0, span]
    best = attended.topk(min(representatives, len(attended)), 0).indices
    every = keys[0].repeat_interleave(attended.shape[1] // keys.shape[2], 1)
    found = every.take_along_dim(best[..., None], 0).mean(0, keepdim=True)
    return layer._replace(
        events=(*layer.events, Event(keys, layer.values[:, span].clone())),
        representatives=torch.cat([layer.representatives, found]),
    )


def without_first(layer: LayerState, count: int) -> LayerState:
    """The layer whose cache begins later; copies, since views would hold all that was cached."""
    return layer._replace(
        keys=layer.keys[:, count:].clone(),
        values=layer.values[:, count:].clone(),
        attended=layer.attended[:, count:].clone(),
    )


def _recalled(layer: LayerState, part: int) -> Float[Tensor, "1 S K D"]:
    """Keys (0) or values (1) of the sinks and of the events in sight."""
    sinks = layer.sink_values if part else layer.sink_keys
    return torch.cat([sinks, *(layer.events[event][part] for event in layer.chosen)], 1)
