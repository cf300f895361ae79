"""The selective scan: chunks against tokens, cuts, documents, padding, and what others compute.

B batch, T time, E channels, N numbers of state for each channel.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from memory_problems import TOLERANCES, assert_close, assert_same_result
from torch import Tensor

from titans_kernels import selective_scan


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All that `selective_scan` takes."""

    x: Tensor
    step: Tensor
    rate: Tensor
    writer: Tensor
    reader: Tensor
    mask: Tensor | None = None
    reset: Tensor | None = None
    state: Tensor | None = None

    def run(self, backend: str = "chunked") -> tuple[Tensor, Tensor]:
        return selective_scan(**vars(self), backend=backend)

    def tokens(self, first: int, last: int, state: Tensor | None = None) -> "Scan":
        streams = ("x", "step", "writer", "reader", "mask", "reset")
        parts = {n: x[:, first:last] for n in streams if (x := getattr(self, n)) is not None}
        return replace(self, state=state, **parts)


def problem(time: int, *, documents: bool = False, dtype: torch.dtype = torch.float64) -> Scan:
    """Three rows that go on from a state."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    mask = reset = None
    if documents:
        mask = torch.ones(3, time, dtype=torch.bool)
        reset = torch.zeros_like(mask)
        for row, at in ((0, 0), (0, 16), (0, 17), (1, 40)):
            reset[row, at:][:1] = True
        mask[0, 50:] = mask[1, 30:40] = mask[2, time - 3 :] = False
        reset = reset & mask
    return Scan(
        x=normal(3, time, 4), step=F.softplus(normal(3, time, 4)), rate=-normal(4, 5).exp(),
        writer=normal(3, time, 5), reader=normal(3, time, 5),
        mask=mask, reset=reset, state=normal(3, 4, 5),
    )  # fmt: skip


def values_and_gradients(asked: Scan, backend: str) -> dict[str, Tensor]:
    """Output, state, and the gradient of a random weighting of them by every input."""
    inputs = {
        f.name: x.detach().clone().requires_grad_()
        for f in fields(asked)
        if isinstance(x := getattr(asked, f.name), Tensor) and x.is_floating_point()
    }
    found = dict(zip(("y", "state"), replace(asked, **inputs).run(backend), strict=True))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum()
        for x in found.values()
    )
    grads = torch.autograd.grad(loss, list(inputs.values()))  # type: ignore[arg-type]
    found |= {f"gradient by {n}": g for n, g in zip(inputs, grads, strict=True)}
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize("time", [1, 2, 63, 100])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_chunks_give_the_numbers_of_tokens(time: int, documents: bool, dtype: torch.dtype) -> None:
    asked = problem(time, documents=documents, dtype=dtype)
    got, wanted = (values_and_gradients(asked, b) for b in ("chunked", "reference"))
    assert_close(got, wanted, TOLERANCES[dtype])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("documents", [False, True])
def test_a_stream_may_be_cut_anywhere(backend: str, documents: bool) -> None:
    asked = problem(100, documents=documents)
    outputs, state = [], asked.state
    for first, last in ((0, 1), (1, 1), (1, 17), (17, 41), (41, 100)):
        y, state = asked.tokens(first, last, state).run(backend)
        outputs.append(y)
    assert_same_result((torch.cat(outputs, 1), state), asked.run())


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_reset_leaves_no_bit_and_a_mask_changes_none(backend: str) -> None:
    asked = problem(100, documents=True)
    assert asked.mask is not None
    assert asked.state is not None
    y, state = asked.run(backend)
    other = torch.where(torch.tensor([True, False, False])[:, None, None], 9.0, asked.state)
    dirty = {
        name: getattr(asked, name).masked_fill(~asked.mask[..., None], torch.nan)
        for name in ("x", "step", "writer", "reader")
    }
    got_y, got = replace(asked, state=other, **dirty).run(backend)
    assert torch.equal(got_y[asked.mask], y[asked.mask])
    assert torch.equal(got, state)
    alone, end = replace(asked, mask=None, reset=None).tokens(40, 100).run()
    assert_same_result((y[1:2, 40:], state[1:2]), (alone[1:2], end[1:2]))
    nothing = torch.zeros(3, 20, dtype=torch.bool)
    _, same = replace(asked.tokens(0, 20, state), mask=nothing, reset=None).run(backend)
    assert torch.equal(same, state)


def test_others_compute_the_same() -> None:
    module = pytest.importorskip(
        "transformers.models.mamba.modeling_mamba", reason="needs transformers"
    )
    asked = replace(problem(40, dtype=torch.float32), state=None)
    y, after = module.mamba_selective_scan(
        asked.x.mT, asked.step.mT, asked.rate, asked.writer.mT, asked.reader.mT,
        return_last_state=True,
    )  # fmt: skip
    got, state = asked.run()
    assert_close({"y": got, "state": state}, {"y": y.mT, "state": after}, 1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 8)}, r"x must be floating point, of shape \[B, T, E\]"),
        ({"rate": torch.zeros(3, 5)}, r"rate must have shape \[E, N\] = \[4, N\]: got \[3, 5\]"),
        ({"step": torch.zeros(3, 8, 1)}, r"step must have shape \[3, 8, 4\]: got \[3, 8, 1\]"),
        ({"reader": torch.zeros(3, 8, 4)}, r"reader must have shape \[3, 8, 5\]"),
        ({"state": torch.zeros(3, 5, 4)}, r"state must have shape \[B, E, N\] = \[3, 4, 5\]"),
        ({"writer": torch.zeros(3, 8, 5).double()}, "writer must have the other inputs' precision"),
        ({"reset": torch.ones(3, 9, dtype=torch.bool)}, "reset must be boolean"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], words: str, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")
    with pytest.raises((ValueError, TypeError), match=words):
        replace(problem(8, dtype=torch.float32), **change).run()


def test_a_backend_by_name_runs_or_raises() -> None:
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        problem(8).run("fast")
    asked = problem(30)
    assert_same_result(selective_scan(**vars(asked)), asked.run("reference"))


def test_half_precision_is_computed_in_float32() -> None:
    asked = problem(40, dtype=torch.float32)
    half = {n: x.bfloat16() for n, x in vars(asked).items() if isinstance(x, Tensor)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = replace(asked, **half | {"state": None}).run()
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    wanted = replace(asked, **{n: x.float() for n, x in half.items()} | {"state": None}).run()
    assert_close({"y": y.float(), "state": state}, {"y": wanted[0], "state": wanted[1]}, 5e-3)
