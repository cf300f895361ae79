"""The baselines learn what they can learn, and choose on validation examples alone."""

import numpy as np
import pytest
from tiny_dna import planted, sequences

from titans_domains.dna.baselines import (
    HEADS,
    KmerRegression,
    SmallCnn,
    cnn_proba,
    one_hot,
    train_cnn,
)
from titans_domains.dna.reading import reverse_complement


def test_logistic_regression_takes_positions_where_they_decide() -> None:
    X, y = planted(300)
    model = KmerRegression().fit(X[:200], y[:200], (X[200:], y[200:]))
    assert model.kind in ("positions", "both")
    others, truth = planted(100, seed=3)
    assert (model.predict_proba(others).argmax(1) == truth).mean() > 0.9


def test_logistic_regression_takes_kmers_where_the_place_says_nothing() -> None:
    X = sequences(300, 30, 30)
    y = np.arange(300) % 2
    random = np.random.default_rng(0)
    for i in np.flatnonzero(y):
        at = random.integers(0, 22)
        X[i] = X[i][:at] + "GATTACAG" + X[i][at + 8 :]
    model = KmerRegression().fit(X[:200], y[:200], (X[200:], y[200:]))
    assert model.kind in ("k-mers", "both")
    proba = model.predict_proba(["ACGTGATTACAGTTTTTTTTTTTTTTTTTT", X[0], "NNAC"])
    assert proba.shape == (3, 2)
    assert proba[0, 1] > 0.7


def test_one_hot_has_no_channel_for_the_unknown_and_pads_with_zeros() -> None:
    found = one_hot(["ACGTN", "GG"], 6)
    assert found[0].tolist() == np.eye(4, 6).tolist()
    assert found[1].sum() == 2
    assert found[1, 2].tolist() == [1, 1, 0, 0, 0, 0]


def test_the_cnn_learns_and_keeps_its_best_epoch() -> None:
    X, y = planted(300)
    model = train_cnn(X[:200], y[:200], (X[200:], y[200:]), seed=0, epochs=8)
    assert isinstance(model, SmallCnn)
    others, truth = planted(100, seed=3)
    proba = cnn_proba(model, others)
    assert proba.sum(1) == pytest.approx(1, abs=1e-5)
    assert (proba.argmax(1) == truth).mean() > 0.9
    again = train_cnn(X[:200], y[:200], (X[200:], y[200:]), seed=0, epochs=8)
    assert np.array_equal(cnn_proba(again, others), proba)


def on_either_strand(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """GATTACAG anywhere on either strand of class 1."""
    X = sequences(count, 30, 30, seed)
    y = np.arange(count) % 2
    random = np.random.default_rng(seed)
    for i in np.flatnonzero(y):
        at = random.integers(0, 22)
        X[i] = X[i][:at] + "GATTACAG" + X[i][at + 8 :]
        X[i] = reverse_complement(X[i]) if random.random() < 0.5 else X[i]
    return X, y


@pytest.mark.parametrize("head", HEADS)
def test_the_cnn_of_both_strands_reads_either_alike(head: str) -> None:
    X, y = on_either_strand(400)
    model = train_cnn(
        X[:300], y[:300], (X[300:], y[300:]), seed=0, epochs=8, head=head, both_strands=True
    )
    others, truth = on_either_strand(100, seed=3)
    proba = cnn_proba(model, others)
    assert cnn_proba(model, [reverse_complement(s) for s in others]) == pytest.approx(
        proba, abs=1e-5
    )
    plain = train_cnn(X[:300], y[:300], (X[300:], y[300:]), seed=0, epochs=1, head=head)
    turned = cnn_proba(plain, [reverse_complement(s) for s in others])
    assert turned != pytest.approx(cnn_proba(plain, others), abs=1e-3)
    if head == "maximum":
        assert (proba.argmax(1) == truth).mean() > 0.9


def test_logistic_regression_of_both_strands_reads_either_alike() -> None:
    X, y = on_either_strand(300)
    model = KmerRegression(both_strands=True).fit(X[:200], y[:200], (X[200:], y[200:]))
    others, truth = on_either_strand(100, seed=3)
    proba = model.predict_proba(others)
    assert model.predict_proba([reverse_complement(s) for s in others]) == pytest.approx(proba)
    assert (proba.argmax(1) == truth).mean() > 0.8
