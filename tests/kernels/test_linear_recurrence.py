"""The linear recurrence: chunks against tokens, cuts, documents, padding, and what others compute.

B batch, T time, H heads, G heads of queries and keys (H or 1), K, V widths of keys and values.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from memory_problems import TOLERANCES, assert_close, assert_same_result
from torch import Tensor

from titans_kernels import UpdateRule, linear_recurrence, memory_update

FORMS = ("none", "head", "keys", "values", "delta", "gated delta")
LENGTHS = (1, 63, 100)
every_form = pytest.mark.parametrize("form", FORMS)


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """All that `linear_recurrence` takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    channels: Any = "keys"
    beta: Tensor | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None
    state: Tensor | None = None

    def run(self, backend: str = "chunked") -> tuple[Tensor, Tensor]:
        return linear_recurrence(**vars(self), backend=backend)

    def tokens(self, first: int, last: int, state: Tensor | None = None) -> "Recurrence":
        streams = ("q", "k", "v", "log_decay", "beta", "mask", "reset")
        parts = {n: x[:, first:last] for n in streams if (x := getattr(self, n)) is not None}
        return replace(self, state=state, **parts)

    def row(self, index: int, first: int, last: int) -> "Recurrence":
        piece = self.tokens(first, last)
        parts = {n: x[index : index + 1] for n, x in vars(piece).items() if isinstance(x, Tensor)}
        return replace(piece, **parts)


def problem(
    form: str, time: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, **shape: int
) -> Recurrence:
    """Three rows that go on from a state, with unit keys; decays from slight to near all."""
    batch, heads, shared, key, value = (
        {"B": 3, "H": 2, "G": 2, "K": 5, "V": 7, **shape}[letter] for letter in "BHGKV"
    )
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    sizes = {"head": (), "gated delta": (), "keys": (key,), "values": (value,)}
    k = normal(batch, time, shared, key)
    return Recurrence(
        q=normal(batch, time, shared, key),
        k=k / k.norm(dim=-1, keepdim=True),
        v=normal(batch, time, heads, value),
        log_decay=-(1.5 * normal(batch, time, heads, *sizes[form])).exp() if form in sizes else None,
        channels="values" if form == "values" else "keys",
        beta=normal(batch, time, heads).sigmoid() if "delta" in form else None,
        state=normal(batch, heads, value, key),
    )  # fmt: skip


def of_documents(asked: Recurrence) -> Recurrence:
    """Documents that begin anywhere, one right behind the other, and padding at ends."""
    batch, time = asked.v.shape[:2]
    mask, reset = (
        torch.ones(batch, time, dtype=torch.bool),
        torch.zeros(batch, time, dtype=torch.bool),
    )
    for row, at in ((0, 0), (0, 16), (0, 17), (1, 40), (2, 62)):
        reset[row, at:][:1] = True
    mask[0, 70:] = mask[1, 30:40] = mask[2, time - 3 :] = False
    return replace(asked, mask=mask, reset=reset & mask)


def values_and_gradients(asked: Recurrence, backend: str) -> dict[str, Tensor]:
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
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)  # type: ignore[arg-type]
    for name, grad in zip(inputs, grads, strict=True):
        found[f"gradient by {name}"] = torch.zeros(()) if grad is None else grad
    return {name: x.detach() for name, x in found.items()}


def assert_as_by_tokens(asked: Recurrence) -> None:
    got, wanted = (values_and_gradients(asked, b) for b in ("chunked", "reference"))
    assert_close(got, wanted, TOLERANCES[asked.v.dtype])


@every_form
@pytest.mark.parametrize("time", LENGTHS)
def test_chunks_give_the_numbers_of_tokens(form: str, time: int) -> None:
    assert_as_by_tokens(problem(form, time))
    assert_as_by_tokens(of_documents(problem(form, time)))


@every_form
def test_one_head_of_keys_is_shared_by_all(form: str) -> None:
    asked = problem(form, 70, G=1)
    assert_as_by_tokens(asked)
    apart = replace(asked, q=asked.q.expand(3, 70, 2, 5), k=asked.k.expand(3, 70, 2, 5))
    assert_same_result(asked.run(), apart.run())


@every_form
def test_float32_is_near_too(form: str) -> None:
    assert_as_by_tokens(of_documents(problem(form, 64, dtype=torch.float32)))


