"""The forecasting network: a window is the end of a stream, what is missing is missing, and scale and
level go through it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_mixers import SAMPLE, SETTINGS
from torch import Tensor

from titans_core import detach, join, split
from titans_core.state import named_tensors
from titans_domains.config import from_dict, to_dict
from titans_domains.timeseries.network import ForecastNetwork, NetworkConfig

SHAPE: dict[str, Any] = {"prediction_length": 6, "context_length": 20, "patch_len": 4}
FEATURES: dict[str, Any] = {
    "num_feat_dynamic_real": 2,
    "num_past_feat_dynamic_real": 1,
    "num_feat_static_real": 2,
    "cardinality": (3, 4),
}
MODES = {
    "none": {"channels": 2},
    "channels": {"channels": 3, "mixing": "channels"},
    "student": {"outputs": 3, "located": (1,)},
    "quantiles": {"outputs": 2, "located": (0, 1), "scaling": "mean"},
    "features": {"channels": 2, **FEATURES},
    "points": {"patch_len": 1},
}


def config(mixer: str = "lmm", **settings: Any) -> NetworkConfig:
    return NetworkConfig(**{**SHAPE, "model": SETTINGS[mixer].config(), **settings})


def moved(config: NetworkConfig) -> ForecastNetwork:
    """A network with every parameter off its start, so that none is without effect."""
    network = ForecastNetwork(config).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network.eval()


def series(config: NetworkConfig, steps: int = 20, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Values around 5, some of them missing, which NaN stands for."""
    values = 5 + torch.randn(batch, steps, config.channels, dtype=torch.float64).cumsum(1)
    observed = torch.rand(values.shape) > 0.2
    return values.where(observed, torch.nan), observed


