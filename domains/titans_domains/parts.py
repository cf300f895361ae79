"""The figures of a step that was done in parts, by one process or several, put together."""

import math
import signal
from collections.abc import Sequence
from typing import NamedTuple

from titans_domains.ranks import total, world


class Part(NamedTuple):
    weight: float
    """What the part's loss is the mean over."""
    tokens: int
    is_odd: bool
    """Whether its loss is not finite."""
    log: dict[str, float]


class Whole(NamedTuple):
    weight: float
    tokens: int
    is_odd: bool
    asked: int
    """The signal by which any process was asked to end; 0 where none was."""
    log: dict[str, float]
    """Each part as heavy as its weight."""


def put_together(parts: Sequence[Part], asked: int) -> Whole:
    """The same in every process: all of them must come here once a step."""
    first = parts[0]
    if len(parts) == 1 and world() == 1:
        return Whole(first.weight, first.tokens, first.is_odd, asked, first.log)
    # Of a part in which nothing counts there is no figure.
    logs = [
        sum(part.weight * part.log[name] for part in parts if part.weight) for name in first.log
    ]
    weight, tokens, odd, terminated, interrupted, *sums = total(
        [
            sum(part.weight for part in parts),
            sum(part.tokens for part in parts),
            sum(part.is_odd for part in parts),
            asked == signal.SIGTERM,
            asked == signal.SIGINT,
            *logs,
        ]
    )
    log = {
        name: x / weight if weight else math.nan for name, x in zip(first.log, sums, strict=True)
    }
    asked = signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0
    return Whole(weight, round(tokens), bool(odd), asked, log)
