"""SequenceClassifier keeps scikit-learn's conventions, learns what position decides, says what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.utils import estimator_checks as checks
from tiny_dna import planted, tiny_model

from titans_domains.dna import SequenceClassifier, calls, classify, examples
from titans_domains.dna.labels import held_out
from titans_domains.dna.reading import reverse_complement

X, Y = planted(48)
MODEL = tiny_model(pool=2)


def quick(**settings: Any) -> SequenceClassifier:
    return SequenceClassifier(
        MODEL, **({"epochs": 1, "batch_size": 16, "device": "cpu"} | settings)
    )


@pytest.fixture(scope="module")
def fitted() -> SequenceClassifier:
    return quick(epochs=2).fit(X, Y)


@pytest.mark.parametrize(
    "check",
    [
        checks.check_estimator_cloneable,
        checks.check_estimator_tags_renamed,
        checks.check_valid_tag_types,
        checks.check_estimator_repr,
        checks.check_no_attributes_set_in_init,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_mixin_order,
        checks.check_parameters_default_constructible,
        checks.check_get_params_invariance,
        checks.check_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_the_estimator_checks_that_need_no_numbers_pass(check: Any) -> None:
    check("SequenceClassifier", SequenceClassifier())


def test_fit_gives_itself_back_and_leaves_settings_and_data(fitted: SequenceClassifier) -> None:
    estimator = quick(seed=3)
    before, sequences, labels = dict(estimator.__dict__), list(X), Y.copy()
    assert estimator.fit(sequences, labels) is estimator
    assert {name: estimator.__dict__[name] for name in before} == before
    assert sequences == X
    assert np.array_equal(labels, Y)
    state = {k: v for k, v in fitted.__dict__.items() if k != "networks_"}
    fitted.predict(X), fitted.predict_proba(X), fitted.embed(X), fitted.gradients(X[:2])
    assert {k: v for k, v in fitted.__dict__.items() if k != "networks_"} == state


@pytest.mark.parametrize("method", ["predict", "predict_proba", "embed", "gradients", "save"])
def test_nothing_is_predicted_before_fit(method: str, tmp_path: Path) -> None:
    argument = tmp_path / "x" if method == "save" else X
    with pytest.raises(NotFittedError):
        getattr(quick(), method)(argument)
    assert not list(tmp_path.iterdir())


def test_a_seed_decides_everything_and_the_caller_s_random_numbers_nothing() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = quick(seed=5).fit(X, Y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    estimator = quick(seed=5)
    assert np.array_equal(estimator.fit(X, Y).predict_proba(X), first)
    assert np.array_equal(estimator.fit(X, Y).predict_proba(X), first)
    assert not np.array_equal(quick(seed=6).fit(X, Y).predict_proba(X), first)


def test_a_sequence_is_predicted_alike_in_any_company(fitted: SequenceClassifier) -> None:
    rows = [*X[:6], "ACGT", "TTGACA" * 11, "N"]
    proba = fitted.predict_proba(rows)
    assert np.allclose(fitted.predict_proba(rows[::-1])[::-1], proba, atol=1e-6)
    for row, sequence in enumerate(rows):
        assert np.allclose(fitted.predict_proba([sequence])[0], proba[row], atol=1e-6)
    assert np.allclose(proba.sum(1), 1)
    assert np.array_equal(fitted.predict(rows), fitted.classes_[proba.argmax(1)])
    assert fitted.predict_proba([rows[0].lower().replace("t", "u")])[0] == pytest.approx(proba[0])


@pytest.mark.parametrize(
    "labels", [np.array(["no", "yes"])[Y], Y.astype(bool), Y * 7.0, list(map(str, Y))], ids=str
)
def test_classes_are_what_the_labels_were(labels: Any) -> None:
    estimator = quick().fit(X, labels)
    assert estimator.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))
    found = estimator.predict(X)
    assert found.dtype == np.asarray(labels).dtype
    assert set(found.tolist()) <= set(estimator.classes_.tolist())
    assert estimator.score(X, labels) == (found == np.asarray(labels)).mean()


def test_no_more_bases_are_read_at_once_than_fit(
    fitted: SequenceClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*X[:9], "ACGT" * 20, "ACG"]
    wanted = fitted.predict_proba(rows), fitted.embed(rows), fitted.gradients(rows)
    sizes: list[int] = []
    original = examples.pad_batch

    def watched(tokens: Any) -> Any:
        found = original(tokens)
        sizes.append(found[0].numel() if len(tokens) > 1 else 0)
        return found

    monkeypatch.setattr(examples, "pad_batch", watched)
    monkeypatch.setattr(calls, "MOST_BASES", 60)
    found = fitted.predict_proba(rows), fitted.embed(rows), fitted.gradients(rows)
    assert 0 < max(sizes) <= 60
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_scikit_learn_s_tools_take_it() -> None:
    import pandas as pd

    assert cross_val_score(quick(), X, Y, cv=2).shape == (2,)
    groups = np.arange(48) // 4
    scores = cross_val_score(quick(), np.array(X), Y, cv=GroupKFold(2), groups=groups)
    assert ((scores >= 0) & (scores <= 1)).all()
    search = GridSearchCV(quick(), {"lr": [1e-3, 1e-2]}, cv=2).fit(pd.Series(X), pd.Series(Y))
    assert search.best_params_["lr"] in (1e-3, 1e-2)
    copy = clone(quick(members=2))
    assert copy.members == 2
    assert copy.get_params()["model"] == MODEL


def test_it_learns_what_only_the_place_of_a_motif_tells() -> None:
    more, labels = planted(240, seed=1)
    others, truth = planted(200, seed=2)
    estimator = quick(epochs=10, lr=2e-2, batch_size=32).fit(more, labels)
    assert estimator.score(others, truth) > 0.95


def test_training_ends_when_validation_got_worse_and_keeps_the_best() -> None:
    # Labels of chance: training examples can be learned by heart, validation only gets worse.
    labels = np.random.default_rng(0).integers(0, 2, 48)
    long = quick(epochs=60, lr=2e-2, patience=3, label_smoothing=0.0)
    valid = (planted(40, seed=9)[0], np.random.default_rng(1).integers(0, 2, 40))
    seen: list[float] = []

    original = classify.ClassifyTask.validate

    def watched(task: Any) -> dict[str, float]:
        row = original(task)
        seen.append(row["loss"])
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify.ClassifyTask, "validate", watched)
        long.fit(X, labels, validation=valid)
    best = int(np.argmin(seen))
    assert len(seen) == best + 1 + 3 < 60
    proba = long.predict_proba(valid[0])
    loss = -np.log(proba[np.arange(40), valid[1]]).mean()
    assert loss == pytest.approx(seen[best], abs=1e-5)


def test_validation_keeps_groups_and_duplicates_together() -> None:
    groups = np.repeat(np.arange(12), 4)
    chosen = held_out(X, Y, groups, 0.25, 0)
    assert 0 < chosen.sum() < len(X)
    assert not set(groups[chosen]) & set(groups[~chosen])
    # A copy in another group ties the two together.
    shared = [reverse_complement(X[0]) if i == 20 else x for i, x in enumerate(X)]
    for seed in range(8):
        tied = held_out(shared, Y, groups, 0.25, seed)
        assert len(set(tied[groups == 0]) | set(tied[groups == 5])) == 1
    doubled = [*X, *map(reverse_complement, X), *X]
    labels = np.tile(Y, 3)
    chosen = held_out(doubled, labels, None, 0.25, 0)
    assert chosen.sum() == 36
    assert np.array_equal(chosen[:48], chosen[48:96])
    assert np.array_equal(chosen[:48], chosen[96:])
    assert labels[chosen].mean() == 0.5


def test_a_split_that_takes_a_class_from_training_is_refused() -> None:
    words = np.array(["no", "yes"])[Y]
    with pytest.raises(ValueError, match="leaves no sequence of '(no|yes)' to train on"):
        quick().fit(X, words, groups=Y)
    several = np.stack([Y, 1 - Y, np.ones_like(Y)], 1)
    with pytest.raises(ValueError, match="leaves no sequence of [01] to train on"):
        quick().fit(X, several, groups=Y)


def test_validation_examples_that_were_trained_on_are_said() -> None:
    with pytest.warns(UserWarning, match="2 of 3 sequences of the validation set stand in"):
        quick().fit(X, Y, validation=([X[0], reverse_complement(X[1]), "ACGT" * 6], [0, 1, 0]))


def test_several_labels_hold_together() -> None:
    several = np.stack([Y, 1 - Y, Y * 0 + (np.arange(48) % 3 == 0)], 1)
    estimator = quick(epochs=2, class_weight="balanced").fit(X, several)
    proba, found = estimator.predict_proba(X), estimator.predict(X)
    assert estimator.multilabel_
    assert proba.shape == found.shape == several.shape
    assert np.array_equal(found, (proba >= 0.5).astype(int))
    assert not np.allclose(proba.sum(1), 1)
    assert estimator.score(X, several) == (found == several).all(1).mean()
    assert [g.shape for g in estimator.gradients(X[:2], 2)] == [(24,)] * 2


def test_class_weights_move_the_guess() -> None:
    few, labels = [*X[0::2], *X[1::2][:4]], np.array([0] * 24 + [1] * 4)
    settings: dict[str, Any] = {"epochs": 3, "validation_fraction": 0}
    mean = {
        str(weights): quick(class_weight=weights, **settings).fit(few, labels).predict_proba(few)[:, 1].mean()
        for weights in (None, "balanced", {1: 50.0})
    }  # fmt: skip
    plain, balanced, heavy = mean.values()
    assert plain < balanced < heavy


def test_members_are_averaged() -> None:
    both = quick(members=2, seed=3).fit(X, Y)
    single = [quick(seed=3), quick(seed=4)]
    # Each member has a seed of its own, which draws its validation set too.
    for number, one in enumerate(single):
        chances = both_first(both, number).predict_proba(X)
        assert np.allclose(one.fit(X, Y).predict_proba(X), chances)
    assert len(both.networks_) == 2
    assert both.embed(X).shape == (48, 16)
    chances = [both_first(both, n).predict_proba(X) for n in (0, 1)]
    assert np.allclose(both.predict_proba(X), np.mean(chances, 0))
    assert not np.allclose(*chances, atol=1e-3)


def both_first(estimator: SequenceClassifier, number: int = 0) -> SequenceClassifier:
    """The same classifier with one of its members alone."""
    single = clone(estimator)
    for name in ("classes_", "multilabel_", "tokenizer_", "length_"):
        setattr(single, name, getattr(estimator, name))
    single.networks_ = [estimator.networks_[number]]
    return single


def test_gradients_are_what_each_base_adds(fitted: SequenceClassifier) -> None:
    rows = [X[1], X[2][:9], X[3]]
    found = fitted.gradients(rows)
    assert [g.shape for g in found] == [(24,), (9,), (24,)]
    for sequence, own in zip(rows, found, strict=True):
        predicted = fitted.predict([sequence])[0]
        assert np.allclose(fitted.gradients([sequence], predicted)[0], own, atol=1e-6)
        assert not np.allclose(fitted.gradients([sequence], 1 - predicted)[0], own, atol=1e-4)
    assert all(p.grad is None for p in fitted.networks_[0].parameters())
    with pytest.raises(ValueError, match="target must be one of 0, 1: got 'x'"):
        fitted.gradients(rows, "x")


@pytest.mark.parametrize("tokenizer", ["nucleotide", "kmer", "bpe"])
def test_what_was_saved_predicts_the_same(tokenizer: str, tmp_path: Path) -> None:
    settings = {"tokenizer": tokenizer, "k": 3, "vocab_size": 20, "class_weight": {"a": 2.0}}
    estimator = quick(members=2, **settings).fit(X, np.array(["a", "b"])[Y])
    path = tmp_path / "folder" / "promoters"
    estimator.save(path)
    again = SequenceClassifier.load(path, device="cpu")
    assert np.array_equal(again.predict_proba(X), estimator.predict_proba(X))
    assert np.array_equal(again.predict(X), estimator.predict(X))
    assert again.length_ == 24
    assert again.get_params() | {"model": None} == estimator.get_params() | {"model": None}
    with pytest.raises(FileExistsError, match="is there already"):
        estimator.save(path)
    estimator.save(path, force=True)
    assert sorted(p.name for p in path.parent.iterdir()) == ["promoters"]
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="is no saved classifier"):
        estimator.save(tmp_path / "other", force=True)


def test_a_damaged_classifier_is_refused(fitted: SequenceClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "c")
    table = json.loads((tmp_path / "c" / "classifier.json").read_text())
    del table["classes"]
    (tmp_path / "c" / "classifier.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"classifier.json is damaged: it lacks 'classes'"):
        SequenceClassifier.load(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        SequenceClassifier.load(tmp_path / "d")
    (tmp_path / "e").mkdir()
    with pytest.raises(FileNotFoundError, match="it is no classifier"):
        SequenceClassifier.load(tmp_path / "e")


@pytest.mark.parametrize(
    ("sequences", "labels", "message"),
    [
        ([], [], "X is empty"),
        ("ACGT", [0], r"got a single string; pass \[sequence\]"),
        (["ACGT", ""], [0, 1], "sequence 1 is empty"),
        (["ACGT", "MKVL"], [0, 1], "sequence 1, position 4: 'L' is no base"),
        (["ACGT", None], [0, 1], "sequence 1 is of type NoneType"),
        (["ACGT", 7], [0, 1], "sequence 1 is of type int"),
        (["ACGT", "AC"], [0, 0], "y must have at least 2 classes"),
        (["ACGT", "AC"], [0], "got 2 sequences and 1 labels"),
        (["ACGT", "AC"], None, "y is needed"),
        (["ACGT", "AC"], [0.5, 1.0], "must hold classes, not fractions"),
        (["ACGT", "AC"], [np.nan, 1.0], "label of sequence 0 is missing"),
        (["ACGT", "AC"], ["a", None], "label of sequence 1 is missing"),
        (["ACGT", "AC"], ["a", float("nan")], "label of sequence 1 is missing"),
        (["ACGT", "AC"], ["a", ""], "label of sequence 1 is missing"),
        (["ACGT", "AC"], [[0, 2], [1, 0]], "must hold 0 or 1"),
        ([["ACGT", "AC"]], [0], "one string for each: got shape"),
    ],
)
def test_what_cannot_be_trained_on_is_said(sequences: Any, labels: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        quick().fit(sequences, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"members": 0}, "members must be at least 1: got 0"),
        ({"epochs": 0}, "epochs must be at least 1: got 0"),
        ({"patience": 0}, "patience must be at least 1: got 0"),
        ({"label_smoothing": 2.0}, "label_smoothing must be at least 0 and below 1: got 2.0"),
        ({"validation_fraction": np.nan}, "validation_fraction must be at least 0 and below 1"),
        ({"class_weight": {1: -5}}, "class_weight must be above 0 and finite .* got -5 for 1"),
        ({"class_weight": {0: np.nan}}, "class_weight must be above 0 and finite .* got nan for 0"),
        ({"lr": 0.0}, "lr must be positive"),
    ],
)
def test_settings_that_cannot_be_are_said_before_training(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quick(**settings).fit(X, Y)


def test_a_batch_of_one_place_is_refused() -> None:
    settings: dict[str, Any] = {"batch_size": 1, "validation_fraction": 0}
    with pytest.raises(ValueError, match="at least 2 for sequences as short as 2 tokens: got 1"):
        quick(**settings).fit(["ACGTA", "AC"], [0, 1])
    quick(**settings).fit(["ACGTA", "ACG"], [0, 1])
    quick(**settings | {"batch_size": 2}).fit(["A", "C"], [0, 1])


def test_short_sequences_and_odd_validation_are_said() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 2 bases"):
        quick(tokenizer="kmer", k=4).fit(["ACGTA", "AC"], [0, 1])
    with pytest.raises(ValueError, match="The class 2 is not among those trained on: 0, 1"):
        quick().fit(X, Y, validation=(["ACG"], [2]))
    several = np.stack([Y, 1 - Y], 1)
    with pytest.raises(ValueError, match="must hold 0 or 1 for each label"):
        quick().fit(X, several, validation=(["ACG", "CA"], [[0, 2], [1, 0]]))
    with pytest.raises(ValueError, match="groups must have one entry for each of 48"):
        quick().fit(X, Y, groups=[1, 2])
    with pytest.raises(ValueError, match="class_weight must be by class, 0, 1: got 5"):
        quick(class_weight={5: 1.0}).fit(X, Y)


@pytest.mark.gpu
def test_a_gpu_predicts_what_a_cpu_does(tmp_path: Path) -> None:
    estimator = quick(device="cuda").fit(X, Y)
    estimator.save(tmp_path / "c")
    there = SequenceClassifier.load(tmp_path / "c", device="cpu").predict_proba(X)
    assert np.allclose(estimator.predict_proba(X), there, atol=1e-4)