def features(config: NetworkConfig, steps: int = 20, batch: int = 2) -> dict[str, Tensor]:
    """For the whole of `steps`, the known ones from the first patch's end on."""
    if not config.num_feat_dynamic_real:
        return {}
    patches = -(-steps // config.patch_len)
    ahead = (patches - 1) * config.patch_len + config.prediction_length
    return {
        "past_features": torch.randn(batch, steps, config.num_past_features).double(),
        "future_features": torch.randn(batch, ahead, config.num_feat_dynamic_real).double(),
        "static_real": torch.randn(batch, config.num_feat_static_real).double(),
        "static_cat": torch.stack([torch.randint(n, (batch,)) for n in config.cardinality], 1),
    }


def of_window(network: ForecastNetwork, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The features of a window out of those of a stream."""
    if not given:
        return {}
    horizon = network.config.prediction_length
    return {**given, "future_features": given["future_features"][:, -horizon:]}


def read_in_pieces(
    network: ForecastNetwork, past: Tensor, observed: Tensor, given: dict[str, Tensor],
    sizes: list[int], loc: Tensor, scale: Tensor,
) -> tuple[Tensor, Any]:  # fmt: skip
    parts, state, at = [], None, 0
    horizon, patch = network.config.prediction_length, network.config.patch_len
    for size in sizes:
        end, piece = at + size, dict(given)
        if given:
            piece["past_features"] = given["past_features"][:, at:end]
            piece["future_features"] = given["future_features"][:, at : end - patch + horizon]
        args, state = network.read(
            past[:, at:end], observed[:, at:end], loc=loc, scale=scale, state=state, **piece
        )
        parts.append(args)
        at = end
    return torch.cat(parts, 1), state


every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
every_mixer = pytest.mark.parametrize("mixer", SAMPLE)


def assert_same_stream(network: ForecastNetwork, sizes: list[int]) -> None:
    past, observed = series(network.config)
    given = features(network.config)
    window, loc, scale = network(past, observed, **of_window(network, given))
    whole, after = network.read(past, observed, loc=loc, scale=scale, **given)
    torch.testing.assert_close(whole[:, -1], window, rtol=0, atol=1e-12)
    parts, state = read_in_pieces(network, past, observed, given, sizes, loc, scale)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)
    for name, x in named_tensors(after).items():
        torch.testing.assert_close(named_tensors(state)[name], x, rtol=0, atol=1e-10)


@every_mode
@torch.no_grad()
def test_a_window_is_the_end_of_a_stream_cut_anywhere(mode: dict[str, Any]) -> None:
    assert_same_stream(moved(config(**mode)), [4, 12, 4])


@every_mixer
@torch.no_grad()
def test_every_mixer_streams(mixer: str) -> None:
    for mixing in ("none", "channels"):
        network = moved(config(mixer, channels=2, mixing=mixing))
        assert_same_stream(network, [4, 4, 8, 4])


@every_mode
def test_no_forecast_depends_on_a_later_step(mode: dict[str, Any]) -> None:
    network = moved(config(**mode))
    patch = network.config.patch_len
    past, observed = series(network.config)
    given = features(network.config)
    loc, scale = network.scale(past, observed)
    whole, _ = network.read(past, observed, loc=loc, scale=scale, **given)
    at = 2 * patch
    past[:, at], observed[:, at] = 9.0, True
    if given:
        given["past_features"][:, at] += 1
    other, _ = network.read(past, observed, loc=loc, scale=scale, **given)
    assert torch.equal(whole[:, :2], other[:, :2])
    assert not torch.isclose(whole[:, 2:], other[:, 2:]).flatten(2).all(-1).any()


@every_mode
def test_every_parameter_learns(mode: dict[str, Any]) -> None:
    network = ForecastNetwork(config(**mode)).double()
    past, observed = series(network.config, batch=8)
    given = of_window(network, features(network.config, batch=8))
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        args, _, _ = network(past, observed, **given)
        (args - torch.randn_like(args)).square().mean().backward()
        optimizer.step()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@every_mode
@torch.no_grad()
def test_a_new_network_forecasts_the_linear_map(mode: dict[str, Any]) -> None:
    network = ForecastNetwork(config(**mode)).double()
    weight = 0.2 * torch.randn(6, 20, dtype=torch.float64)
    network.start_at(weight)
    past = 5 + torch.randn(2, 20, network.config.channels, dtype=torch.float64).cumsum(1)
    given = of_window(network, features(network.config))
    args, loc, scale = network(past, torch.ones_like(past, dtype=torch.bool), **given)
    wanted = (weight @ (past - past[:, -1:])) + past[:, -1:]
    for at in range(network.config.outputs):
        found = args[..., at] * scale + loc
        expected = wanted if at in network.config.located else loc.expand_as(wanted)
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_shrinking_by_nothing_and_to_nothing() -> None:
    network = moved(config(**FEATURES))
    past, observed = series(network.config)
    given = of_window(network, features(network.config))
    whole = network(past, observed, **given)[0]
    network.shrink(0.5)
    half = network(past, observed, **given)[0]
    network.shrink(0)
    none = network(past, observed, **given)[0]
    torch.testing.assert_close(half, (whole + none) / 2)
    assert not torch.allclose(whole, none)


@pytest.mark.parametrize("scaling", ["std", "mean"])
@torch.no_grad()
def test_a_forecast_goes_with_the_scale(scaling: Any) -> None:
    network = moved(config(scaling=scaling))
    past, observed = series(network.config)
    shift = 1e3 if scaling == "std" else 0.0
    args, loc, scale = network(past, observed)
    other, other_loc, other_scale = network(3 * past + shift, observed)
    torch.testing.assert_close(other, args)
    torch.testing.assert_close(other_loc, 3 * loc + shift)
    torch.testing.assert_close(other_scale, 3 * scale)


@torch.no_grad()
def test_without_scaling_units_are_the_callers() -> None:
    network = moved(config(scaling="none"))
    _, loc, scale = network(*series(network.config))
    assert torch.equal(loc, torch.zeros_like(loc))
    assert torch.equal(scale, torch.ones_like(scale))


@every_mode
@torch.no_grad()
def test_what_stands_in_a_missing_place_is_not_seen(mode: dict[str, Any]) -> None:
    network = moved(config(**mode))
    past, observed = series(network.config)
    given = of_window(network, features(network.config))
    found = [network(past.where(observed, x), observed, **given) for x in (torch.nan, 0.0, -1e9)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@torch.no_grad()
def test_missing_is_not_the_same_as_average() -> None:
    network = moved(config())
    past, observed = series(network.config)
    loc, scale = network.scale(past, observed)
    as_missing, _ = network.read(past, observed, loc=loc, scale=scale)
    filled = past.where(observed, loc)
    as_average, _ = network.read(filled, torch.ones_like(observed), loc=loc, scale=scale)
    assert not torch.allclose(as_missing, as_average)


@torch.no_grad()
def test_the_linear_path_holds_the_last_value_over_a_gap() -> None:
    network = ForecastNetwork(config()).double()
    network.start_at(torch.randn(6, 20, dtype=torch.float64))
    past = torch.randn(1, 20, 1, dtype=torch.float64)
    observed = torch.ones_like(past, dtype=torch.bool)
    observed[:, [5, 6, 19]] = False
    held = past.clone()
    held[:, 5:7], held[:, 19] = past[:, 4], past[:, 18]
    loc, scale = network.scale(past, observed)
    gaps, _ = network.read(past, observed, loc=loc, scale=scale)
    whole, _ = network.read(held, torch.ones_like(observed), loc=loc, scale=scale)
    torch.testing.assert_close(gaps[:, -1], whole[:, -1])


@every_mode
@torch.no_grad()
def test_samples_do_not_meet(mode: dict[str, Any]) -> None:
    network = moved(config(**mode))
    past, observed = series(network.config)
    given = of_window(network, features(network.config))
    before = network(past, observed, **given)[0]
    past[1] = past[1] * 7 - 3
    after = network(past, observed, **given)[0]
    assert torch.equal(before[0], after[0])


@pytest.mark.parametrize("mixing", ["none", "channels"])
@torch.no_grad()
def test_channels_meet_where_they_are_mixed(mixing: Any) -> None:
    network = moved(config(channels=3, mixing=mixing))
    past, observed = series(network.config)
    before = network(past, observed)[0]
    past[:, 5, 1], observed[:, 5, 1] = 9.0, True
    after = network(past, observed)[0]
    assert torch.equal(before[..., 0, :], after[..., 0, :]) == (mixing == "none")


@torch.no_grad()
def test_steps_that_fill_no_patch_are_read_after_missing_ones() -> None:
    network = moved(config())
    past, observed = series(network.config)
    loc, scale = network.scale(past, observed)
    _, state = network.read(past, observed, loc=loc, scale=scale)
    more, seen = series(network.config, 3)
    part, _ = network.read(more, seen, loc=loc, scale=scale, state=state)
    assert part.shape == (2, 1, 6, 1, 1)
    # The backbone sees a patch that begins with a missing step; the linear path a window without it.
    padded, hidden = torch.cat([more[:, :1], more], 1), torch.cat([seen[:, :1] & False, seen], 1)
    whole, _ = network.read(padded, hidden, loc=loc, scale=scale, state=state)
    network.linear.weight.zero_()
    torch.testing.assert_close(
        network.read(more, seen, loc=loc, scale=scale, state=state)[0],
        network.read(padded, hidden, loc=loc, scale=scale, state=state)[0],
    )
    assert not torch.allclose(whole, part)


@torch.no_grad()
def test_a_frozen_read_leaves_the_memory() -> None:
    network = moved(config())
    past, observed = series(network.config)
    loc, scale = network.scale(past, observed)
    start = network.fresh_state(2)
    _, state = network.read(past, observed, loc=loc, scale=scale, state=start, write=False)
    assert all(map(torch.equal, state.backbone[0].memory.memory, start.backbone[0].memory.memory))
    assert not torch.equal(state.values, start.values)


@torch.no_grad()
def test_the_state_of_a_stream_is_bounded_and_its_rows_can_be_joined() -> None:
    network = moved(config())
    past, observed = series(network.config)
    loc, scale = network.scale(past, observed)
    state: Any = None
    for _ in range(3):
        _, state = network.read(past, observed, loc=loc, scale=scale, state=state)
    assert state.values.shape == (2, 20)
    wanted, _ = network.read(past, observed, loc=loc, scale=scale, state=state)
    again, _ = network.read(past, observed, loc=loc, scale=scale, state=join(split(state)))
    assert torch.equal(again, wanted)
    assert not any(x.requires_grad for x in named_tensors(detach(state)).values())


@pytest.mark.parametrize("value", [0.0, 100.0, -1e6, 1e-8])
@torch.no_grad()
def test_a_constant_series_stays_near_its_value(value: float) -> None:
    network = moved(config()).float()
    past = torch.full((1, 20, 1), value)
    args, loc, scale = network(past, torch.ones_like(past, dtype=torch.bool))
    forecast = args[..., 0] * scale + loc
    assert (forecast - value).abs().max() <= 1e-3 * max(abs(value), 1)
    assert args.isfinite().all()


@pytest.mark.parametrize("known", [0, 1, 3])
@torch.no_grad()
def test_a_series_of_few_steps_stays_near_them(known: int) -> None:
    """A window of missing steps with a few at its end, at about 100; of none, nothing is known."""
    network = ForecastNetwork(config()).float()
    network.start_at(0.05 * torch.randn(6, 20))
    past = torch.full((1, 20, 1), torch.nan)
    past[:, 20 - known :] = 100 + torch.randn(1, known, 1)
    args, loc, scale = network(past, ~past.isnan())
    forecast = args[..., 0] * scale + loc
    assert forecast.isfinite().all()
    assert (forecast - (100 if known else 0)).abs().max() < 5


@torch.no_grad()
def test_large_values_of_small_spread_keep_their_digits() -> None:
    network = ForecastNetwork(config())
    past = 2.0**18 + torch.arange(20.0)[None, :, None] % 2
    _, loc, scale = network(past, torch.ones_like(past, dtype=torch.bool))
    assert scale.item() == 0.5
    assert loc.item() == 2**18 + 0.5
    big = torch.full((1, 20, 1), 16_777_216.0)
    _, loc, scale = network(big, torch.ones_like(big, dtype=torch.bool))
    assert loc.item() == 16_777_216.0


@torch.no_grad()
def test_lags_are_scaled_as_the_target_and_a_missing_one_is_its_location() -> None:
    network = moved(config(num_lags=1))
    past, observed = series(network.config)
    lags = past.roll(1, 1)
    args, loc, _ = network(past, observed, past_features=lags)
    shifted = network(2 * past + 7, observed, past_features=2 * lags + 7)[0]
    torch.testing.assert_close(shifted, args)
    filled = network(past, observed, past_features=lags.where(~lags.isnan(), loc))[0]
    torch.testing.assert_close(filled, args)
    assert not torch.allclose(network(past, observed, past_features=lags + 1)[0], args)


@torch.no_grad()
def test_every_kind_of_feature_is_seen() -> None:
    network = moved(config(**FEATURES))
    past, observed = series(network.config)
    given = of_window(network, features(network.config))
    before = network(past, observed, **given)[0]
    for name, x in given.items():
        for column in range(x.shape[-1]):
            changed = x.clone()
            changed[..., column] = (x[..., column] + 1) % network.config.cardinality[column] if (
                name == "static_cat"
            ) else x[..., column] + 1  # fmt: skip
            after = network(past, observed, **{**given, name: changed})[0]
            assert not torch.allclose(after, before), (name, column)


@torch.no_grad()
def test_known_features_act_on_their_own_step() -> None:
    network = moved(config(**FEATURES))
    past, observed = series(network.config)
    given = of_window(network, features(network.config))
    before = network(past, observed, **given)[0]
    given["future_features"][:, 3] += 1
    changed = (network(past, observed, **given)[0] != before).flatten(2).any(-1)
    assert changed.tolist() == [[False, False, False, True, False, False]] * 2


def test_dropout_is_for_training_alone() -> None:
    network = moved(config(dropout=0.5))
    past, observed = series(network.config)
    assert torch.equal(network(past, observed)[0], network(past, observed)[0])
    network.train()
    assert not torch.equal(network(past, observed)[0], network(past, observed)[0])


def test_the_linear_path_is_not_decayed() -> None:
    from titans_core import decay_groups

    network = ForecastNetwork(config())
    decayed, others = decay_groups(network, 0.1)
    assert any(p is network.linear.weight for p in others["params"])
    assert any(p is network.head.weight for p in decayed["params"])


def test_a_configuration_comes_back_from_json() -> None:
    import json

    ours = config(**FEATURES, embedding_dimension=(2, 3), outputs=3, located=(1, 2))
    assert from_dict(NetworkConfig, json.loads(json.dumps(to_dict(ours)))) == ours
    assert replace(ours, embedding_dimension=None).embeddings == (2, 2)


MISTAKES: dict[str, Any] = {
    "prediction_length must be at least 1: got 0": {"prediction_length": 0},
    "patch_len must be at most context_length = 20: got 21": {"patch_len": 21},
    "located must name outputs from 0 to 0": {"located": (1,)},
    "dropout must be at least 0 and below 1": {"dropout": 1.0},
    "mixing must be one of none, channels": {"mixing": "all"},
    "scaling must be one of std, mean, none": {"scaling": "max"},
    "embedding_dimension must have one size": {"cardinality": (3,), "embedding_dimension": (1, 2)},
    "cardinality must be at least 1": {"cardinality": (0,)},
    "num_feat_static_real must be 0 or more": {"num_feat_static_real": -1},
    "num_lags must be 0 where there are several channels": {"num_lags": 1, "channels": 2},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_configuration_that_cannot_be_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**MISTAKES[message])


def test_tensors_that_do_not_fit_are_refused() -> None:
    network = ForecastNetwork(config(**FEATURES)).double()
    past, observed = series(network.config)
    given = of_window(network, features(network.config))
    wrong: dict[str, Any] = {
        r"past must have context_length = 20 steps: got 19": ((past[:, 1:], observed[:, 1:]), {}),
        r"past must have shape \[2, 20, 1\]: got \[2, 20, 2\]": (
            (past.expand(-1, -1, 2), observed),
            {},
        ),
        r"observed must have shape \[2, 20, 1\]: got \[2, 19, 1\]": ((past, observed[:, 1:]), {}),
        r"future_features must have shape \[2, 6, 2\]: got \[2, 5, 2\]": (
            (past, observed),
            {"future_features": given["future_features"][:, 1:]},
        ),
        r"past_features must have shape \[2, 20, 3\]: got none": (
            (past, observed),
            {"past_features": None},
        ),
    }
    for message, (args, changes) in wrong.items():
        with pytest.raises(ValueError, match=message):
            network(*args, **{**given, **changes})
    with pytest.raises(TypeError, match="observed must be bool"):
        network(past, observed.double(), **given)
    with pytest.raises(ValueError, match=r"weight must have shape \[H, L\] = \[6, 20\]"):
        network.start_at(torch.zeros(20, 6))
