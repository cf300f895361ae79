"""The schedule of the learning rate, and settings that are out of range."""

import math

import pytest

from titans_domains.train_config import TrainConfig


def test_schedule() -> None:
    config = TrainConfig(steps=100, warmup=10, min_lr=0.2)
    assert [config.rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert config.rate(10) == pytest.approx(1)
    assert config.rate(55) == pytest.approx(0.6)
    assert config.rate(100) == pytest.approx(0.2)
    assert config.rate(1000) == pytest.approx(0.2)
    rates = [config.rate(step) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert TrainConfig(steps=1, warmup=0).rate(0) == 1
    assert TrainConfig(steps=5, warmup=50).rate(4) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", 0, "train.steps must be at least 1: got 0."),
        ("batch_size", 0, "train.batch_size must be at least 1: got 0."),
        ("accumulate", 0, "train.accumulate must be at least 1: got 0."),
        ("checkpoint_every", 0, "train.checkpoint_every must be at least 1: got 0."),
        ("warmup", -1, "train.warmup must be 0 or more: got -1."),
        ("clip", -0.1, "train.clip must be 0 or more: got -0.1."),
        ("lr", 0.0, "train.lr must be positive"),
        *(
            (name, value, f"train.{name} must be finite and at most 1e.15: got ")
            for name in ("lr", "min_lr", "weight_decay", "clip")
            for value in (math.nan, math.inf, 1e16)
        ),
        ("min_lr", 1.5, "train.min_lr, its last share, between 0 and 1: got 0.002 and 1.5."),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{name: value})  # type: ignore[arg-type]
