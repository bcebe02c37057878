"""Pooling against means and maxima taken by hand."""

from __future__ import annotations

import pytest
import torch

from textbed.batch import TokenBatch
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.pooling import Pooling

ROWS = torch.tensor([[0.0, 0.0], [1.0, -2.0], [4.0, 8.0], [-3.0, -1.0]])
# Documents 1 2 | (empty) | 3 3 | 1 2 3
BATCH = TokenBatch(
    torch.tensor([1, 2, 3, 3, 1, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 2, 4, 7], dtype=torch.int32)
)


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["mean"], [[2.5, 3.0], [0, 0], [-3, -1], [2 / 3, 5 / 3]]),
        (["max"], [[4, 8], [0, 0], [-3, -1], [4, 8]]),
        (["sum"], [[5, 6], [0, 0], [-6, -2], [2, 5]]),
        (["max", "mean"], [[4, 8, 2.5, 3], [0] * 4, [-3, -1, -3, -1], [4, 8, 2 / 3, 5 / 3]]),
    ],
)
def test_by_hand(modes, expected):
    head = Pooling(2, modes)
    assert head.out_dim == 2 * len(modes)
    assert not list(head.parameters())
    table = Table(4, vectors=ROWS, padding_idx=0)
    torch.testing.assert_close(head(BATCH, table), torch.tensor(expected, dtype=torch.float))


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (["meen"], r"head.modes has 'meen'; expected sum, mean, max. Did you mean 'mean'\?"),
        ([], r"expected a list of one or more of sum, mean, max"),
        ("mean", r"head.modes is 'mean'; expected a list"),
    ],
)
def test_modes_that_cannot_be(modes, message):
    with pytest.raises(UserError, match=message):
        Pooling(2, modes)
