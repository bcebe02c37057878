"""Which documents are for training, validation and test: those of the source, shares cut from it, or folds.

Every cut has a seed of its own that has nothing to do with the training seed, so that runs with different
training seeds see the same documents. Draws use NumPy's ``RandomState``, whose streams are frozen: a split
stays the same over NumPy versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from textbed.data.sources import Corpus
from textbed.errors import UserError

# So that equal seed numbers for different purposes are not the same draw.
_TEST, _VALIDATION, _FOLDS, _FRACTION, _LIMIT = range(1, 6)


@dataclass
class Rows:
    """Documents of one of our splits.

    Attributes:
        split: name of the source's split that they lie in.
        rows: their row numbers there, int64, ascending.
    """

    split: str
    rows: np.ndarray


def _strata(labels: np.ndarray) -> np.ndarray:
    """One class per document, (rows,): the label, or the first of several (C where there is none)."""
    if labels.ndim == 1:
        return labels
    return np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1])


def stratified_order(
    labels: np.ndarray, random: np.random.RandomState, every_class_first: bool = False
) -> np.ndarray:
    """A shuffled order of the rows in which every stretch from the start has the classes in their proportion,
    to within one document.

    Taking the first m therefore is a stratified sample, and a larger m always contains a smaller one.

    Args:
        labels: class ids, (rows,), or (rows, C) zeros and ones, of which the first class counts.
        every_class_first: begin with one document of every class, so that a small sample misses none;
            otherwise end with one of every class, so that what a cut leaves for training misses none.
    """
    strata = _strata(labels)
    shuffled = random.permutation(len(strata))
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    sizes = np.bincount(strata)
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(strata)) - starts[strata[by_class]]  # 0, 1, 2, … within each class
    size = sizes[strata[by_class]]
    key = (place + 0.5) / size
    if every_class_first:
        key[place == 0] = 0.0
    else:
        key[place == size - 1] = 1.0
    return by_class[np.lexsort((random.permutation(len(strata)), key))]


def _cut(
    corpus: Corpus, rows: np.ndarray, share: float, seed: list[int], key: str
) -> tuple[np.ndarray, np.ndarray]:
    """A stratified share of the training ``rows`` (at least one) and the rest, both ascending."""
    labels = corpus.splits["train"].labels
    count = max(1, round(share * len(rows)))
    if count >= len(rows):
        raise UserError(f"data.{key}: a share of {share} of {len(rows)} documents leaves none for training")
    order = rows[stratified_order(labels[rows], np.random.RandomState(seed))]
    cut, rest = np.sort(order[:count]), np.sort(order[count:])
    # Only where there is nearly one class a document: the order keeps one of each class back.
    if not corpus.multilabel and len(lost := np.setdiff1d(labels[cut], labels[rest])):
        raise UserError(
            f"data.{key}: a share of {share} of {len(rows)} documents leaves none of class "
            f"'{corpus.classes[lost[0]]}' for training; give data.{key}=0, or take small classes out"
        )
    return cut, rest


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold, 0 to ``folds`` - 1, of every document, (rows,).

    Each class and the whole are spread evenly over the folds, to within one document.
    """
    strata = _strata(labels)
    shuffled = np.random.RandomState([_FOLDS, seed]).permutation(len(strata))
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    result = np.empty(len(strata), np.int64)
    result[by_class] = np.arange(len(strata)) % folds
    return result


