"""The walk in C against the definition: output, final state and the gradient of every input."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_problems import (
    CHOICES,
    TOLERANCES,
    Problem,
    assert_close,
    assert_same_bits,
    assert_same_result,
    convert,
    make_problem,
    named,
    state_row,
    values_and_gradients,
)
from torch.utils.checkpoint import checkpoint

from titans_kernels import available_backends
from titans_kernels.memory_update.native import walk

pytestmark = pytest.mark.skipif(
    available_backends()["native"] is not None, reason=str(available_backends()["native"])
)

LENGTHS = (1, 15, 16, 17, 63, 100)
CHUNKS = (1, 4, 16, 64)
SETTINGS: list[dict[str, Any]] = [
    {"depth": 1, "norm": False},
    {"depth": 2, "max_surprise": 0.5, "gates": "shared"},
    {"depth": 2, "objective": "dot", "forget_toward": "zero"},
    {"depth": 3, "activation": "silu", "residual": False},
]


def assert_same_values(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Of `values_and_gradients`, bit for bit."""
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        assert got[name].dtype == x.dtype, name
        assert torch.equal(got[name], x), name


def assert_equals_reference(problem: Problem) -> None:
    wanted = values_and_gradients(problem, "reference")
    got = values_and_gradients(problem, "native")
    assert_close(got, wanted, TOLERANCES[problem.q.dtype])


