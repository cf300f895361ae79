"""The causal convolution: it equals the whole when fed in pieces, and stays in its document."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_mixers import cuts_of, right_padding
from torch import Tensor

from titans_core.convolution import CausalConvolution


def convolution(size: int = 4) -> tuple[CausalConvolution, Tensor]:
    """Of three channels, and two rows of 20 tokens."""
    torch.manual_seed(0)
    return CausalConvolution(3, size).double(), torch.randn(2, 20, 3, dtype=torch.float64)


def by_hand(conv: CausalConvolution, x: Tensor, tail: Tensor) -> Tensor:
    """Each value's weighted sum with those before it, one token at a time."""
    span = torch.cat([tail, x], 1)
    return torch.stack(
        [
            torch.stack([conv.weight[:, j] * span[:, t + j] for j in range(conv.size)]).sum(0)
            for t in range(x.shape[1])
        ],
        1,
    )


@pytest.mark.parametrize("size", [2, 3, 4, 30])
def test_it_is_a_weighted_sum_of_the_last_values(size: int) -> None:
    conv, x = convolution(size)
    tail = torch.randn(2, size - 1, 3, dtype=torch.float64)
    y, after = conv(x, tail)
    assert torch.allclose(y, by_hand(conv, x, tail), rtol=0, atol=1e-14)
    assert torch.equal(after, torch.cat([tail, x], 1)[:, 20:])


def flags(kind: str) -> dict[str, Tensor]:
    """Padding, or documents in a row, with a gap before the next one and an empty one."""
    mask, reset = torch.ones(2, 20, dtype=torch.bool), torch.zeros(2, 20, dtype=torch.bool)
    mask[0, 17:] = False
    if kind == "mask":
        return {"mask": mask}
    reset[0, 0] = reset[0, 1] = reset[0, 7] = reset[1, 12] = reset[1, 18] = True
    mask[0, 5:7] = mask[1, 10:12] = mask[1, 15:] = False
    return {"mask": mask, "reset": reset}


@settings(max_examples=30)
@given(cuts=cuts_of(20), kind=st.sampled_from(["", "mask", "reset"]), started=st.booleans())
def test_pieces_equal_the_whole(cuts: list[int], kind: str, started: bool) -> None:
    conv, x = convolution()
    start = torch.randn(1, 3, 3, dtype=torch.float64) if started else None
    context = flags(kind) if kind else {}
    wanted, last = conv(x, conv.fresh_tail(2, x), start=start, **context)
    tail, outputs = conv.fresh_tail(2, x), []
    for first, end in zip([0, *cuts], [*cuts, 20], strict=True):
        piece = {name: part[:, first:end] for name, part in context.items()}
        y, tail = conv(x[:, first:end], tail, start=start, **piece)
        outputs.append(y)
    live = context.get("mask", torch.ones(2, 20, dtype=torch.bool))
    assert torch.allclose(torch.cat(outputs, 1)[live], wanted[live], rtol=0, atol=1e-14)
    assert torch.equal(tail, last)


@pytest.mark.parametrize("started", [False, True])
def test_documents_equal_the_documents_alone(started: bool) -> None:
    conv, x = convolution()
    start = torch.randn(1, 3, 3, dtype=torch.float64) if started else None
    before = conv.fresh_tail(1, x) if start is None else start
    y, tail = conv(x, torch.randn(2, 3, 3, dtype=torch.float64), start=start, **flags("reset"))
    for row, first, last in [(0, 0, 1), (0, 1, 5), (0, 7, 17), (1, 12, 15)]:
        wanted, after = conv(x[row : row + 1, first:last], before)
        assert torch.allclose(y[row : row + 1, first:last], wanted, rtol=0, atol=1e-14)
        if (row, last) == (0, 17):
            assert torch.equal(tail[:1], after)
    # The last document of row 1 has not begun yet.
    assert torch.equal(tail[1:], before)


def test_no_future_value_and_no_padding_is_seen() -> None:
    conv, x = convolution()
    mask = right_padding([20, 9], 20)
    y, tail = conv(x, conv.fresh_tail(2, x), mask=mask)
    x[1, 9:] = torch.nan
    got, after = conv(x, conv.fresh_tail(2, x), mask=mask)
    assert torch.equal(got[mask], y[mask])
    assert torch.equal(after, tail)


def test_a_half_precision_model_keeps_its_precision() -> None:
    conv, x = convolution()
    conv, x = conv.bfloat16(), x.bfloat16()
    for context in ({}, flags("mask"), flags("reset")):
        y, tail = conv(x, conv.fresh_tail(2, x), **context)
        assert (y.dtype, tail.dtype) == (torch.bfloat16, torch.bfloat16)
