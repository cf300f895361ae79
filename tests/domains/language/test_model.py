"""The language model: what its loss counts, and that it is causal, streams, resets and can be frozen."""

import math
from typing import Any

import pytest
import torch
from tiny_language import VOCAB, tiny_model

from titans_domains.language.model import LanguageModel, next_token_loss, token_nats

MODELS: dict[str, dict[str, Any]] = {
    "memory": {},
    "attention": {"mixer": "attention"},
    "attention with a window": {"mixer": "attention", "window": 11},
}
TIME = 70


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(**request.param).double()


def tokens(rows: int = 2, length: int = TIME) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model: LanguageModel, x: torch.Tensor, **context: Any) -> torch.Tensor:
    return model(x, **context)[0]


@pytest.mark.parametrize("at", [0, 1, 15, 16, 40, TIME - 1])
def test_no_logit_depends_on_a_later_token(model: LanguageModel, at: int) -> None:
    x = tokens()
    changed = x.clone()
    changed[:, at] = (x[:, at] + 1) % VOCAB
    before, after = logits_of(model, x), logits_of(model, changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.allclose(before[:, at:], after[:, at:])


@pytest.mark.parametrize("cuts", [[1], [16], [5, 6, 40], list(range(1, TIME))], ids=str)
@torch.no_grad()
def test_a_stream_may_be_cut_anywhere(model: LanguageModel, cuts: list[int]) -> None:
    x = tokens()
    whole, last = model(x)
    state, parts = None, []
    for first, end in zip([0, *cuts], [*cuts, TIME], strict=True):
        logits, state = model(x[:, first:end], state)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
    # The two states go on alike too.
    more = tokens(length=20)
    assert torch.allclose(model(more, state)[0], model(more, last)[0], rtol=0, atol=1e-10)


def test_a_reset_document_does_not_know_what_stood_before(model: LanguageModel) -> None:
    grid = model.backbone.config.grid * 2
    x, reset = tokens(), torch.zeros(2, TIME, dtype=torch.bool)
    reset[0, grid] = True
    logits = logits_of(model, x, reset=reset)
    alone = logits_of(model, x[:, grid:])
    assert torch.allclose(logits[0, grid:], alone[0], rtol=0, atol=1e-10)
    assert not torch.allclose(logits[1, grid:], alone[1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_what_is_masked_is_not_read(model: LanguageModel) -> None:
    x, mask = tokens(length=48), torch.ones(2, 48, dtype=torch.bool)
    mask[1, 40:] = False
    logits, state = model(x, mask=mask)
    other, same = model(x.masked_fill(~mask, 0), mask=mask)
    assert torch.equal(other[mask], logits[mask])
    more = tokens(length=20)
    assert torch.equal(model(more, same)[0], model(more, state)[0])
    _, read = model(x.masked_fill(~mask, 0))
    assert not torch.allclose(model(more, read)[0][1], model(more, state)[0][1])


@torch.no_grad()
def test_a_frozen_memory_stays_as_it_was() -> None:
    model = tiny_model().double()
    x = tokens()
    _, state = model(x, model.backbone.fresh_state(2), write=False)
    fresh = model.backbone.fresh_state(2)
    for ours, theirs in zip(state, fresh, strict=True):
        assert all(map(torch.equal, ours.memory.memory, theirs.memory.memory))
    assert not torch.allclose(logits_of(model, x), logits_of(model, x, write=False))


def test_the_loss_is_the_mean_over_what_is_not_masked() -> None:
    logits, targets = torch.randn(2, 9, VOCAB), tokens(2, 9)
    nats = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert token_nats(logits, targets).dtype == torch.float64
    assert torch.allclose(token_nats(logits, targets), nats)
    assert next_token_loss(logits, targets, None).item() == pytest.approx(nats.mean().item())
    mask = torch.arange(9).expand(2, 9) < torch.tensor([[4], [7]])
    loss = next_token_loss(logits, targets, mask)
    assert loss.item() == pytest.approx(nats[mask].mean().item())
    other = torch.where(mask[..., None], logits, 100 * torch.randn(2, 9, VOCAB))
    assert torch.equal(next_token_loss(other, targets.masked_fill(~mask, 7), mask), loss)
    # The targets handed in stay as they are.
    assert torch.equal(targets, tokens(2, 9))


def test_an_untrained_model_guesses() -> None:
    logits = logits_of(tiny_model(), tokens())
    assert logits.shape == (2, TIME, VOCAB)
    loss = next_token_loss(logits, tokens(2, TIME + 1)[:, 1:], None).item()
    assert loss == pytest.approx(math.log(VOCAB), rel=0.15)


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny_model().train()
    x = tokens()
    next_token_loss(model(x[:, :-1])[0], x[:, 1:], None).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