def test_a_decay_of_everything_has_finite_gradients() -> None:
    """A decay of everything, whose logarithm is minus infinity, and one that float32 rounds to it."""
    for form in ("head", "keys", "values", "gated delta"):
        asked = problem(form, 70)
        assert asked.log_decay is not None
        log_decay = asked.log_decay.clone()
        log_decay[:, ::9], log_decay[:, 4::9] = -torch.inf, -1e4
        got = values_and_gradients(replace(asked, log_decay=log_decay), "chunked")
        wanted = values_and_gradients(replace(asked, log_decay=log_decay), "reference")
        assert all(x.isfinite().all() for x in got.values())
        assert_close(got, wanted, 1e-10)


def test_small_decays_beside_large_ones_keep_their_digits() -> None:
    asked = problem("head", 64, dtype=torch.float32)
    log_decay = torch.full((3, 64, 2), -1e-3)
    log_decay[:, ::2] = -60.0
    asked = replace(asked, log_decay=log_decay)
    exact = replace(
        asked, **{n: x.double() for n, x in vars(asked).items() if isinstance(x, Tensor)}
    )
    # Sums from the chunk's start have 1e-4 of an error here, by which the decays would be off.
    assert_close({"y": asked.run()[0].double()}, {"y": exact.run("reference")[0]}, 2e-6)


@every_form
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_stream_may_be_cut_anywhere(form: str, backend: str) -> None:
    for asked in (problem(form, 100), of_documents(problem(form, 100))):
        outputs, state = [], asked.state
        for first, last in ((0, 1), (1, 1), (1, 17), (17, 41), (41, 100)):
            y, state = asked.tokens(first, last, state).run(backend)
            outputs.append(y)
        assert_same_result((torch.cat(outputs, 1), state), asked.run())


@every_form
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_document_is_as_it_would_be_alone(form: str, backend: str) -> None:
    asked = of_documents(problem(form, 100))
    y, state = asked.run(backend)
    for row, first, last in ((0, 0, 16), (0, 16, 17), (0, 17, 70), (1, 40, 100), (2, 62, 97)):
        wanted, end = replace(asked.row(row, first, last), mask=None, reset=None).run()
        assert_same_result((y[row : row + 1, first:last], None), (wanted, None))
        if last >= 70:
            assert_same_result((y, state[row : row + 1]), (y, end))


@every_form
def test_a_reset_leaves_no_bit_and_a_mask_changes_none(form: str) -> None:
    asked = of_documents(problem(form, 100))
    assert asked.mask is not None
    assert asked.state is not None
    y, state = asked.run()
    other = torch.where(torch.tensor([True, False, False])[:, None, None, None], 9.0, asked.state)
    dirty = {
        name: x.masked_fill(~asked.mask.view(3, 100, *(1,) * (x.ndim - 2)), torch.nan)
        for name in ("q", "k", "v", "log_decay", "beta")
        if (x := getattr(asked, name)) is not None
    }
    # Row 0 begins with a document, so that nothing of the state before it is left.
    got_y, got = replace(asked, state=other, **dirty).run()
    assert torch.equal(got_y[asked.mask], y[asked.mask])
    assert torch.equal(got, state)
    nothing = torch.zeros(3, 20, dtype=torch.bool)
    _, same = replace(asked.tokens(0, 20, state), mask=nothing, reset=None).run()
    assert torch.equal(same, state)


STEPS: dict[str, Any] = {
    "none": {},
    "head": {},
    "keys": {"channel_forget": True},
    "delta": {"objective": "l2"},
    "longhorn": {"objective": "l2"},
    "gated delta": {"objective": "l2"},
}


@pytest.mark.parametrize("form", STEPS)
def test_the_memory_with_the_familys_settings_is_the_same(form: str) -> None:
    """Depth 1, no momentum, no norm, no residual; its loss has no factor of one half."""
    asked = problem("delta" if form == "longhorn" else form, 40, K=5, V=5)
    q, k, v, beta, log_decay = asked.q, asked.k, asked.v, asked.beta, asked.log_decay
    retain = torch.ones_like(v[..., 0]) if log_decay is None else log_decay.exp()
    steps = torch.ones_like(v[..., 0])
    if form == "longhorn":
        k = 1.5 * k
        beta = beta / (1 + beta * k.square().sum(-1))  # type: ignore[operator]
    asked = replace(asked, k=k, beta=beta, state=None)
    if beta is not None:
        steps = beta / 2
    if form == "gated delta":
        # The memory takes its gradient before the decay: the same for another step and target.
        v, steps = v / retain[..., None], steps * retain
    rule = UpdateRule(
        chunk_size=1, residual=False, forget_toward="zero",
        **{"objective": "dot", **STEPS[form]},
    )  # fmt: skip
    y, after = memory_update(
        q, k, v, steps, torch.zeros_like(steps), 1 - retain,
        (torch.zeros(2, 5, 5, dtype=torch.float64),), rule=rule, backend="reference",
    )  # fmt: skip
    got, state = asked.run()
    assert_close({"y": got, "state": state}, {"y": y, "state": after.memory[0]}, 1e-10)


