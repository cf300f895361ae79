"""Averages along a genome do not depend on how it was cut."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna.track import Span, Stretch, draw_track, stretches


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 25), st.integers(1, 25))
def test_windows_are_averages_however_the_stream_was_cut(
    lengths: list[int], size: int, cut: int
) -> None:
    random = np.random.default_rng(0)
    contigs = {f"c{i}": random.random(n) for i, n in enumerate(lengths)}
    spans = [
        Span(name, at, bits[at : at + cut])
        for name, bits in contigs.items()
        for at in range(0, len(bits), cut)
    ]
    wanted = [
        (
            name,
            at,
            min(at + size, len(bits)),
            bits[at : at + size].mean(),
            len(bits[at : at + size]),
        )
        for name, bits in contigs.items()
        for at in range(0, len(bits), size)
    ]
    found = list(stretches(spans, size))
    assert [s[:3] + s[4:] for s in found] == [w[:3] + w[4:] for w in wanted]
    np.testing.assert_allclose([s.bits for s in found], [w[3] for w in wanted])


def test_what_is_not_counted_is_left_out_of_the_average() -> None:
    bits = np.array([1.0, np.nan, 2.0, np.nan, np.nan])
    found = list(stretches([Span("c", 0, bits)], 3))
    assert found[0] == Stretch("c", 0, 3, 1.5, 2)
    assert found[1].cells == {
        "contig": "c", "start": 3, "end": 5, "bits_per_base": None, "bases": 0,
    }  # fmt: skip


def test_one_contig_may_follow_another_of_its_name() -> None:
    spans = [Span("c", 0, np.ones(3)), Span("c", 0, np.zeros(2))]
    assert [s[:4] for s in stretches(spans, 10)] == [("c", 0, 3, 1.0), ("c", 0, 2, 0.0)]


def test_a_stream_with_a_gap_is_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError):
        list(stretches([Span("c", 0, np.ones(3)), Span("c", 4, np.ones(3))], 2))


def test_the_picture_is_a_png_of_the_longest_contigs() -> None:
    found = [
        Stretch(f"c{i}", at, at + 10, float("nan") if at == 10 else 1.9, 10)
        for i in range(20)
        for at in (0, 10, 20)[: 1 + i % 3]
    ]
    file = io.BytesIO()
    draw_track(found, "a $title", file)
    assert file.getvalue().startswith(b"\x89PNG")
