"""What a table did: what it covers, which rows moved and how far, and what lies beside what.

Plain functions of arrays. Shape letters: V rows of the table (tokens of the vocabulary), D width of a row, n
some of the rows, Q rows that are asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from textbed.batch import TokenBatch
from textbed.embedding.table import FrontEnd

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BLOCK_NUMBERS = 1 << 18
"""Numbers of a matrix that are worked on at once: 2 MiB as float64, which a processor's cache holds."""


class Part(NamedTuple):
    """Some of the tokens of a text."""

    types: int
    """Distinct tokens."""
    tokens: int
    """Tokens, each as often as it occurs."""


@dataclass(frozen=True)
class Coverage:
    """How much of a text the vocabulary and the pretrained vectors know."""

    all: Part
    known: Part
    """Those in the vocabulary."""
    only_here: Part
    """Of these, those that the training text lacks: they have a row, which training did not see."""
    vectors: Part | None
    """Those in the vocabulary that have a vector; None where there are no vectors."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the share of each part, 0 to 1; null of a text without a token."""

        def with_shares(part: Part) -> dict[str, Any]:
            return {
                **part._asdict(),
                "share_of_types": part.types / self.all.types if self.all.types else None,
                "share_of_tokens": part.tokens / self.all.tokens if self.all.tokens else None,
            }

        return {
            **self.all._asdict(),
            "known": with_shares(self.known),
            "known_but_not_in_training": with_shares(self.only_here),
            "with_vector": None if self.vectors is None else with_shares(self.vectors),
        }


def coverage(
    counts: np.ndarray,
    unknown: np.ndarray,
    *,
    found: np.ndarray | None = None,
    train_counts: np.ndarray | None = None,
) -> Coverage:
    """Count what a text holds of the vocabulary and of the vectors.

    Args:
        counts: (V,) how often each token of the vocabulary occurs in the text, 0 for the unknown token.
        unknown: how often each distinct token outside the vocabulary occurs.
        found: (V,) bool, which tokens have a pretrained vector; None where there are none.
        train_counts: (V,) how often each occurs in the training text; None where this is that text.
    """
    counts, unknown = np.asarray(counts), np.asarray(unknown)

    def part(which: np.ndarray) -> Part:
        return Part(int(np.count_nonzero(counts[which])), int(counts[which].sum()))

    known = part(np.ones(len(counts), bool))
    return Coverage(
        all=Part(known.types + int(np.count_nonzero(unknown)), known.tokens + int(unknown.sum())),
        known=known,
        only_here=Part(0, 0) if train_counts is None else part(np.asarray(train_counts) == 0),
        vectors=None if found is None else part(np.asarray(found)),
    )


# ------------------------------------------------------------------------------------------------------------
# Rows before and after
# ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def word_rows(front_end: FrontEnd, ids: np.ndarray) -> np.ndarray:
    """What a head sees of each token: of a document of that token alone, (n, D) float32.

    Without what acts in training only. Whatever the front end makes a row of (several tables, n-grams,
    weights) is in it. Memory beside the result is bounded.
    """
    was_training = front_end.training
    front_end.eval()
    rows = np.empty((len(ids), front_end.dim), np.float32)
    for begin, end in _blocks(rows.shape):
        batch = TokenBatch(
            torch.from_numpy(np.asarray(ids[begin:end], np.int32)),
            torch.arange(end - begin + 1, dtype=torch.int32),
        )
        rows[begin:end] = front_end.pool(front_end.prepare(batch), "mean").float().numpy()
    front_end.train(was_training)
    return rows


