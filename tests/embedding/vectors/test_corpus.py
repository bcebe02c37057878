"""Vectors trained on a text of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from textbed.embedding.vectors import corpus
from textbed.errors import UserError


def documents():
    """Ids 2 to 5 come together, 6 to 9 come together, 10 comes once and 11 never."""
    generator = np.random.default_rng(0)
    for row in range(1500):
        low = 2 if row % 2 else 6
        yield generator.integers(low, low + 4, size=12, dtype=np.int32)
    yield np.array([10], np.int32)
    yield np.zeros(0, np.int32)


def test_what_comes_together_lies_together_and_is_kept(tmp_path, monkeypatch):
    passes = []

    def counted():
        passes.append(1)
        return documents()

    matrix, found = corpus.vectors_of(counted, "a", 12, 16, tmp_path)
    assert matrix.shape == (12, 16)
    assert matrix.dtype == np.float32
    assert found.tolist() == [False] * 2 + [True] * 8 + [False] * 2
    assert not matrix[~found].any()
    unit = matrix[2:10] / np.linalg.norm(matrix[2:10], axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[:4, :4].mean() > cosine[:4, 4:].mean() + 0.3
    done = len(passes)
    again = corpus.vectors_of(counted, "a", 12, 16, tmp_path)
    assert len(passes) == done
    np.testing.assert_array_equal(again[0], matrix)
    # Another text trains anew, and the same text gives the same vectors wherever it is trained.
    np.testing.assert_array_equal(corpus.vectors_of(counted, "b", 12, 16, tmp_path)[0], matrix)
    assert len(passes) == 2 * done


def test_long_documents_are_cut_not_dropped():
    long = ["rare", *["word"] * 10_000, "last", "last"]
    assert [len(part) for part in corpus.Corpus(lambda: [long])] == [10_000, 3]
    model = corpus.train(lambda: [long], dim=2, epochs=1)
    assert set(model.wv.index_to_key) == {"word", "last"}


def test_a_text_of_words_that_come_once_is_refused():
    with pytest.raises(UserError, match="no word of the text occurs 2 times"):
        corpus.train(lambda: [["a", "b"]])
