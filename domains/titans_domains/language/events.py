"""Where the events of a text begin: at surprise, and where the graph of its keys parts best.

T time, W tokens of a window, F numbers of a token's keys in all layers.
Source: Fountas et al., "Human-inspired Episodic Memory for Infinite Context LLMs" (EM-LLM),
arXiv 2407.09450, sections 3.1 and 3.2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from titans_core.checks import check_numbers


@dataclass(frozen=True, kw_only=True)
class EventSettings:
    """What EM-LLM keeps and sees; the defaults are the paper's for models of 7B and 32K tokens."""

    local: int = 4096  # tokens that a token attends to at their places, itself among them
    sinks: int = 128  # first tokens of the text, always seen
    block: int = 512  # tokens that share what is retrieved
    similar: int = 28  # events retrieved by similarity
    contiguous: int = 12  # neighbours of retrieved events that stay in sight
    gamma: float = 1.0  # surprise begins an event above mean + gamma deviations
    surprise_window: int = 4096  # tokens that mean and deviation are taken over
    refine: Literal["off", "modularity", "conductance"] = "modularity"
    min_event: int = 8
    max_event: int = 128
    representatives: int = 4  # tokens by whose keys an event is found

    def __post_init__(self) -> None:
        check_numbers(self, "events.")
        least = {"sinks": 0, "similar": 0, "contiguous": 0, "surprise_window": 2}
        for name in ("local", "block", "min_event", "representatives", *least):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(
                    f"events.{name} must be at least {least.get(name, 1)}: "
                    f"got {getattr(self, name)}."
                )
        if self.refine not in ("off", "modularity", "conductance"):
            raise ValueError(
                f"events.refine must be 'off', 'modularity' or 'conductance': got {self.refine!r}."
            )
        if not self.min_event <= self.max_event <= self.local:
            raise ValueError(
                f"events.max_event must be from min_event = {self.min_event} to local = "
                f"{self.local}: got {self.max_event}."
            )
        if self.block > self.local:
            raise ValueError(
                f"events.block must be at most events.local = {self.local}: got {self.block}."
            )


def surprising(
    history: Float[Tensor, " W"], nats: Float[Tensor, " T"], gamma: float
) -> Bool[Tensor, " T"]:
    """Which tokens cost more than mean + gamma deviations of the W before each; NaN is no token."""
    windows = torch.cat([history, nats])[:-1].unfold(0, len(history), 1)
    known = ~windows.isnan()
    count = known.sum(1)
    mean = windows.nan_to_num().sum(1) / count.clamp_min(1)
    squares = (windows - mean[:, None]).square().masked_fill(~known, 0).sum(1)
    deviation = (squares / (count - 1).clamp_min(1)).sqrt()
    return (count > 1) & (nats > mean + gamma * deviation)


def modularity(weights: Float[Tensor, "T T"]) -> Float[Tensor, " T-1"]:
    """Of a symmetric graph in two communities, tokens before s and from s on, for s = 1 .. T - 1."""
    whole = weights.sum()
    before, across, behind = _parts(weights)
    share = before + across
    expected = (share.square() + (whole - share).square()) / whole
    return (before + behind - expected) / (2 * whole)


def conductance(weights: Float[Tensor, "T T"]) -> Float[Tensor, " T-1"]:
    """What is cut at s = 1 .. T - 1, of the smaller inside; infinite where a side has none inside."""
    before, across, behind = _parts(weights)
    smaller = torch.minimum(before, behind)
    return torch.where(smaller > 0, across / smaller, torch.inf)


def _parts(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the weights among tokens before s, between them and the others, among the others."""
    before = weights.cumsum(0).cumsum(1).diagonal()[:-1]
    share = weights.sum(1).cumsum(0)[:-1]
    return before, share - before, weights.sum() - 2 * share + before


def refined(
    keys: Float[Tensor, "T F"],
    length: int,
    least: int,
    metric: Literal["modularity", "conductance"],
) -> int:
    """How many of `length` tokens an event keeps: from `least` on, where the graph parts best.

    The keys are those of the event and of what follows; two tokens are as near as their dot product.
    An event whose keys are not alike at all stays as it is.
    """
    keys = keys.double()
    weights = keys @ keys.T
    if len(keys) < 2 or not bool(weights.sum() > 0):
        return length
    score = modularity(weights) if metric == "modularity" else -conductance(weights)
    allowed = score[least - 1 : length]
    if not len(allowed) or not bool(allowed.isfinite().any()):
        return length
    return least + int(allowed.argmax())


def neighbours(
    queue: tuple[int, ...], similar: list[int], events: int, size: int
) -> tuple[int, ...]:
    """The contiguity buffer after a retrieval, the oldest first: its newest are beside the best."""
    kept = [event for event in queue if event not in similar]
    for event in reversed(similar):
        for beside in (event - 1, event + 1):
            if 0 <= beside < events and beside not in similar:
                kept = [other for other in kept if other != beside] + [beside]
    return tuple(kept[max(0, len(kept) - size) :])
