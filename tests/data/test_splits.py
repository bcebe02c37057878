from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from textbed.data.sources import Corpus, Split
from textbed.data.splits import fold_numbers, make_splits, stratified_order
from textbed.errors import UserError

# 300, 90 and 10 documents of three classes, sorted by class as many sources are.
LABELS = np.repeat([0, 1, 2], [300, 90, 10])


def corpus(**labels: np.ndarray) -> Corpus:
    splits = {name: Split(len(part), part, name, None) for name, part in labels.items()}
    multilabel = labels["train"].ndim == 2
    return Corpus(splits, ["a", "b", "c"], multilabel, 1, "made up")


def divide(labels=LABELS, others=None, **settings):
    return make_splits(corpus(train=labels, **(others or {})), settings)


def counts(part, labels=LABELS):
    return np.bincount(labels[part.rows], minlength=3).tolist()


def test_a_source_without_splits_gets_both_stratified_and_apart():
    parts = divide(test=0.2, validation=0.1)
    assert list(parts) == ["train", "validation", "test"]
    assert all(part.split == "train" and part.rows.dtype == np.int64 for part in parts.values())
    assert counts(parts["test"]) == [60, 18, 2]
    assert counts(parts["validation"]) == [24, 7, 1]  # a tenth of the 320 that remain
    assert counts(parts["train"]) == [216, 65, 7]
    together = np.concatenate([part.rows for part in parts.values()])
    assert np.array_equal(np.sort(together), np.arange(400))
    assert all((np.diff(part.rows) > 0).all() for part in parts.values())


def test_splits_of_the_source_are_kept_whole():
    parts = divide(others={"validation": LABELS[:50], "test": LABELS[:70]})
    assert {name: (part.split, len(part.rows)) for name, part in parts.items()} == {
        "train": ("train", 400),
        "validation": ("validation", 50),
        "test": ("test", 70),
    }


def test_a_share_of_zero_leaves_the_split_out():
    assert list(divide(test=0, validation=0)) == ["train"]
    assert list(divide(test=0, validation=0.1)) == ["train", "validation"]


def test_each_seed_moves_its_own_cut_alone():
    first = divide()
    assert np.array_equal(divide(seed=7)["validation"].rows, first["validation"].rows)  # the training seed
    other = divide(validation_seed=1)
    assert np.array_equal(other["test"].rows, first["test"].rows)
    assert not np.array_equal(other["validation"].rows, first["validation"].rows)
    assert not np.array_equal(divide(test_seed=1)["test"].rows, first["test"].rows)


def test_a_cut_is_the_same_for_ever():
    # Written down once: a change here means that no earlier figure can be compared with a later one.
    parts = divide(np.repeat([0, 1], 10), test=0.2, validation=0.25)
    assert parts["test"].rows.tolist() == [5, 7, 13, 14]
    assert parts["validation"].rows.tolist() == [6, 9, 11, 19]


@pytest.mark.parametrize("folds", [2, 3, 10])
def test_folds_hold_every_document_once_and_are_even(folds):
    seen = []
    for fold in range(folds):
        parts = divide(folds=folds, fold=fold, validation=0.1, others={"test": LABELS[:5]})
        assert parts["test"].split == "train"  # the source's own test split is left alone
        seen.append(parts["test"].rows)
        rest = np.concatenate([parts["train"].rows, parts["validation"].rows])
        assert not np.intersect1d(rest, parts["test"].rows).size
        assert len(rest) + len(parts["test"].rows) == 400
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(400))
    sizes = np.array([np.bincount(LABELS[rows], minlength=3) for rows in seen])
    assert (np.ptp(sizes, axis=0) <= 1).all()
    assert np.ptp(sizes.sum(axis=1)) <= 1


def test_a_cut_leaves_a_document_of_every_class_for_training():
    labels = np.repeat([0, 1, 2], [30, 2, 1])
    for seed in range(5):
        parts = divide(labels, test=0.6, validation=0.5, test_seed=seed, validation_seed=seed)
        assert min(counts(parts["train"], labels)) >= 1
    with pytest.raises(
        UserError, match=r"data.test: a share of 0.5 of 4 documents leaves none of class '[abc]'"
    ):
        divide(np.array([0, 1, 2, 2]), test=0.5)


def test_the_fold_seed_makes_other_folds():
    assert not np.array_equal(fold_numbers(LABELS, 10, 0), fold_numbers(LABELS, 10, 1))


def test_fractions_are_nested_and_keep_every_class():
    parts = [
        divide(train_fraction=share, test=0, validation=0)["train"] for share in (0.001, 0.01, 0.1, 0.5, 1.0)
    ]
    assert [len(part.rows) for part in parts] == [3, 4, 40, 200, 400]
    assert counts(parts[0]) == [1, 1, 1]
    assert counts(parts[3]) == [150, 45, 5]
    for small, large in pairwise(parts):
        assert np.isin(small.rows, large.rows).all()
    other = divide(train_fraction=0.1, fraction_seed=1, test=0, validation=0)["train"]
    assert not np.array_equal(other.rows, parts[2].rows)


def test_a_fraction_leaves_the_other_splits_as_they_are():
    whole, part = divide(), divide(train_fraction=0.3)
    for name in ("validation", "test"):
        assert np.array_equal(whole[name].rows, part[name].rows)


def test_limit_keeps_all_classes_of_every_split():
    parts = divide(limit=8, test=0.2)
    assert {name: len(part.rows) for name, part in parts.items()} == {"train": 8, "validation": 8, "test": 8}
    assert all(min(counts(part)) >= 1 for part in parts.values())


def test_every_prefix_of_the_order_is_stratified():
    order = stratified_order(LABELS, np.random.RandomState(3))
    assert np.array_equal(np.sort(order), np.arange(400))
    sizes = np.array([300, 90, 10])
    for count in range(1, 401):
        drawn = np.bincount(LABELS[order[:count]], minlength=3)
        assert (np.abs(drawn - count * sizes / 400) <= 1.5).all()


def test_several_labels_go_by_the_first():
    labels = np.zeros((100, 3), np.uint8)
    labels[:40, 0] = labels[20:80, 2] = 1  # the last 20 have none
    parts = divide(labels, test=0.2, validation=0)
    assert np.bincount(labels[parts["test"].rows].argmax(1), minlength=3).tolist() == [12, 0, 8]
    assert sum(map(len, (part.rows for part in parts.values()))) == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 10, "fold": 10}, "data.fold: 10 is out of range; data.folds=10 has folds 0 to 9"),
        ({"folds": 1}, "data.folds: 1 is no number of folds"),
        ({"folds": 11}, "class 'c' has 10 documents, too few for 11 folds"),
        ({"validation": 1.0}, "data.validation: 1.0 is no share"),
        ({"test": -0.1}, "data.test: -0.1 is no share"),
        ({"test": 0.999}, "leaves none for training"),
        ({"train_fraction": 0}, "data.train_fraction: 0 is out of range"),
        ({"limit": 0}, "data.limit: 0 is no number"),
        ({"test_seed": -1}, "data.test_seed: -1 is no seed"),
    ],
)
def test_what_cannot_be_divided_is_said(settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        divide(**settings)
    assert "\n" not in str(caught.value)


def test_settings_may_be_an_object():
    parts = make_splits(corpus(train=LABELS), SimpleNamespace(test=0.5, validation=0))
    assert len(parts["test"].rows) == 200
