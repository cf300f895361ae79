"""The figures against scikit-learn's, and intervals that hold what they claim."""

import math
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from titans_domains.dna.metrics import (
    accuracy,
    auroc,
    confusion,
    intervals,
    macro_f1,
    matthews,
    scores,
)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_figures_are_scikit_learns(classes: int) -> None:
    random = np.random.default_rng(classes)
    truth = random.integers(0, classes, 200)
    proba = random.dirichlet(np.ones(classes), 200)
    proba[np.arange(200), truth] += 0.3
    proba /= proba.sum(1, keepdims=True)
    guess = proba.argmax(1)
    area = (
        sk.roc_auc_score(truth, proba[:, 1])
        if classes == 2
        else sk.roc_auc_score(truth, proba, multi_class="ovr")
    )
    assert scores(truth, proba) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, guess),
            "mcc": sk.matthews_corrcoef(truth, guess),
            "macro_f1": sk.f1_score(truth, guess, average="macro"),
            "auroc": area,
        }
    )


def test_ties_count_half_in_the_area() -> None:
    truth = np.array([0, 1, 0, 1, 1])
    score = np.array([0.1, 0.1, 0.5, 0.5, 0.9])
    assert auroc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score))
    assert auroc(truth, np.zeros(5)) == 0.5


def test_one_class_alone_has_no_area_and_no_correlation() -> None:
    ones, sure = np.ones(4, np.int64), np.full((4, 2), 0.5)
    found = scores(ones, sure)
    assert math.isnan(found["auroc"])
    assert found["mcc"] == 0
    # Also where no label has an area, without a warning.
    assert math.isnan(scores(np.ones((4, 2), np.int64), sure)["auroc"])


def test_a_class_that_nobody_has_or_guesses_does_not_count() -> None:
    truth, guess = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert macro_f1(confusion(truth, guess, 3)) == pytest.approx(
        sk.f1_score(truth, guess, average="macro")
    )
    assert matthews(confusion(truth, guess, 3)) == pytest.approx(sk.matthews_corrcoef(truth, guess))


def test_several_labels_are_tasks_of_their_own() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (100, 3))
    proba = (truth + random.random((100, 3))) / 2
    single = [scores(truth[:, i], np.stack([1 - proba[:, i], proba[:, i]], 1)) for i in range(3)]
    found = scores(truth, proba)
    for name in found:
        assert found[name] == pytest.approx(np.mean([row[name] for row in single]))
    assert found["accuracy"] == pytest.approx((truth == (proba >= 0.5)).mean())


def test_intervals_hold_the_figure_and_narrow_with_more_sequences() -> None:
    random = np.random.default_rng(0)
    widths = []
    for count in (100, 1600):
        truth = random.integers(0, 2, count)
        right = random.random(count) < 0.8
        one = np.where(right, truth, 1 - truth) * 0.8 + 0.1
        found = intervals(truth, np.stack([1 - one, one], 1), samples=300)
        assert all(f.low <= f.value <= f.high for f in found.values())
        widths.append(found["accuracy"].high - found["accuracy"].low)
        # Of a share p of n the interval is 2 * 1.96 sqrt(p (1 - p) / n) wide.
        assert widths[-1] == pytest.approx(3.92 * math.sqrt(0.16 / count), rel=0.3)
    assert widths[0] > 3 * widths[1]


def test_intervals_hold_few_rows_at_a_time() -> None:
    truth = np.array([0, 1] * 5000)
    tracemalloc.start()
    intervals(truth, np.stack([1 - truth, truth], 1).astype(float), samples=100)
    # All numbers of rows that are drawn take 8 MB.
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_the_same_seed_gives_the_same_intervals() -> None:
    truth = np.array([0, 1] * 20)
    proba = np.random.default_rng(1).dirichlet([1, 1], 40)
    first, again, other = (intervals(truth, proba, samples=50, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_accuracy_is_the_share_on_the_diagonal() -> None:
    table = confusion(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2]), 3)
    assert table.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert accuracy(table) == 0.75
