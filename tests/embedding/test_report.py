"""The report on a table: every function against what is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textbed.batch import TokenBatch
from textbed.embedding import report
from textbed.embedding.report import (
    Part,
    by_frequency,
    coverage,
    largest,
    movement,
    neighbours,
    norms,
    projection,
    quantiles,
    word_rows,
)
from textbed.embedding.table import FrontEnd, Table


@pytest.fixture(params=[7, 1 << 18], ids=["small blocks", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(report, "_BLOCK_NUMBERS", request.param)
    return request.param


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


class Weighted(FrontEnd):
    """A table whose tokens weigh, and of which training sees nothing."""

    def __init__(self, table: Table, weights: torch.Tensor) -> None:
        super().__init__()
        self.table, self.token_weights = table, weights
        self.dim, self.padding_idx = table.dim, table.padding_idx

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        if self.training:
            return batch.where(torch.zeros(len(batch.ids), dtype=torch.bool))
        batch.weights = self.token_weights[batch.ids.long()]
        return batch

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        return self.table(batch)


def test_rows_are_what_a_head_sees_of_a_token_alone(blocks: int) -> None:
    table = Table(9, 3, padding_idx=0)
    weights = torch.arange(9.0) - 2
    front_end = Weighted(table, weights)
    ids = np.array([8, 0, 3, 4, 1, 2])
    rows = word_rows(front_end, ids)
    expected = table.table.weight.detach().numpy()[ids] * weights.numpy()[ids, None]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    assert front_end.training  # as it was
    assert not word_rows(front_end.eval(), ids)[1].any()  # padding
    assert not front_end.training


def test_movement(blocks: int) -> None:
    tiny = 1e-40  # so small that float32 would square it to nothing
    before = np.array([[3, 0], [1, 1], [0, 0], [2, 0], [0.1, 0.3], [1, 0]], np.float32)
    after = np.array([[3, 4], [-2, -2], [0, 5], [0, 0], [0.1, 0.3], [1, tiny]], np.float32)
    distance, cosine = movement(before, after)
    np.testing.assert_allclose(distance[:4], [4, 18**0.5, 5, 2], rtol=1e-15)
    assert distance[4] == 0
    assert 0 < distance[5] < 2e-40
    np.testing.assert_allclose(cosine[:2], [0.6, -1], rtol=1e-15)
    assert np.isnan(cosine[2:4]).all()
    assert cosine[4] == 1
    np.testing.assert_array_equal(norms(before)[:4], [3, 2**0.5, 0, 2])


def test_quantiles() -> None:
    values = np.array([4.0, 0.0, np.nan, 1.0, 3.0, 2.0])
    assert quantiles(values, (0, 0.25, 0.5, 0.625, 1)) == [0, 1, 2, 2.5, 4]
    assert quantiles(np.array([np.nan]), (0, 1)) == [None, None]
    assert len(quantiles(values)) == len(report.QUANTILES)


def test_bins_are_twice_as_wide_each() -> None:
    counts = np.array([0, 1, 2, 3, 3, 8, 0, 1 << 40])
    distance = np.array([0.0, 1.0, 2.0, 4.0, 0.0, 5.0, 6.0, 7.0])
    cosine = np.array([np.nan, 0.5, 0.1, 0.2, 0.3, 0.4, 1.0, 0.0])
    bins = by_frequency(counts, distance, cosine)
    assert [(each.low, each.high, each.rows, each.moved) for each in bins] == [
        (0, 0, 2, 1),
        (1, 1, 1, 1),
        (2, 3, 3, 2),
        (8, 15, 1, 1),
        (1 << 40, (1 << 41) - 1, 1, 1),
    ]
    assert bins[2].distance == [1, 2, 3]
    np.testing.assert_allclose(bins[2].cosine, [0.15, 0.2, 0.25])
    assert bins[0].cosine == [1, 1, 1]  # of the one that has a direction


def test_the_largest_and_of_equal_ones_the_first() -> None:
    values = np.array([2, 5, 5, 1, 5, 7])
    every = np.ones(6, bool)
    assert largest(values, 3, every).tolist() == [5, 1, 2]
    assert largest(values, 9, every).tolist() == [5, 1, 2, 4, 0, 3]
    assert largest(values, 2, values < 5).tolist() == [0, 3]
    assert largest(values, 2, ~every).tolist() == largest(values, 0, every).tolist() == []


def test_neighbours_against_a_loop(blocks: int) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    rows[11] = 0
    rows[[3, 17, 20]] = rows[5] * np.array([[2.0], [0.5], [2.0]], np.float32)  # the same direction
    where = np.arange(30) % 7 != 0
    queries = np.array([5, 29, 11, 0])
    got = neighbours(rows, queries, 6, where)
    for query, near in zip(queries, got, strict=True):
        exact = rows.astype(np.float64)
        every = []
        for other in range(30):
            size = np.linalg.norm(exact[query]) * np.linalg.norm(exact[other])
            if other != query and where[other] and size:
                every.append((-round(float(exact[query] @ exact[other] / size), 12), other))
        assert [row for row, _ in near] == [row for _, row in sorted(every)[:6]]
        np.testing.assert_allclose([cosine for _, cosine in near], [-one for one, _ in sorted(every)[:6]])
    assert got[2] == []  # zeros point nowhere
    assert [row for row, _ in got[0]][:3] == [3, 17, 20]
    assert len(neighbours(rows, queries, 50)[0]) == 28


def test_projection_finds_the_plane_and_its_sign() -> None:
    u, v = np.array([0.0, 0.6, 0.0, -0.8]), np.array([1.0, 0.0, 0.0, 0.0])
    along, across = np.array([-3.0, -1.0, 1.0, 3.0]), np.array([1.0, -1.0, -1.0, 1.0])
    rows = 10 + along[:, None] * u + across[:, None] * v
    plane = projection(rows)
    np.testing.assert_allclose(plane.axes, [-u, v], atol=1e-12)  # the largest entry is positive
    np.testing.assert_allclose(plane.of(rows), np.stack([-along, across], axis=1), atol=1e-12)
    np.testing.assert_allclose(plane.explained, [20 / 24, 4 / 24])
    mirrored = projection(rows[::-1])
    np.testing.assert_allclose(mirrored.axes, plane.axes, atol=1e-12)
    np.testing.assert_allclose(plane.of(rows[:1] + 2 * v), [[3, 3]], atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "explained"),
    [([[1.0], [3.0]], [1, 0]), ([[2.0, 5.0], [2.0, 5.0]], [0, 0]), ([[0.0, 0.0], [1.0, 1.0]], [1, 0])],
)
def test_projection_of_less_than_a_plane(rows: list[list[float]], explained: list[float]) -> None:
    plane = projection(np.array(rows))
    np.testing.assert_allclose(plane.explained, explained, atol=1e-12)
    coordinates = plane.of(np.array(rows))
    assert coordinates.shape == (2, 2)
    assert np.isfinite(coordinates).all()
    assert not coordinates[:, 1].any()
