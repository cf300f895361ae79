"""Counters and histograms in the text that Prometheus reads."""

import threading
from bisect import bisect_left
from collections.abc import Mapping

KINDS = {
    "titans_requests_total": ("counter", "Requests by route and status."),
    "titans_request_seconds": ("histogram", "Seconds from a request to the end of its answer."),
    "titans_first_token_seconds": ("histogram", "Seconds from a request to its first token."),
    "titans_tokens_total": ("counter", "Tokens read of prompts, and made."),
    "titans_items_total": ("counter", "Series forecast, or sequences classified."),
    "titans_active": ("gauge", "Requests that are worked on."),
    "titans_queued": ("gauge", "Requests that wait."),
    "titans_sessions": ("gauge", "Sessions by where their memories are."),
}
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Thread-safe; `set` is for what is known without counting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {}
        self._seconds: dict[str, dict[Labels, list[float]]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        with self._lock:
            values = self._values.setdefault(name, {})
            key = tuple(labels.items())
            values[key] = values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values.setdefault(name, {})[tuple(labels.items())] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        with self._lock:
            by = self._seconds.setdefault(name, {})
            # A count for each bucket, one for what is beyond them, and the sum of all.
            cells = by.setdefault(tuple(labels.items()), [0.0] * (len(BUCKETS) + 2))
            cells[bisect_left(BUCKETS, seconds)] += 1
            cells[-1] += seconds

    def text(self) -> str:
        lines = []
        with self._lock:
            for name, (kind, words) in KINDS.items():
                lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
                for labels, value in self._values.get(name, {}).items():
                    lines.append(f"{name}{_braces(dict(labels))} {value!r}")
                for labels, cells in self._seconds.get(name, {}).items():
                    lines += _histogram(name, dict(labels), cells)
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Mapping[str, str], cells: list[float]) -> list[str]:
    lines, total = [], 0
    for limit, count in zip((*map(str, BUCKETS), "+Inf"), cells[:-1], strict=True):
        total += int(count)
        lines.append(f"{name}_bucket{_braces({**labels, 'le': limit})} {total}")
    return [
        *lines, f"{name}_sum{_braces(labels)} {cells[-1]!r}", f"{name}_count{_braces(labels)} {total}"
    ]  # fmt: skip


def _braces(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
