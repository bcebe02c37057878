"""What is done to pretrained vectors between the file and the table: fewer columns, no common component.

Letters: V rows of the table, F of them with a vector, W columns of the file, D columns of the table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from textbed.errors import UserError, nearest

REDUCTIONS = ("truncate", "pca")
_BLOCK = 1 << 16
"""Rows that are in float64 at once: 300 columns take 160 MB."""


def shape(
    matrix: np.ndarray,
    found: np.ndarray,
    *,
    dim: int | None = None,
    reduce: str | None = None,
    remove_components: int | None = None,
    appended: int = 0,
) -> np.ndarray:
    """Make vectors narrower, then take out what is common to them, in this order.

    Both are fitted on the rows that have a vector, each counting once, and leave the others at zero. The same
    vectors give the same result: components come from the (W, W) covariance in float64, and each points to
    where its largest entry is positive. Costs O(F W^2): 50,000 x 300 take 1.5 s on one core.

    Args:
        matrix: (V, W) float32.
        found: (V,) bool, which rows have a vector.
        dim: D, the width that ``reduce`` makes.
        reduce: ``truncate`` keeps the first D columns, which is right where the file has sorted them by what
            they matter, as model2vec's tables are. ``pca`` takes the mean out and keeps the D directions in
            which the rows differ most. None leaves the width.
        remove_components: n, to subtract the rows' mean and then what lies along their n first principal
            components: Mu & Viswanath 2018, "All-but-the-Top", arXiv:1702.01417, who advise about W / 100.
            With 0 the mean alone goes; None leaves all as it is.
        appended: how many of the last rows nothing is fitted on, so that the others come out as they would
            without them.

    Returns:
        the rows, (V, D) float32.

    Raises:
        UserError: ``reduce`` does not exist or is to make more columns than there are, or as many components
            are to go as there are columns, or rows.
    """
    fitted = found & (np.arange(len(found)) < len(found) - appended)
    width, rows = matrix.shape[1], int(np.count_nonzero(fitted))
    if reduce is not None and reduce not in REDUCTIONS:
        raise UserError(
            f"embedding.reduce={reduce}: expected {' or '.join(REDUCTIONS)}, or null."
            f"{nearest(reduce, REDUCTIONS)}"
        )
    if reduce is not None and (dim is None or dim > width):
        raise UserError(
            f"embedding.dim={'null' if dim is None else dim}: embedding.reduce={reduce} needs a width to "
            f"reduce to, of at most the vectors' {width}"
        )
    if reduce == "truncate":
        matrix = np.ascontiguousarray(matrix[:, :dim])
    elif reduce == "pca" and dim is not None:
        width = dim
        _enough(rows, width, f"embedding.reduce=pca to embedding.dim={width}")
        mean, components = principal_components(matrix, fitted, width)
        reduced = np.zeros((len(matrix), width), np.float32)
        for block in (*_blocks(fitted), *_blocks(found & ~fitted)):
            reduced[block] = (matrix[block] - mean) @ components.T
        matrix = reduced
    if remove_components is not None:
        width = matrix.shape[1]
        if not 0 <= remove_components < width:
            raise UserError(
                f"embedding.remove_components={remove_components}: the vectors have {width} columns, so "
                f"expected null or a number from 0 to {width - 1}"
            )
        _enough(rows, remove_components, f"embedding.remove_components={remove_components}")
        mean, components = principal_components(matrix, fitted, remove_components)
        matrix = matrix.copy()
        for block in (*_blocks(fitted), *_blocks(found & ~fitted)):
            centred = matrix[block] - mean
            matrix[block] = centred - (centred @ components.T) @ components
    return matrix


def describe(dim: int | None, reduce: str | None, remove_components: int | None) -> str | None:
    """A phrase on what ``shape`` does with these settings; None for nothing."""
    done = {"truncate": [f"cut to {dim} columns"], "pca": [f"brought to {dim} columns by PCA"]}.get(
        reduce or "", []
    )
    if remove_components is not None:
        components = "component" if remove_components == 1 else f"{remove_components} components"
        done.append("without their mean" + (f" and first {components}" if remove_components else ""))
    return ", ".join(done) or None


def principal_components(matrix: np.ndarray, found: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (W,) and the ``count`` first principal components (count, W) of the rows ``found``, float64.

    Components are of length 1, in the order of the variance along them, each with its largest entry positive.
    """
    rows = max(int(np.count_nonzero(found)), 1)
    mean = np.zeros(matrix.shape[1])
    for block in _blocks(found):
        mean += matrix[block].sum(axis=0, dtype=np.float64)
    mean /= rows
    if count == 0:
        return mean, np.zeros((0, matrix.shape[1]))
    covariance = np.zeros((matrix.shape[1], matrix.shape[1]))
    for block in _blocks(found):
        centred = matrix[block] - mean
        covariance += centred.T @ centred
    _, directions = np.linalg.eigh(covariance / rows)  # by growing variance
    components = directions[:, ::-1].T[:count]
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(count), largest])
    return mean, components * signs[:, None]


def _blocks(found: np.ndarray) -> Iterator[np.ndarray]:
    rows = np.flatnonzero(found)
    for begin in range(0, len(rows), _BLOCK):
        yield rows[begin : begin + _BLOCK]


def _enough(rows: int, components: int, key: str) -> None:
    # n + 1 points have n directions in which they differ.
    if rows <= components:
        raise UserError(
            f"{key}: only {rows} rows of the vocabulary have a vector, which have no {components} "
            f"components; give at most {max(rows - 1, 0)}"
        )
