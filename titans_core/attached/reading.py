"""Reading further than the host's positions reach: window by window, with the memory carried on.

B batch, T time, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from titans_core.attached.attaching import attachment_of
from titans_core.attached.cached import Memories, carried, empty_cache


class Reading(NamedTuple):
    logits: Float[Tensor, "B T V"]  # of every token, or [B, 1, V] of the last
    cache: Any  # of the last window, with the memories


def read(
    model: Any,
    ids: Int[Tensor, "B T"],
    *,
    window: int | None = None,
    attention_mask: Tensor | None = None,
    cache: Any = None,
    last: bool = False,
) -> Reading:
    """Reads a text of any length in windows (None: as long as the host's positions reach).

    The host sees each window alone, from position 0, and the memory all of them; gradients go through
    all of them. With `cache`, the memories go on from it. With `last`, logits of the last token alone.
    To go on, hand `carried(cache)` to the next call or to `generate`.
    """
    ours = attachment_of(model)
    longest = ours.host.window
    size = longest if window is None else window
    if not 1 <= size <= longest:
        raise ValueError(f"window must be from 1 to {longest} tokens, the host's: got {window}.")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"ids must be at least one token, [B, T]: got shape {list(ids.shape)}.")
    cache = (
        empty_cache(Memories(ours.layers, ours.host.config)) if cache is None else carried(cache)
    )
    logits: list[Tensor] = []
    for begin in range(0, ids.shape[1], size):
        cache = carried(cache)
        mask = None if attention_mask is None else attention_mask[:, begin : begin + size]
        found = model(
            ids[:, begin : begin + size],
            attention_mask=mask,
            cache=cache,
            logits_to_keep=int(last),
        ).logits
        logits = [found] if last else [*logits, found]
    return Reading(torch.cat(logits, 1), cache)
