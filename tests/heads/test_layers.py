"""Layers above a head against a chain of matrix products."""

from __future__ import annotations

import pytest
import torch
from head_reference import D, assert_same
from plain_heads import plain_of

from textbed.batch import TokenBatch
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.layers import Layered
from textbed.heads.pooling import Pooling


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_against_one_document_at_a_time(activation):
    torch.manual_seed(0)
    head = Layered(Pooling(D, ["mean"]), [7, 4], activation)
    assert head.out_dim == 4
    assert_same(head, plain_of(head))


@pytest.mark.parametrize("padding_idx", [0, None])
def test_only_documents_without_a_token_get_zeros(padding_idx):
    """Not those whose rows are zeros, to whom the layers give what they make of zeros."""
    table = Table(4, D, init="zeros", padding_idx=padding_idx)
    head = Layered(Pooling(D, ["sum"]), [3], "tanh")
    batch = TokenBatch(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 1, 1, 2], dtype=torch.int32))
    of_zeros = head.layers[0].bias.tanh()
    expected = torch.stack([of_zeros, of_zeros * 0, of_zeros])
    if padding_idx == 0:
        expected[0] = 0
    torch.testing.assert_close(head(batch, table), expected)


def test_dropout_is_in_training_only():
    torch.manual_seed(0)
    head, table = Layered(Pooling(D, ["mean"]), [50, 20], "tanh", dropout=0.5), Table(4, D, scale=1.0)
    batch = TokenBatch(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32))
    assert (head(batch, table) == 0).sum() == pytest.approx(10, abs=6)
    head.eval()
    assert (head(batch, table) != 0).all()
    assert torch.equal(head(batch, table), head(batch, table))


def test_multiply_adds():
    assert Layered(Pooling(D, ["mean"]), [7, 4]).multiply_adds([2, 3]) == 5 * D + 2 * (D * 7 + 7 * 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": []}, r"head.dense is \[\]; expected one width or more"),
        ({"widths": [3, 0]}, r"head.dense is \[3, 0\]; expected one width or more, each at least 1"),
        ({"activation": "rleu"}, r"head.dense_activation is 'rleu'; .* Did you mean 'relu'\?"),
        ({"dropout": 1.0}, r"head.dense_dropout is 1.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Layered(Pooling(D, ["mean"]), **{"widths": [3], **settings})
