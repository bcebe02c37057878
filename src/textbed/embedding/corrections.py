"""Frozen tables with something learnt on top: a correction of low rank, or a linear layer.

Shape letters: B documents, N tokens of all of them, V rows of the table, D width of a row, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import Table, sums_among
from textbed.errors import UserError


class Adapted(Table):
    """A frozen table plus a learnt correction of low rank: row i is W[i] + A[i] B.

    This is LoRA (Hu et al. 2021, arXiv:2106.09685) for a table. A (V, r) begins as zeros, so the first step
    sees the frozen table alone. B (r, D) is drawn with a variance of 1 / r: then a step of Adam, which moves
    each number of A by the learning rate, moves a row about as far as it would in a fine-tuned table. With
    V rows, r (V + D) numbers are learnt instead of V D.

    Args:
        num_embeddings: V, rows of the table.
        dim: D, width of a row; None takes the vectors' width.
        rank: r, from 1 to D.
        settings: as of :class:`Table`, of the frozen W; those that speak of gradients hold for A.

    Raises:
        UserError: a rank out of range, or as :class:`Table`.
    """

    def __init__(
        self, num_embeddings: int, dim: int | None = None, *, rank: int = 8, **settings: Any
    ) -> None:
        super().__init__(num_embeddings, dim, trainable=False, frozen_epochs=0, frozen_steps=0, **settings)
        if not 1 <= rank <= self.dim:
            raise UserError(
                f"embedding.rank is {rank}; expected 1 to {self.dim}, the width of a row. A correction of "
                "that rank can be any, and costs more than embedding=finetuned"
            )
        self.coefficients = Table(
            num_embeddings, rank, init="zeros", padding_idx=self.padding_idx, **self.gradient_settings
        )  # A
        self.directions = nn.Parameter(torch.randn(rank, self.dim) * rank**-0.5)  # B

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight where the batch has weights."""
        batch = self.aliased(batch)
        return super().forward(batch) + self.coefficients(batch) @ self.directions

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, D).

        Sums and means do not make (N, D): those of A are multiplied by B afterwards.
        """
        batch = self.aliased(batch).without(self.padding_idx)
        if mode == "max":
            return batch.reduce(self(batch), mode)
        return super().pool(batch, mode) + self.coefficients.pool(batch, mode) @ self.directions

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        """As of :class:`FrontEnd`: A B of each token, or of each document's sum of A (a reduction)."""
        products = _products(lengths, pools) * self.directions.numel()
        sums = sums_among(pools) * sum(lengths) * len(self.directions)
        return super().multiply_adds(lengths, counts, pools) + products + sums


def _products(lengths: Sequence[int], pools: Sequence[Reduction] | None) -> int:
    """How often a linear layer is applied that comes after sums and means, but before all else."""
    sums = sums_among(pools)
    others = 1 if pools is None else len(pools) - sums
    return sums * len(lengths) + others * sum(lengths)


class Projected(Table):
    """A frozen table and a learnt linear layer on its rows: row i is P W[i] + b.

    P begins orthogonal (Saxe et al. 2013, arXiv:1312.6120), which keeps lengths and angles where it is not
    narrower than the table, and b as zeros. Every word is moved, those that training never saw too.

    Args:
        num_embeddings: V, rows of the table.
        dim: D, width of the table's rows; None takes the vectors' width.
        out_dim: width of the rows that come out; None is D.
        bias: whether there is a b. A sum counts it once for each token, times its weight.
        settings: as of :class:`Table`, of the frozen W.

    Raises:
        UserError: a width below 1, or as :class:`Table`.
    """

    def __init__(
        self,
        num_embeddings: int,
        dim: int | None = None,
        *,
        out_dim: int | None = None,
        bias: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(num_embeddings, dim, trainable=False, frozen_epochs=0, frozen_steps=0, **settings)
        if out_dim is not None and out_dim < 1:
            raise UserError(f"embedding.out_dim is {out_dim}; expected null or a width of at least 1")
        table_dim, self.dim = self.dim, self.dim if out_dim is None else out_dim
        # Drawn below; made without drawing, so that the same seed draws the same P with and without b.
        self.projection = nn.utils.skip_init(nn.Linear, table_dim, self.dim, bias=bias)
        nn.init.orthogonal_(self.projection.weight)
        if bias:
            nn.init.zeros_(self.projection.bias)

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, out_dim), times its weight where the batch has weights."""
        rows_ND = F.linear(super().forward(batch), self.projection.weight)
        if self.projection.bias is None:
            return rows_ND
        weights_N = (
            torch.ones_like(batch.ids, dtype=rows_ND.dtype) if batch.weights is None else batch.weights
        )
        if self.padding_idx is not None:
            weights_N = weights_N * (batch.ids != self.padding_idx)
        return rows_ND + weights_N.unsqueeze(1) * self.projection.bias

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, out_dim).

        Sums and means are taken first and projected afterwards: B products instead of N.
        """
        batch = batch.without(self.padding_idx)
        if mode == "max":
            return batch.reduce(self(batch), mode)
        pooled_BD = F.linear(super().pool(batch, mode), self.projection.weight)
        if self.projection.bias is None:
            return pooled_BD
        counts_B1 = batch.lengths.unsqueeze(1)
        total_B1 = counts_B1 if batch.weights is None else batch.reduce(batch.weights.unsqueeze(1), "sum")
        if mode == "mean":
            total_B1 = total_B1 / counts_B1.clamp(min=1)
        return pooled_BD + total_B1 * self.projection.bias

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        """As of :class:`FrontEnd`: P of each token, or of each document's sum."""
        products = _products(lengths, pools) * self.projection.weight.numel()
        return super().multiply_adds(lengths, counts, pools) + products