def make_splits(corpus: Corpus, settings: Any) -> dict[str, Rows]:
    """Divide the corpus into ``train``, ``validation`` and ``test`` (the last two may be absent, where they
    are set to 0).

    In this order:

    1. ``folds=k, fold=i``: fold i of the source's train split is the test set, as in k-fold cross-validation.
       A test split of the source is left alone: folds are for data sets without one, and a document must not
       be tested in every fold.
    2. Otherwise test is the source's, or the share ``test`` set aside from train (``test_seed``), stratified.
    3. Validation is the source's, or the share ``validation`` cut from what remains of train
       (``validation_seed``), stratified.
    4. ``train_fraction`` keeps a stratified part of what remains for training (``fraction_seed``), at least
       one document of every class; a smaller fraction is part of a larger.
    5. ``limit`` keeps at most so many documents of each split, all classes among them.

    Raises:
        UserError: a share, fold or count out of range, or too few documents for it.
    """

    def get(key: str, default: Any = None) -> Any:
        return (
            settings.get(key, default) if isinstance(settings, Mapping) else getattr(settings, key, default)
        )

    def share(key: str, default: float) -> float:
        value = get(key, default) or 0
        if not 0 <= value < 1:
            raise UserError(f"data.{key}: {value} is no share; expected 0 (none) or more, and less than 1")
        return float(value)

    def seed(key: str, purpose: int) -> list[int]:
        value = get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise UserError(f"data.{key}: {value!r} is no seed; expected an integer from 0 to {2**32 - 1}")
        return [purpose, value]

    test_share, validation_share = share("test", 0.2), share("validation", 0.1)
    labels = corpus.splits["train"].labels
    rows = np.arange(corpus.splits["train"].num_rows)
    result: dict[str, Rows] = {}

    folds, fold = get("folds"), get("fold", 0) or 0
    if folds is not None:
        _check_folds(corpus, folds, fold)
        numbers = fold_numbers(labels, folds, seed("fold_seed", _FOLDS)[1])
        result["test"], rows = Rows("train", rows[numbers == fold]), rows[numbers != fold]
    elif "test" in corpus.splits:
        result["test"] = Rows("test", np.arange(corpus.splits["test"].num_rows))
    elif test_share:
        test, rows = _cut(corpus, rows, test_share, seed("test_seed", _TEST), "test")
        result["test"] = Rows("train", test)

    if "validation" in corpus.splits:
        result["validation"] = Rows("validation", np.arange(corpus.splits["validation"].num_rows))
    elif validation_share:
        validation, rows = _cut(
            corpus, rows, validation_share, seed("validation_seed", _VALIDATION), "validation"
        )
        result["validation"] = Rows("train", validation)

    fraction = get("train_fraction", 1.0)
    if not 0 < fraction <= 1:
        raise UserError(
            f"data.train_fraction: {fraction} is out of range; expected more than 0 and at most 1"
        )
    if fraction < 1:
        random = np.random.RandomState(seed("fraction_seed", _FRACTION))
        count = max(round(fraction * len(rows)), len(np.unique(_strata(labels[rows]))))
        rows = np.sort(rows[stratified_order(labels[rows], random, every_class_first=True)[:count]])
    result["train"] = Rows("train", rows)

    limit = get("limit")
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise UserError(
                f"data.limit: {limit!r} is no number of documents; expected an integer from 1, or null for "
                "all"
            )
        for part in result.values():
            chosen = corpus.splits[part.split].labels[part.rows]
            order = stratified_order(chosen, np.random.RandomState([_LIMIT, 0]), every_class_first=True)
            part.rows = np.sort(part.rows[order[:limit]])
    return {name: result[name] for name in ("train", "validation", "test") if name in result}


def _check_folds(corpus: Corpus, folds: Any, fold: Any) -> None:
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise UserError(
            f"data.folds: {folds!r} is no number of folds; expected an integer from 2, or null for none"
        )
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds:
        raise UserError(f"data.fold: {fold!r} is out of range; data.folds={folds} has folds 0 to {folds - 1}")
    train = corpus.splits["train"]
    if train.num_rows < folds:
        raise UserError(f"data.folds: {folds} folds of {train.num_rows} documents leave some empty")
    if train.labels.ndim == 1:
        sizes = np.bincount(train.labels, minlength=len(corpus.classes))
        small = [index for index in np.flatnonzero(sizes) if sizes[index] < folds]
        if small:
            raise UserError(
                f"data.folds: class '{corpus.classes[small[0]]}' has {sizes[small[0]]} documents, too few "
                f"for {folds} folds; take fewer folds, or this class out"
            )