@pytest.mark.parametrize("form", ["none", "head", "keys", "delta", "gated delta"])
def test_others_compute_the_same(form: str) -> None:
    naive: Any = {
        "none": ("simple_gla", "naive_recurrent_simple_gla"),
        "head": ("simple_gla", "naive_recurrent_simple_gla"),
        "keys": ("gla", "naive_recurrent_gla"),
        "delta": ("delta_rule", "delta_rule_recurrence"),
        "gated delta": ("gated_delta_rule", "naive_recurrent_gated_delta_rule"),
    }[form]
    module = pytest.importorskip(f"fla.ops.{naive[0]}.naive", reason="needs flash-linear-attention")
    asked = problem(form, 40, dtype=torch.float32)
    state = asked.state.mT  # type: ignore[union-attr]
    gates: dict[str, Any] = {"initial_state": state, "output_final_state": True}
    streams = [asked.q, asked.k, asked.v]
    if form in ("none", "head"):
        none = torch.zeros_like(asked.v[..., 0])
        gates |= {"g": none if asked.log_decay is None else asked.log_decay, "scale": 1.0}
    if form == "keys":
        gates["gk"] = asked.log_decay
    if form == "gated delta":
        gates |= {"g": asked.log_decay, "beta": asked.beta, "scale": 1.0}
    if form == "delta":
        streams = [x.transpose(1, 2) for x in streams]
        gates["beta"] = asked.beta.transpose(1, 2)  # type: ignore[union-attr]
    y, after = getattr(module, naive[1])(*streams, **gates)
    if form == "delta":
        y = y.transpose(1, 2)
    # Two of them divide q by the root of its width, whatever they are asked.
    y = y * 5**0.5 if form in ("keys", "delta") else y
    got, end = asked.run()
    assert_close({"y": got, "state": end}, {"y": y, "state": after.mT}, 1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(3, 8, 2, 4)}, "q and k must have one shape"),
        ({"k": torch.zeros(3, 8, 3, 5)}, r"k must have shape \[B, T, H, K\] = \[3, 8, 2, K\]"),
        ({"v": torch.zeros(3, 8, 2)}, r"v must be floating point, of shape \[B, T, H, V\]"),
        ({"log_decay": torch.zeros(3, 8, 2, 7)}, r"or per channel of the keys, \[3, 8, 2, 5\]"),
        ({"channels": "rows"}, "channels must be 'keys' or 'values': got 'rows'"),
        (
            {"beta": torch.zeros(3, 8)},
            r"beta must have one value per head, \[B, T, H\] = \[3, 8, 2\]",
        ),
        ({"beta": torch.zeros(3, 8, 2), "log_decay": torch.zeros(3, 8, 2, 5)}, "The delta rule"),
        ({"state": torch.zeros(3, 2, 5, 7)}, r"\[B, H, V, K\] = \[3, 2, 7, 5\]"),
        ({"state": torch.zeros(3, 2, 7, 5).double()}, "state must be torch.float32 on cpu"),
        ({"beta": torch.zeros(3, 8, 2).double()}, "beta must have the other inputs' precision"),
        ({"mask": torch.ones(3, 9, dtype=torch.bool)}, "mask must be boolean, one flag for each"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], words: str, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("what is wrong here on purpose is what --shapes catches first")
    asked = problem("none", 8, dtype=torch.float32)
    with pytest.raises((ValueError, TypeError), match=words):
        replace(asked, **change).run()


def test_a_backend_by_name_runs_or_raises() -> None:
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        problem("none", 8).run("fast")
    asked = problem("head", 30)
    assert_same_result(linear_recurrence(**vars(asked)), asked.run("reference"))


def test_half_precision_is_computed_in_float32() -> None:
    asked = problem("gated delta", 40, dtype=torch.float32)
    half = {n: x.bfloat16() for n, x in vars(asked).items() if isinstance(x, Tensor)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = replace(asked, **half | {"state": None}).run()
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    wanted = replace(asked, **{n: x.float() for n, x in half.items()} | {"state": None}).run()
    assert_close({"y": y.float(), "state": state}, {"y": wanted[0], "state": wanted[1]}, 5e-3)
