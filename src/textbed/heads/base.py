"""What a head is: B documents in, one row of H values for each out.

To add one, write a class here beside the others and a file in ``configs/head/`` whose ``_target_`` names it.
It takes ``dim`` (D, the width of the front end's rows) and its own settings. Every file in ``configs/head/``
is held to the same promises by ``tests/heads/test_invariance.py``: a document gets the same values alone, in
any batch and in any order, padding is not seen, an empty document gets zeros, and gradients reach every
parameter.
"""

from __future__ import annotations

from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.embedding.table import FrontEnd


class Head(nn.Module):
    """Reads a batch through a front end and gives a row for each document."""

    out_dim: int
    """H, the width of what it returns."""

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H), zeros for an empty document."""
        raise NotImplementedError