def cases() -> list[dict[str, Any]]:
    """Every length at every chunk size, and the other settings drawn for each."""
    draw = random.Random(1)
    found = []
    for i, (chunk_size, time) in enumerate(itertools.product(CHUNKS, LENGTHS)):
        for other in (0, 1):
            case = {name: draw.choice(values) for name, values in CHOICES.items()}
            depth = 1 + (i + i // len(LENGTHS) + other) % 3
            found.append({"depth": depth, "chunk_size": chunk_size, "time": time, **case})
    return found


def test_the_cases_hold_every_pair_of_settings() -> None:
    for a, b in itertools.combinations([*CHOICES, "depth"], 2):
        values = [CHOICES.get(name, (1, 2, 3)) for name in (a, b)]
        assert {(c[a], c[b]) for c in cases()} == set(itertools.product(*values)), (a, b)


@pytest.mark.parametrize("case", cases(), ids=lambda c: "-".join(str(x) for x in c.values()))
def test_native_equals_reference(case: dict[str, Any]) -> None:
    assert_equals_reference(make_problem(**case, largest_step=0.05, largest_forget=0.05))


@pytest.mark.parametrize(("width", "hidden"), [(8, 32), (9, 36), (20, 24), (24, 10), (17, 17)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_widths_that_fill_panels_or_do_not(width: int, hidden: int, depth: int) -> None:
    assert_equals_reference(
        make_problem(
            batch=1,
            time=37,
            width=width,
            hidden=hidden,
            depth=depth,
            chunk_size=18,
            largest_step=0.02,
            carried=True,
            max_surprise=1.0,
        )  # fmt: skip
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("forget_toward", ["initial", "zero"])
def test_float32(depth: int, forget_toward: str) -> None:
    problem = make_problem(
        depth=depth, time=63, width=20, hidden=80, dtype=torch.float32, carried=True,
        largest_step=0.05, forget_toward=forget_toward, chunk_size=20,
    )  # fmt: skip
    assert_equals_reference(problem)


def documents(setting: dict[str, Any]) -> Problem:
    """Twelve chunks of 4: rows at different phases, documents that begin, and chunks of padding."""
    problem = make_problem(
        batch=3, time=45, chunk_size=4, carried=True, started=True, largest_step=0.05, **setting
    )
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 16, 6]))
    reset, mask = torch.zeros(2, 3, 45, dtype=torch.bool).unbind()
    mask = ~mask
    # On the grid of its row, row 0 begins documents with chunks 3 and 4, row 1 with chunk 6.
    reset[0, 9] = reset[0, 13] = reset[1, 24] = True
    mask[0, 11:13] = mask[1, 14:24] = mask[2, 30:] = False
    return replace(problem, reset=reset, mask=mask)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kept", [4, 12, 512])
def test_documents_wherever_states_are_kept(
    setting: dict[str, Any], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "KEPT_TOKENS", kept)
    assert_equals_reference(documents(setting))


def test_fewer_states_are_kept_of_a_longer_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(time=45, chunk_size=4)
    problem.q.requires_grad_()
    monkeypatch.setattr(walk, "KEPT_TOKENS", 4)
    seen = []
    made = walk.Made.of

    def spy(*arguments: Any) -> walk.Made:
        seen.append(made(*arguments))
        return seen[-1]

    monkeypatch.setattr(walk.Made, "of", spy)
    problem.run("native")
    state = seen[-1].kept[1]
    assert (seen[-1].every, state.shape[1]) == (1, 12)
    monkeypatch.setattr(walk, "KEPT_BYTES", 4 * state[:, 0].nbytes)
    problem.run("native")
    assert (seen[-1].every, seen[-1].kept[1].shape[1]) == (3, 4)
    with torch.no_grad():
        problem.run("native")
    assert seen[-1].kept == []


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("forget", [0.0, 1.0])
def test_gates_at_exactly_0_and_1(momentum: float, forget: float) -> None:
    problem = make_problem(time=21, chunk_size=8, largest_step=0.05)
    problem.momentum[:, 3:12] = momentum
    problem.forget[:, 2:11:2] = forget
    problem.step_size[:, 5] = 0
    assert_equals_reference(problem)


def test_a_zero_key_under_the_clamp() -> None:
    problem = make_problem(time=9, chunk_size=4, max_surprise=0.5, norm=False)
    problem.k[:, 4] = 0
    assert_equals_reference(problem)


def test_strides_and_expanded_gradients() -> None:
    problem = make_problem(time=21, chunk_size=4, carried=True)
    apart = convert(problem, lambda x: torch.stack([x, x], -1)[..., 0])
    assert_same_bits(apart.run("native"), problem.run("native"))
    apart.q.requires_grad_()
    (grad,) = torch.autograd.grad(apart.run("native")[0].sum(), apart.q)
    problem.q.requires_grad_()
    (wanted,) = torch.autograd.grad((problem.run("native")[0] * torch.ones(())).sum(), problem.q)
    assert torch.equal(grad, wanted)


@pytest.mark.parametrize("time", [1, 5])
def test_the_start_alone_may_learn(time: int) -> None:
    problem = make_problem(time=time, carried=True, started=True, chunk_size=4)
    assert problem.start is not None
    problem = replace(problem, reset=torch.tensor([[True] + [False] * (time - 1)] * 2))
    starts = [w.requires_grad_() for part in problem.start[:3:2] for w in part]
    found, wanted = (
        torch.autograd.grad(problem.run(backend)[0].square().sum(), starts)
        for backend in ("native", "reference")
    )
    assert all(w.any() for w in wanted)
    assert_close(named(found), named(wanted), 1e-10)


def test_gradcheck() -> None:
    problem = make_problem(
        batch=1, time=5, heads=1, width=2, hidden=3, chunk_size=2, carried=True, largest_step=0.5
    )
    assert problem.state is not None
    assert problem.norm is not None
    problem.state.position.fill_(1)
    names = ("q", "k", "v", "step_size", "momentum", "forget")

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert problem.state is not None
        weights = iter(tensors[10:])
        parts = {
            part: (next(weights), next(weights)) for part in ("memory", "chunk_memory", "surprise")
        }
        changed = replace(
            problem,
            **dict(zip(names, tensors[:6], strict=True)),
            initial=tensors[6:8], norm=tensors[8:10], state=problem.state._replace(**parts),
        )  # fmt: skip
        return tuple(x for x in named(changed.run("native")).values() if x.is_floating_point())

    inputs = (
        *(getattr(problem, name) for name in names), *problem.initial, *problem.norm,
        *(w for part in problem.state[:3] for w in part),
    )  # fmt: skip
    assert torch.autograd.gradcheck(run, tuple(x.requires_grad_() for x in inputs))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_cut_stream_equals_one_call(setting: dict[str, Any]) -> None:
    problem = make_problem(time=45, carried=True, largest_step=0.05, chunk_size=8, **setting)
    state, outputs = problem.state, []
    for first, last in itertools.pairwise([0, 5, 5, 6, 21, 22, 45]):
        y, state = problem.tokens(first, last, state).run("native")
        outputs.append(y)
    assert_same_result((torch.cat(outputs, 1), state), problem.run("native"))


def test_other_rows_change_no_bit_of_a_row_nor_does_nan() -> None:
    problem = make_problem(batch=3, time=45, dtype=torch.float32, width=16, hidden=48)
    wanted = values_and_gradients(problem.row(1), "native")
    problem.v[0, 7], problem.k[2, 30] = torch.nan, torch.inf
    y, state = problem.run("native")
    assert torch.equal(y[1:2], wanted["y"])
    assert_same_bits(state_row(state, 1), problem.row(1).run("native")[1])
    for row, token in ((0, 7), (2, 30)):
        # Within a chunk the scores of later tokens are multiplied by 0.
        assert y[row, : token // 16 * 16].isfinite().all()
        # What is not finite stays so: nothing hides it.
        assert not y[row, token:].isfinite().any()
        assert not any(w[row].isfinite().any() for part in state[:3] for w in part)


def test_a_masked_token_leaves_the_state_bit_for_bit() -> None:
    problem = make_problem(time=5, carried=True)
    assert problem.state is not None
    problem.state.position.copy_(torch.tensor([3, 21]))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    for time in (5, 1):
        _, after = replace(problem.tokens(0, time, problem.state), mask=mask[:, :time]).run(
            "native"
        )
        assert_same_bits(after, problem.state)


def test_what_stands_under_the_mask_may_be_nan() -> None:
    problem = make_problem(time=20, chunk_size=8, carried=True)
    mask = torch.arange(20) < torch.tensor([20, 9])[:, None]
    problem = replace(problem, mask=mask)
    wanted = values_and_gradients(problem, "native")
    for name in ("q", "k", "v", "step_size", "momentum", "forget"):
        getattr(problem, name)[~mask] = torch.nan
    assert_same_values(values_and_gradients(problem, "native"), wanted)


def test_the_state_that_came_in_is_untouched_and_no_tokens_do_nothing() -> None:
    problem = make_problem(time=20, carried=True, started=True)
    before = convert(problem, lambda x: x.clone())
    problem.run("native")
    values_and_gradients(problem, "native")
    assert_same_bits(problem, before)
    y, state = problem.tokens(0, 0, problem.state).run("native")
    assert y.shape == (2, 0, 2, 4)
    assert_same_bits(state, problem.state)


def test_threads_change_no_bit() -> None:
    # Long enough for threads to be at work side by side.
    problem = make_problem(
        batch=4, heads=4, time=512, width=32, hidden=128, chunk_size=16, dtype=torch.float32
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(values_and_gradients(problem, "native"))
    finally:
        torch.set_num_threads(before)
    assert_same_values(found[1], found[0])
    assert_same_values(found[2], found[0])


def test_a_backward_may_be_repeated_checkpointed_and_autocast() -> None:
    problem = make_problem(time=45, chunk_size=4, dtype=torch.float32)
    wanted = values_and_gradients(problem, "native")
    assert_same_values(values_and_gradients(problem, "native", autocast=True), wanted)
    problem.q.requires_grad_()
    y, _ = problem.run("native")
    first, second = (torch.autograd.grad(y.sum(), problem.q, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    y, _ = checkpoint(problem.run, "native", use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.sum(), problem.q)[0], first[0])


def test_bf16_inputs_keep_a_float32_state() -> None:
    problem = make_problem(time=40, dtype=torch.bfloat16)
    y, state = problem.run("native")
    wanted_y, wanted = convert(problem, lambda x: x.float()).run("native")
    assert torch.equal(y, wanted_y.bfloat16())
    assert_same_bits(state, wanted)


@pytest.mark.parametrize("rule", [{"inner_steps": 2}, {"channel_forget": True}])
def test_what_it_does_not_do_is_refused_by_name_and_done_by_another(rule: dict[str, Any]) -> None:
    problem = make_problem(time=9, **rule)
    with pytest.raises(ValueError, match=f"backend 'native' takes {next(iter(rule))} = "):
        problem.run("native")
    assert_same_bits(problem.run("auto"), problem.run("chunked"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_model_around_it() -> None:
    problem = make_problem(time=21, chunk_size=4, dtype=torch.float32)

    def model(q: torch.Tensor) -> torch.Tensor:
        return torch.tanh(replace(problem, q=torch.sin(q)).run("native")[0])

    problem.q.requires_grad_()
    y = torch.compile(model, backend="aot_eager")(problem.q)
    assert torch.allclose(y, model(problem.q), atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), problem.q)[0] for x in (y, model(problem.q))]
    assert torch.allclose(*grads, atol=1e-6)
