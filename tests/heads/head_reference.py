"""Heads run the slow way: one unpadded document at a time, its rows handed to a plain function."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.embedding.table import Table
from textbed.heads.base import Head

V, D = 30, 5
LENGTHS = [4, 0, 1, 9, 9, 2, 0]


def make_batch(lengths: list[int]) -> TokenBatch:
    torch.manual_seed(1)
    ids = torch.randint(1, V, (sum(lengths),), dtype=torch.int32)
    return TokenBatch(ids, torch.tensor([0, *lengths]).cumsum(0).int())


def assert_same(head: Head, plain: Callable[[Tensor], Tensor], lengths: list[int] = LENGTHS) -> None:
    """The head gives what ``plain`` makes of each document's rows (n, D) -> (H,), and the same gradients.

    In training and evaluation, in double precision, with weights on the tokens; empty documents give zeros.
    """
    torch.manual_seed(2)
    head = head.double()
    table, batch = Table(V, D, padding_idx=0, scale=1.0).double(), make_batch(lengths)
    batch.weights = torch.rand(len(batch.ids), dtype=torch.double) + 0.5
    ours = head(batch, table)
    assert ours.shape == (len(lengths), head.out_dim)
    rows_ND = table.table.weight[batch.ids.long()] * batch.weights.unsqueeze(1)
    expected = torch.stack(
        [
            plain(rows_ND[start:end]) if end > start else rows_ND.new_zeros(head.out_dim)
            for start, end in itertools.pairwise(batch.offsets.tolist())
        ]
    )
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # evaluation takes ways of its own
        torch.testing.assert_close(head.eval()(batch, table), expected, rtol=1e-9, atol=1e-9)
    factors = torch.randn(len(lengths), head.out_dim, dtype=torch.double)
    parameters = [p for p in [*head.parameters(), *table.parameters()] if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad((ours * factors).sum(), parameters),
        torch.autograd.grad((expected * factors).sum(), parameters),
        rtol=1e-7,
        atol=1e-8,
    )
