"""A small table that many words share by hashing: Bloom embeddings and hash embeddings.

Shape letters: B documents, N tokens of all of them, V words, K hash functions, D width of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import FrontEnd, Initialisation, Table, sums_among
from textbed.errors import UserError

MOST_HASHES = 8


class Hashed(FrontEnd):
    """K rows of a table of ``buckets`` for each word, summed: words differ that share some of their rows.

    Without ``importance`` these are Bloom embeddings (Serrà & Karatzoglou 2017, arXiv:1706.03993), the plain
    sum. With it they are hash embeddings (Svenstrup et al. 2017, arXiv:1709.03933): each word has K learned
    numbers of its own by which its rows are multiplied, so that it can turn away from a row that others took.
    They start at 1 here, where both kinds are the same.

    Which rows a word has follows from its text alone, in any vocabulary and on any machine. All unknown words
    are one word here.

    Args:
        num_embeddings: V, the number of words.
        dim: width of the table's rows; D is that, and K more with ``append_importance``.
        tokens: (V,) the words.
        buckets: rows of the table.
        hashes: K, at most 8.
        importance: whether each word weighs its rows.
        append_importance: whether those K numbers also follow the row.
        trainable: whether training moves anything here.
        init, scale: how the table starts, see :class:`Table`.
        padding_idx: the word that is zeros, is never trained, and is not counted.
        sparse: give sparse gradients.

    Raises:
        UserError: a setting that cannot be.
    """

    rows: Tensor
    """(V, K) int32: the rows of each word."""

    def __init__(
        self,
        num_embeddings: int,
        dim: int | None = None,
        *,
        tokens: Sequence[str],
        buckets: int = 10_000,
        hashes: int = 2,
        importance: bool = True,
        append_importance: bool = False,
        trainable: bool = True,
        init: Initialisation = "normal",
        scale: float | None = None,
        padding_idx: int | None = None,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if len(tokens) != num_embeddings:
            raise ValueError(f"{len(tokens)} tokens for {num_embeddings} rows")
        if not 1 <= hashes <= MOST_HASHES:
            raise UserError(f"embedding.hashes is {hashes}; expected 1 to {MOST_HASHES}")
        if not 1 <= buckets < 2**31:
            raise UserError(f"embedding.buckets is {buckets}; expected 1 to {2**31 - 1}")
        if append_importance and not importance:
            raise UserError(
                "embedding.append_importance is true and embedding.importance false; there is nothing to "
                "append, so set embedding.importance to true as well"
            )
        self.table = Table(buckets, dim, trainable=trainable, init=init, scale=scale, sparse=sparse)
        # The table first: it gets the random numbers that it gets without importance.
        self.importance = (
            Table(
                num_embeddings,
                vectors=torch.ones(num_embeddings, hashes),
                trainable=trainable,
                padding_idx=padding_idx,
                sparse=sparse,
            )
            if importance
            else None
        )
        self.dim = self.table.dim + (hashes if append_importance else 0)
        self.padding_idx = padding_idx
        self.append_importance = append_importance
        # Not in checkpoints: it follows from the tokens, which are kept beside them.
        self.register_buffer("rows", torch.from_numpy(hashed_rows(tokens, hashes, buckets)), persistent=False)

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight where the batch has weights."""
        shared = self._shared(batch.without(self.padding_idx))
        # Each token is a bag of its rows, padding an empty one.
        counts_N = torch.full_like(batch.ids, self.rows.shape[1])
        if self.padding_idx is not None:
            counts_N = counts_N * (batch.ids != self.padding_idx)
        shared.offsets = F.pad(counts_N.cumsum(0, dtype=counts_N.dtype), (1, 0))
        rows_ND = self.table.pool(shared, "sum")
        if not self.append_importance:
            return rows_ND
        assert self.importance is not None
        return torch.cat([rows_ND, self.importance(batch)], dim=1)

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, D); sums and means do not make (N, D)."""
        if mode == "max":
            return super().pool(batch, mode)
        batch = batch.without(self.padding_idx)
        pooled_BD = self.table.pool(self._shared(batch), "sum")
        if mode == "mean":
            pooled_BD = pooled_BD / batch.lengths.clamp(min=1).unsqueeze(1)
        if not self.append_importance:
            return pooled_BD
        assert self.importance is not None
        return torch.cat([pooled_BD, self.importance.pool(batch, mode)], dim=1)

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        """As of :class:`FrontEnd`: each token is a sum of K rows, which is one with that of the document."""
        hashes, sums = self.rows.shape[1], sums_among(pools)
        others = 1 if pools is None else len(pools) - sums
        return (others * hashes + sums * (hashes - 1)) * sum(lengths) * self.table.dim

    def _shared(self, batch: TokenBatch) -> TokenBatch:
        """The documents as rows of the table, K for each token, and what these are multiplied by."""
        hashes = self.rows.shape[1]
        weights = None
        if self.importance is not None:
            weights = self.importance(batch).flatten()  # times the tokens' weights
        elif batch.weights is not None:
            weights = batch.weights.repeat_interleave(hashes)
        return TokenBatch(self.rows[batch.ids].flatten(), batch.offsets * hashes, weights=weights)

    def extra_repr(self) -> str:
        return f"hashes={self.rows.shape[1]}, append_importance={self.append_importance}"


def hashed_rows(tokens: Sequence[str], hashes: int, buckets: int) -> np.ndarray:
    """The rows of each token's text, (V, K) int32: each 64 bits of its BLAKE2b digest, modulo ``buckets``.

    100,000 tokens take 0.1 s.
    """
    digests = b"".join(hashlib.blake2b(token.encode()).digest() for token in tokens)
    numbers = np.frombuffer(digests, "<u8").reshape(len(tokens), MOST_HASHES)
    return (numbers[:, :hashes] % np.uint64(buckets)).astype(np.int32)
