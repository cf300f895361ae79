"""Every mixer against the paper's equations, one token at a time, and against the kernels' reference."""

from functools import partial
from typing import Any

import pytest
import torch
from memory_problems import assert_close
from slow_mixers import slow
from slow_systems import slow_system
from small_mixers import FEW, SETTINGS, Setting, inputs, middle, right_padding
from torch import Tensor, nn

from titans_core.systems import SYSTEMS
from titans_kernels import linear_recurrence, memory_update, selective_scan

REFERENCES = {
    "titans_core.memory.memory_update": memory_update,
    "titans_core.systems.recurrent.linear_recurrence": linear_recurrence,
    "titans_core.systems.recurrent.selective_scan": selective_scan,
}

every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


def equations(setting: Setting, mixer: nn.Module) -> Any:
    if setting.mixer in SYSTEMS:
        return slow_system(setting.mixer, mixer)
    return slow(setting, mixer)


def take_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on mixers compute by the references of the kernels."""
    for place, kernel in REFERENCES.items():
        monkeypatch.setattr(place, partial(kernel, backend="reference"))


@every_setting
@torch.no_grad()
def test_outputs_are_those_of_the_equations(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(1, 30)
    other = equations(setting, mixer)
    wanted = torch.stack([other.token(t) for t in x[0, :26]])
    y, state = mixer(x[:, :26])
    assert_close({"y": y[0]}, {"y": wanted}, 1e-10)
    # A frozen read asks the memory as it is.
    wanted = torch.stack([other.token(t, write=False) for t in x[0, 26:]])
    y, _ = mixer(x[:, 26:], state, write=False)
    assert_close({"y": y[0]}, {"y": wanted}, 1e-10)


@pytest.mark.parametrize("setting", FEW.values(), ids=FEW)
def test_gradients_are_those_of_the_equations(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(1, 2 * min(setting.grid, 8) + 3)

    def loss(y: Tensor) -> Tensor:
        return (y - inputs(1, x.shape[1], seed=1)[0]).square().sum()

    def slowly(mixer: nn.Module) -> Tensor:
        other = equations(setting, mixer)
        return loss(torch.stack([other.token(t) for t in x[0]]))

    wanted = gradients(mixer, slowly)
    assert_close(gradients(mixer, lambda mixer: loss(mixer(x)[0][0])), wanted, 1e-8)


def gradients(mixer: nn.Module, run: object) -> dict[str, Tensor]:
    mixer.zero_grad()
    run(mixer).backward()  # type: ignore[operator]
    return {name: p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}


@every_setting
def test_every_parameter_learns_as_by_the_reference(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, time = setting.build(), 3 * max(setting.grid, setting.config().memory.chunk_size) + 2
    x, target = inputs(2, time), inputs(2, time, seed=1)

    def loss(mixer: nn.Module) -> Tensor:
        return (mixer(x)[0] - target).square().sum()

    optimizer = torch.optim.AdamW(mixer.parameters(), 1e-3)
    gradients(mixer, loss)
    optimizer.step()
    got = gradients(mixer, loss)
    assert got.keys() == dict(mixer.named_parameters()).keys()
    for name, grad in got.items():
        assert grad.isfinite().all(), name
        # Attention to one token alone has no use for its query and key.
        if setting.attention.get("window") != 1:
            assert grad.ne(0).all(), name
    take_references(monkeypatch)
    assert_close(got, gradients(mixer, loss), 1e-8)


@pytest.mark.parametrize("setting", FEW.values(), ids=FEW)
def test_gradients_flow_through_states_resets_and_masks(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, grid = setting.build(), setting.grid
    x = inputs(2, 2 * grid + 9)
    mask = right_padding([x.shape[1], x.shape[1] - 5], x.shape[1])
    reset = torch.zeros_like(mask)
    reset[0, grid] = True

    def loss(mixer: nn.Module) -> Tensor:
        y, state = mixer(x, middle(mixer, [grid, 3]), mask=mask, reset=reset)
        return y.square().sum() + mixer(x[:, :3], state)[0].square().sum()

    got = gradients(mixer, loss)
    assert all(grad.isfinite().all() for grad in got.values())
    take_references(monkeypatch)
    assert_close(got, gradients(mixer, loss), 1e-8)


@pytest.mark.parametrize("setting", FEW.values(), ids=FEW)
def test_what_stands_under_the_mask_has_no_gradient_and_may_be_nan(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(2, 20)
    mask = right_padding([20, 9], 20)

    def loss(mixer: nn.Module) -> Tensor:
        return mixer(x, mask=mask)[0][mask].square().sum()

    wanted = gradients(mixer, loss)
    x[~mask] = torch.nan
    got = gradients(mixer, loss)
    for name, grad in wanted.items():
        assert torch.equal(got[name], grad), name
