"""Truncation, PCA and removal of common components, against data whose components are known."""

from __future__ import annotations

import numpy as np
import pytest

from textbed.embedding.vectors import shaping
from textbed.embedding.vectors.shaping import describe, principal_components, shape
from textbed.errors import UserError

# 8 points whose 4 coordinates do not correlate: columns of a Hadamard matrix, of mean 0 and variance 1
SIGNS = np.array([[(-1) ** (bin(row & column).count("1")) for column in (1, 2, 4, 7)] for row in range(8)])
SCALES = np.array([5.0, 3.0, 2.0, 1.0])
MEAN = np.array([1.0, -2.0, 0.5, 4.0, 0.0])
W = 5


@pytest.fixture
def directions() -> np.ndarray:
    """(4, W) of length 1, at right angles, each with its largest entry positive."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(W, 4)))[0].T
    return rows * np.sign(rows[np.arange(4), np.abs(rows).argmax(axis=1)])[:, None]


@pytest.fixture
def vectors(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows 1 to 8 of 10 have a vector: standard deviations SCALES along ``directions``, mean MEAN."""
    matrix = np.zeros((10, W), np.float32)
    matrix[1:9] = MEAN + (SIGNS * SCALES) @ directions
    found = np.zeros(10, bool)
    found[1:9] = True
    return matrix, found


@pytest.mark.parametrize("block", [1 << 16, 3])
def test_components_are_those_the_rows_were_made_of(directions, vectors, block, monkeypatch):
    monkeypatch.setattr(shaping, "_BLOCK", block)
    mean, components = principal_components(*vectors, 4)
    np.testing.assert_allclose(mean, MEAN, atol=1e-6)
    np.testing.assert_allclose(components, directions, atol=1e-6)
    matrix, found = vectors
    matrix[~found] = 100.0  # rows that were not in the file have no say
    np.testing.assert_array_equal(principal_components(matrix, found, 4)[1], components)


@pytest.mark.parametrize("dim", [1, 3, 4])
def test_pca_keeps_the_largest_coordinates(vectors, dim):
    reduced = shape(*vectors, dim=dim, reduce="pca")
    assert (reduced.shape, reduced.dtype) == ((10, dim), np.float32)
    np.testing.assert_allclose(reduced[1:9], (SIGNS * SCALES)[:, :dim], atol=1e-5)
    assert not reduced[[0, 9]].any()


def test_truncation_keeps_the_first_columns(vectors):
    reduced = shape(*vectors, dim=2, reduce="truncate")
    np.testing.assert_array_equal(reduced, vectors[0][:, :2])
    assert reduced.flags.c_contiguous


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_mean_and_the_first_components_go(directions, vectors, count):
    before = vectors[0].copy()
    left = shape(*vectors, remove_components=count)
    expected = (SIGNS * SCALES)[:, count:] @ directions[count:]
    np.testing.assert_allclose(left[1:9], expected, atol=1e-5)
    assert not left[[0, 9]].any()
    assert left.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], before)


def test_columns_go_first_and_components_then(vectors):
    both = shape(*vectors, dim=3, reduce="pca", remove_components=1)
    np.testing.assert_allclose(both[1:9], SIGNS[:, :3] * [0, *SCALES[1:3]], atol=1e-5)


@pytest.mark.parametrize("settings", [{"dim": 2, "reduce": "pca"}, {"remove_components": 2}])
def test_nothing_is_fitted_on_appended_rows(vectors, settings):
    matrix, found = vectors
    more = 50 * np.random.default_rng(1).normal(size=(5, W)).astype(np.float32)
    both = np.concatenate([matrix, more, matrix[3:4]]), np.concatenate([found, np.ones(6, bool)])
    alone = shape(matrix, found, **settings)
    together = shape(*both, appended=6, **settings)
    np.testing.assert_array_equal(together[:10], alone)
    np.testing.assert_allclose(together[15], alone[3], atol=1e-5)
    assert not np.allclose(shape(*both, **settings)[:10], alone, atol=0.1)


def test_what_was_done_in_words(vectors):
    assert describe(5, None, None) is None
    assert shape(*vectors, dim=5) is vectors[0]
    assert describe(3, "pca", 1) == "brought to 3 columns by PCA, without their mean and first component"
    assert describe(3, "truncate", 2) == "cut to 3 columns, without their mean and first 2 components"
    assert describe(3, None, 0) == "without their mean"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduce": "PCA", "dim": 2}, r"embedding.reduce=PCA: expected truncate or pca"),
        ({"reduce": "pca"}, r"embedding.dim=null: .*at most the vectors' 5"),
        ({"reduce": "truncate", "dim": 6}, r"embedding.dim=6: .*at most the vectors' 5"),
        ({"remove_components": 5}, r"remove_components=5: .*5 columns.*from 0 to 4"),
        ({"remove_components": 2, "reduce": "pca", "dim": 2}, r"remove_components=2: .*2 columns"),
    ],
)
def test_settings_that_cannot_be(vectors, settings, message):
    with pytest.raises(UserError, match=message):
        shape(*vectors, **settings)


def test_too_few_rows(vectors):
    matrix, found = vectors
    found[3:] = False
    with pytest.raises(UserError, match=r"only 2 rows of the vocabulary have a vector.*give at most 1"):
        shape(matrix, found, dim=2, reduce="pca")
    with pytest.raises(UserError, match=r"remove_components=2: only 2 rows"):
        shape(matrix, found, remove_components=2)
