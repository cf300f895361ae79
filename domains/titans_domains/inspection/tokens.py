"""Tokens as they stand on a page: a running text, letters in numbered lines, or a curve with bands."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int

from titans_domains.inspection.along import Along, Record
from titans_domains.inspection.charts import HEIGHT, WIDTH, drawing, limits, line, path_of, short
from titans_domains.page import Html, join, tag

PER_LINE = 60
"""Letters of a line of DNA; with words of several letters the line ends with the word."""
NEWLINE = "\u21b5\n"


def shown(along: Along, shades: Sequence[int]) -> Html:
    """All that is drawn of a file, each token of a class for its shade."""
    draw = {"text": _text, "letters": _letters, "series": _series}[along.run.subject.kind]
    several = len([r for r in along.records if r.end > r.begin]) > 1
    return join(
        *chain.from_iterable(
            (
                tag("h3", record.name) if several or draw is not _text else None,
                draw(along, record, shades),
            )
            for record in along.records
            if record.end > record.begin
        )
    )


def _text(along: Along, record: Record, shades: Sequence[int]) -> Html:
    spans = [token(visible(along.labels[i]), shades[i]) for i in range(record.begin, record.end)]
    return tag("div", *spans, class_="text", dir="auto")


def token(label: str, shade: int) -> Html:
    """One that ends no letter is a thin stripe."""
    return tag("i", label, class_=f"s{shade}" if label else f"s{shade} thin")


def visible(label: str) -> str:
    """The text with signs in place of letters that cannot be seen, or turn what stands around them."""
    return "".join(_sign(letter) for letter in label)


def _sign(letter: str) -> str:
    if letter == "\n":
        return NEWLINE
    if letter == "\t":
        return "\u21e5\t"
    if ord(letter) < 32:
        return chr(0x2400 + ord(letter))
    if unicodedata.category(letter) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp"):
        return f"<{ord(letter):04X}>"
    return letter


def _letters(along: Along, record: Record, shades: Sequence[int]) -> Html:
    rows = []
    # Where in the record the first one that is drawn stands is known of single letters alone.
    at = max(0, along.first - record.first) * len(along.labels[record.begin])
    for begin, end in _lines(along.labels, record):
        spans = [token(along.labels[i], shades[i]) for i in range(begin, end)]
        rows.append(tag("div", tag("b", f"{at + 1:,}"), *spans))
        at += sum(len(along.labels[i]) for i in range(begin, end))
    return tag("div", *rows, class_="letters")


def _lines(labels: Sequence[str], record: Record) -> Iterator[tuple[int, int]]:
    begin, size = record.begin, 0
    for i in range(record.begin, record.end):
        size += len(labels[i])
        if size >= PER_LINE:
            yield begin, i + 1
            begin, size = i + 1, 0
    if begin < record.end:
        yield begin, record.end


def edges(record: Record) -> Int[np.ndarray, " N+1"]:
    """Where in the values of a series its tokens begin, and where the last one ends."""
    return np.concatenate([*(part[:-1] for part in record.bounds), record.bounds[-1][-1:]])


def _series(along: Along, record: Record, shades: Sequence[int]) -> Html:
    values = np.concatenate(record.values)
    bounds = edges(record)
    wide = WIDTH / max(1, len(values))
    bands = [
        tag(
            "rect", x=f"{bounds[i] * wide:.2f}", y=0, height=HEIGHT,
            width=f"{(bounds[i + 1] - bounds[i]) * wide:.2f}", class_=f"s{shades[record.begin + i]}",
        )
        for i in range(record.end - record.begin)
    ]  # fmt: skip
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if not high > low:
        low, high = limits(finite)
    xs = [(i + 0.5) * wide for i in range(len(values))]
    lines = [
        line(path_of(xs, channel.tolist(), float(low), float(high)), f"curve c{number % 4}")
        for number, channel in enumerate(values.T)
    ]
    first, last = along.labels[record.begin], along.labels[record.end - 1]
    return tag(
        "figure",
        tag("div", tag("span", short(float(high))), tag("span", short(float(low))), class_="ends"),
        drawing(*bands, *lines, label=f"{record.name}, with bands of surprise", class_="series"),
        tag(
            "div",
            tag("span", first.split(" to ")[0]),
            tag("span", last.split(" to ")[-1]),
            class_="feet",
        ),
        class_="chart tall",
    )
