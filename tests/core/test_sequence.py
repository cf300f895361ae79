"""A document shared over processes: hidden states, states and gradients are those of one process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from memory_problems import assert_close, named
from sequence_ranks import (
    CASES,
    CONFIGS,
    RANKS,
    TRAINED,
    Case,
    alone,
    run_ranks,
    trained_alone,
)
from small_mixers import SETTINGS, inputs
from torch import Tensor

from titans_core import Backbone, build_backbone, split
from titans_core.sequence import forward_share, hand_back, share_of, sum_gradients

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks found, all cases in one set of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    assert run_ranks(folder) == [0, 7, 0]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    # They were written by this very test.
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(RANKS)]


def rows(state: Any) -> tuple[Any, ...]:
    """A state without the empty places of its caches, which depend on the rows beside."""
    return tuple(split(state))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_shares_are_one_document(found: list[dict[str, Any]], index: int) -> None:
    case = CASES[index]
    got = [part["shared"][index] for part in found[: case.ranks]]
    wanted = alone(case)
    flags = case.problem(case.model())[1]
    seen = flags.get("mask", torch.ones(wanted["y"].shape[:2], dtype=torch.bool))

    def one(y: list[Tensor], state: Any) -> dict[str, Tensor]:
        return named((torch.cat(y, 1)[seen], rows(state)))

    whole = one([wanted["y"]], wanted["state"])
    assert_close(one([part["y"] for part in got], got[-1]["state"]), whole, TOLERANCE)
    again, state = zip(*(part["again"] for part in got), strict=True)
    assert_close(one(list(again), state[-1]), whole, TOLERANCE)
    assert [part["state"] is None for part in got] == [True] * (case.ranks - 1) + [False]
    for part in got:
        assert part["gradients"].keys() == wanted["gradients"].keys()
        assert_close(part["gradients"], wanted["gradients"], TOLERANCE)


@pytest.mark.parametrize("index", range(len(TRAINED)), ids=[case.name for case in TRAINED])
def test_training_over_documents_that_go_on_is_that_of_one_process(
    found: list[dict[str, Any]], index: int
) -> None:
    case = TRAINED[index]
    got = [part["trained_together"][index] for part in found[: case.ranks]]
    wanted = trained_alone(case)
    for part in got:
        assert_close(part["weights"], wanted["weights"], TOLERANCE)
    assert_close(named(rows(got[0]["carried"])), named(rows(wanted["carried"])), TOLERANCE)
    assert [part["carried"] for part in got[1:]] == [None] * (case.ranks - 1)
    start = Case(mixer=case.mixer).model().state_dict()
    assert all((wanted["weights"][name] != start[name]).any() for name in start)


def test_ranks_that_do_not_do_the_same_are_told(found: list[dict[str, Any]]) -> None:
    first, second = (part["quarrels"] for part in found[:2])
    for name, words in {
        "settings": "settings .*, and rank 1 expected",
        "rows": r"'rows': \[0, 2\].*, and rank 1 expected .*'rows': \[0, 1\]",
        "gradients": "'grad': True.*, and rank 1 expected .*'grad': False",
        "state": "state must be None on rank 1",
    }.items():
        kind, sentence, _ = second[name]
        assert kind == "ValueError"
        with pytest.raises(ValueError, match=words):
            raise ValueError(sentence)
        # The other rank hears nothing more.
        kind, sentence, _ = first[name]
        assert (kind, sentence[:25]) == ("ConnectionError", "Rank 1 of 2 has ended, or")
    kind, sentence, seconds = second["absent"]
    assert (kind, sentence[:25]) == ("ConnectionError", "Rank 0 of 2 has ended, or")
    assert seconds < 60


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_whose_neighbour_died_says_so(folder: Path, rank: int) -> None:
    told = torch.load(folder / f"deaths-{rank}.pt")
    for kind, sentence, _ in told.values():
        assert kind == "ConnectionError"
        assert sentence == (
            f"Rank 1 of 3 has ended, or did not answer rank {rank} within the group's timeout: look at its "
            "own output, then begin all ranks again."
        )


@pytest.fixture
def group_of_one(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_rank_is_one_process(group_of_one: None) -> None:
    case = Case(mixer="mag", kind="packed")
    model = case.model()
    x, flags, _ = case.problem(model)
    assert share_of(x.shape[1], grid=model.config.grid) == slice(0, x.shape[1])
    y, state = forward_share(model, x, **flags)
    wanted = model(x, **flags)
    assert_close(named((y, state)), named(wanted), 0)
    carried = hand_back(model, state)
    assert_close(named(carried), named(wanted[1]), 0)
    assert not any(part.requires_grad for part in named(carried).values())
    y.sum().backward()
    sum_gradients(model.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_what_is_not_shared_is_refused(group_of_one: None) -> None:
    def refused(words: str, model: Backbone, *given: Any, **named: Any) -> None:
        with pytest.raises(ValueError, match=words):
            forward_share(model.double(), inputs(2, 8), *given, **named)

    plain = CONFIGS["lmm"]
    for mixer in ("attention", "lmm/attention"):
        refused("attention.window must be set", Backbone(replace(plain, mixer=mixer)))
    refused("'rmt', a memory over the whole stack", build_backbone(replace(plain, mixer="rmt")))
    model = Backbone(plain).double()
    for count in (0, 3):
        refused(f"number of rows, 2: got {count}", model, micro_batches=count)
    refused("one part for each of 2 blocks: got 1", model, model.fresh_state(2)[:1])
    with pytest.raises(ValueError, match="what the last rank was given back: got None"):
        hand_back(model, None)
    windowed = replace(SETTINGS["attention in a window"].config(), num_layers=2)
    forward_share(Backbone(windowed).double(), inputs(2, 8))


def test_without_a_group_nothing_is_shared() -> None:
    with pytest.raises(ValueError, match="init_process_group first"):
        forward_share(Backbone(CONFIGS["lmm"]), torch.randn(1, 4, 16))
