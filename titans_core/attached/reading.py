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
    logits: Float[Tensor, "B T V"]  # of every token, or [B, 1, V] of each row's last
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
    all of them. `attention_mask` marks the tokens of rows that are padded on the right. With `cache`, the
    memories go on from it. With `last`, logits of each row's last token alone. To go on, hand
    `carried(cache)` to the next call or to `generate`.
    """
    ours = attachment_of(model)
    _check_ids(ids)
    size = _check_window(ours.host.window, window)
    if attention_mask is not None:
        _check_mask(attention_mask, ids)
    cache = (
        empty_cache(Memories(ours.layers, ours.host.config)) if cache is None else carried(cache)
    )
    ends = _last_tokens(ids, attention_mask) if last else None
    logits: list[Tensor] = []
    rows: list[Tensor] = []
    for begin in range(0, ids.shape[1], size):
        cache = carried(cache)
        here = slice(begin, begin + size)
        mask = None if attention_mask is None else attention_mask[:, here]
        if ends is None:
            logits.append(model(ids[:, here], attention_mask=mask, cache=cache).logits)
            continue
        at = ends - begin
        row = ((at >= 0) & (at < size)).nonzero()[:, 0]
        kept, place = at[row].unique(return_inverse=True)
        # With no column kept, no logit is computed.
        found = model(ids[:, here], attention_mask=mask, cache=cache, logits_to_keep=kept).logits
        logits.append(found[row, place])
        rows.append(row)
    if ends is not None:
        return Reading(torch.cat(logits)[torch.cat(rows).argsort(), None], cache)
    return Reading(torch.cat(logits, 1), cache)


def _check_ids(ids: Any) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"ids must be a tensor of tokens, [B, T]: got {type(ids).__name__}. Give torch.tensor(ids)."
        )
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"ids must be at least one token, [B, T]: got shape {list(ids.shape)}.")


def _check_window(longest: int, window: Any) -> int:
    """Tokens of a window."""
    size = longest if window is None else window
    if type(size) is not int or not 1 <= size <= longest:
        raise ValueError(
            f"window must be a whole number from 1 to {longest} tokens, the host's: got {window!r}."
        )
    return size


def _check_mask(mask: Any, ids: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must have a flag for each of ids, shape {list(ids.shape)}: got {got}. Leave out "
            "what the cache has read."
        )
    if bool((mask.bool().int().diff(dim=1) > 0).any()):
        raise ValueError(
            "attention_mask must be 1 up to a row's last token and 0 behind it: got a 0 before a 1. Pad on "
            "the right."
        )


def _last_tokens(ids: Tensor, mask: Tensor | None) -> Int[Tensor, " B"]:
    """The place of each row's last token."""
    if mask is None:
        return ids.new_full((len(ids),), ids.shape[1] - 1, dtype=torch.long)
    counts = mask.to(ids.device).bool().sum(1)
    if not bool(counts.all()):
        raise ValueError(
            "attention_mask must have a token in each row with last=True: got a row of padding. Leave it out."
        )
    return counts - 1
