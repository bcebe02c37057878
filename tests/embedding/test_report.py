"""The report on a table: every function against what is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from textbed.embedding.report import Part, coverage


def test_coverage_by_type_and_by_token() -> None:
    #            <pad> <unk>  a  b  c  d
    counts = np.array([0, 0, 5, 1, 0, 2])
    found = np.array([False, False, True, False, True, True])
    train = np.array([0, 3, 9, 9, 9, 0])
    got = coverage(counts, np.array([4, 1, 1]), found=found, train_counts=train)
    assert got.all == Part(types=6, tokens=14)
    assert got.known == Part(3, 8)
    assert got.only_here == Part(1, 2)  # d
    assert got.vectors == Part(2, 7)  # a and d; c does not occur
    shown = got.as_dict()
    assert (shown["types"], shown["tokens"]) == (6, 14)
    assert shown["known"] == {"types": 3, "tokens": 8, "share_of_types": 0.5, "share_of_tokens": 8 / 14}
    assert shown["known_but_not_in_training"]["share_of_tokens"] == 2 / 14
    assert shown["with_vector"] == {
        "types": 2, "tokens": 7, "share_of_types": pytest.approx(1 / 3), "share_of_tokens": 0.5,
    }  # fmt: skip


def test_coverage_without_vectors_and_without_text() -> None:
    got = coverage(np.zeros(3, int), np.zeros(0, int))
    assert got.all == got.known == got.only_here == Part(0, 0)
    assert got.as_dict()["with_vector"] is None
    assert got.as_dict()["known"] == {
        "types": 0, "tokens": 0, "share_of_types": None, "share_of_tokens": None,
    }  # fmt: skip