def movement(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each row moved: L2 distance and cosine between before and after, (n,) float64 each.

    A distance is 0 only for a row that is the same to the last bit; its cosine is then 1. The cosine of a row
    of zeros, before or after, is NaN.
    """
    distance, cosine = np.empty(len(before)), np.empty(len(before))
    for begin, end in _blocks(before.shape):
        old, new = before[begin:end].astype(np.float64), after[begin:end].astype(np.float64)
        distance[begin:end] = _lengths(new - old)
        with np.errstate(invalid="ignore"):
            cosine[begin:end] = np.einsum("nd,nd->n", old, new) / (_lengths(old) * _lengths(new))
    np.clip(cosine, -1, 1, out=cosine)
    cosine[(distance == 0) & ~np.isnan(cosine)] = 1
    return distance, cosine


def norms(rows: np.ndarray) -> np.ndarray:
    """L2 norm of each row, (n,) float64."""
    lengths = np.empty(len(rows))
    for begin, end in _blocks(rows.shape):
        lengths[begin:end] = _lengths(rows[begin:end].astype(np.float64))
    return lengths


def quantiles(values: np.ndarray, at: Sequence[float] = QUANTILES) -> list[float | None]:
    """Quantiles of the values that are not NaN, linear between two of them; None where there is none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return np.quantile(values, at).tolist() if len(values) else [None] * len(at)


class Bin(NamedTuple):
    """Rows of tokens that occur about equally often in the training text."""

    low: int
    """The least count in the bin."""
    high: int
    """The greatest it could hold: bins are 0, 1, 2 to 3, 4 to 7, ..., each twice as wide."""
    rows: int
    moved: int
    """Of these, rows that changed at all."""
    distance: list[float | None]
    """Quartiles: lower, median, upper."""
    cosine: list[float | None]


def by_frequency(counts: np.ndarray, distance: np.ndarray, cosine: np.ndarray) -> list[Bin]:
    """How far rows moved against how often their token occurs; (n,) each. Bins without a row are left out."""
    counts = np.asarray(counts)
    # frexp is exact: count = m * 2 ** e with 0.5 <= m < 1, so e is the number of binary digits; 0 has none
    digits = np.frexp(counts.astype(np.float64))[1]
    bins = []
    for digit in np.unique(digits):
        here = digits == digit
        low, high = (0, 0) if digit == 0 else (1 << int(digit - 1), (1 << int(digit)) - 1)
        bins.append(
            Bin(
                low,
                high,
                int(here.sum()),
                int(np.count_nonzero(distance[here])),
                quantiles(distance[here], (0.25, 0.5, 0.75)),
                quantiles(cosine[here], (0.25, 0.5, 0.75)),
            )
        )
    return bins


def largest(values: np.ndarray, most: int, where: np.ndarray) -> np.ndarray:
    """Positions of the largest values at which ``where`` (n,) bool holds, at the most ``most``, falling.

    Of equal values the first comes first.
    """
    kept = np.asarray(values)[where]
    most = min(most, len(kept))
    if most < 1:
        return np.zeros(0, np.int64)
    near = np.flatnonzero(where & (values >= np.partition(kept, -most)[-most]))
    return near[np.argsort(-values[near], kind="stable")][:most]


# ------------------------------------------------------------------------------------------------------------
# What lies beside what
# ------------------------------------------------------------------------------------------------------------


def neighbours(
    rows: np.ndarray, queries: np.ndarray, most: int, where: np.ndarray | None = None
) -> list[list[tuple[int, float]]]:
    """The rows nearest to some of them by cosine: for each query (row, cosine), the nearest first.

    The row itself is left out, and so are rows of zeros, which point nowhere. Of equal cosines the first row
    comes first. Time is a matrix product of (Q, D) and (D, n), memory O(Q most) beside a block.

    Args:
        rows: (n, D).
        queries: (Q,) rows that are asked about.
        most: neighbours of each.
        where: (n,) bool, rows that may be a neighbour; None: all.
    """
    queries = np.asarray(queries, np.int64)
    asked = _unit(rows[queries])
    found: list[list[tuple[float, int]]] = [[] for _ in queries]
    for begin, end in _blocks((len(rows), max(rows.shape[1], len(queries)))):
        block = _unit(rows[begin:end])
        able: np.ndarray = np.any(block, axis=1)
        if where is not None:
            able &= where[begin:end]
        # rounded: a product's last digits depend on the processor, and would decide between equal ones
        cosines = np.clip(np.round(asked @ block.T, 12), -1, 1)
        for place, query in enumerate(queries):
            if not asked[place].any():
                continue
            may = able.copy()
            if begin <= query < end:
                may[query - begin] = False
            best = largest(cosines[place], most, may)
            both = found[place] + [(-float(cosines[place, row]), begin + int(row)) for row in best]
            found[place] = sorted(both)[:most]
    return [[(row, -opposite) for opposite, row in one] for one in found]


class Projection(NamedTuple):
    """The two directions in which some rows differ most: principal component analysis."""

    mean: np.ndarray
    """(D,)."""
    axes: np.ndarray
    """(2, D), of length 1 (0 where there is no such direction); the entry of largest size is positive."""
    explained: list[float]
    """Shares of the variance along the two, 0 to 1."""

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Coordinates of rows, (n, 2)."""
        return (rows.astype(np.float64) - self.mean) @ self.axes.T


def projection(rows: np.ndarray) -> Projection:
    """The plane of rows (n, D) that keeps most of their variance. Its sign is always the same."""
    exact = rows.astype(np.float64)
    mean = exact.mean(axis=0)
    _, scales, directions = np.linalg.svd(exact - mean, full_matrices=False)
    variance = scales**2
    total = variance.sum()
    axes, explained = np.zeros((2, rows.shape[1])), [0.0, 0.0]
    for place in range(min(2, len(scales))):
        if variance[place] > 1e-20 * max(total, np.finfo(np.float64).tiny):
            direction = directions[place]
            axes[place] = direction * np.sign(direction[np.abs(direction).argmax()])
            explained[place] = float(variance[place] / total)
    return Projection(mean, axes, explained)


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", rows, rows))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    lengths = _lengths(rows)[:, None]
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cut rows (n, D) into blocks of bounded size."""
    size = max(1, _BLOCK_NUMBERS // max(shape[1], 1))
    for begin in range(0, shape[0], size):
        yield begin, min(begin + size, shape[0])
