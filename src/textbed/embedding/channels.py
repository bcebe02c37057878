"""Two tables side by side from the same vectors: one stays as it is, one is learnt.

Shape letters: B documents, N tokens of all of them, D width of one channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import Table


class Multichannel(Table):
    """A frozen and a fine-tuned channel with the same initial rows: Kim 2014, doi:10.3115/v1/D14-1181.

    The row of a token is its frozen row (D values) and then its learnt one (D values), so ``dim`` is 2D. A
    filter over such a row is one set of weights for each channel with the results added: what a convolution
    does with two input channels. Kim's filter is applied to both channels and added up, which is the case
    where both sets are equal; here they may come to differ.

    The vectors' rows and those drawn for words without a vector are the same in both channels at the start.
    It takes twice the memory of one table, and twice the time in the layer above; the gradient and the
    optimizer's state are those of one.

    Args:
        num_embeddings: V, rows of each channel.
        dim: D, width of one channel; None takes the vectors' width.
        settings: as of :class:`Table`; they say how both start, and how the learnt one is trained.

    Raises:
        UserError: as :class:`Table`.
    """

    def __init__(self, num_embeddings: int, dim: int | None = None, **settings: Any) -> None:
        super().__init__(num_embeddings, dim, trainable=True, train_missing=False, **settings)
        self.static = Table(
            num_embeddings,
            vectors=self.table.weight.detach(),
            init="zeros",
            trainable=False,
            padding_idx=self.padding_idx,
        )
        self.dim *= 2

    def forward(self, batch: TokenBatch) -> Tensor:
        """The frozen and the learnt row of each token, (N, 2D), times its weight where there are weights."""
        batch = self.aliased(batch)
        return torch.cat([self.static(batch), super().forward(batch)], dim=1)

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, 2D), without making (N, 2D)."""
        batch = self.aliased(batch)
        return torch.cat([self.static.pool(batch, mode), super().pool(batch, mode)], dim=1)
