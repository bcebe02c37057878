"""Lookups in one table of rows, and sums, means and maxima of them over documents without a row per token.

Shape letters: B documents, N tokens of all of them, V rows of the table, D width of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from textbed.batch import Reduction, TokenBatch


def look_up(
    weight_VD: Tensor, batch: TokenBatch, *, padding_idx: int | None = None, sparse: bool = False
) -> Tensor:
    """The row of each token times its weight, (N, D). The row ``padding_idx`` gets no gradient."""
    rows_ND = F.embedding(batch.ids, weight_VD, padding_idx, sparse=sparse)
    return rows_ND if batch.weights is None else rows_ND * batch.weights.unsqueeze(1)


def pool(
    weight_VD: Tensor,
    batch: TokenBatch,
    mode: Reduction,
    *,
    padding_idx: int | None = None,
    sparse: bool = False,
) -> Tensor:
    """The sum, mean or maximum of ``look_up`` over each document, (B, D), zeros for an empty one.

    Tokens of ``padding_idx`` do not count. A mean divides by the tokens of the document, not by the sum of
    their weights. Sums and means do not make (N, D), nor does a maximum without weights.
    """
    weighted = batch.weights is not None
    if weighted or sparse or (batch.ids.is_cpu and not torch.compiler.is_compiling()):
        # On the CPU padding_idx costs embedding_bag its fast kernel (70,000 tokens: 7 ms instead of 0.5),
        # while a look for padding costs 0.02 ms. On a GPU the look would be a wait, in a compiled graph a
        # break.
        batch, padding_idx = batch.without(padding_idx), None
    if mode == "max" and (weighted or sparse):
        # embedding_bag has neither a weighted nor a sparse maximum.
        return batch.reduce(look_up(weight_VD, batch, sparse=sparse), mode)
    pooled_BD = F.embedding_bag(
        batch.ids,
        weight_VD,
        batch.offsets,
        mode="sum" if weighted else mode,
        sparse=sparse,
        per_sample_weights=None if batch.weights is None else batch.weights.to(weight_VD.dtype),
        include_last_offset=True,
        padding_idx=padding_idx,
    )
    if weighted and mode == "mean":
        return pooled_BD / batch.lengths.clamp(min=1).unsqueeze(1)
    return pooled_BD
