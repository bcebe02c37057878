"""What acts on the rows of any front end: words and rows left out, noise, weights of tokens, a pull back.

Shape letters: B documents, N tokens of all of them, V rows of the table, D width of a row, U distinct tokens
of the batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError


def sif_weights(counts: Tensor, a: float = 1e-3) -> Tensor:
    """Smooth inverse frequency, (V,) float32: a / (a + p), p being a token's share of the training tokens.

    Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings", who found 1e-4 to 1e-3
    good for ``a``. A token that the training text lacks has the weight 1.

    Args:
        counts: (V,) how often each token occurs in the training text.
        a: the share of tokens at which a weight is one half.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    return (a / (a + share)).float()


def idf_weights(document_counts: Tensor, documents: int) -> Tensor:
    """Inverse document frequency, (V,) float32: ln((1 + n) / (1 + d)) + 1, for a token in d of n documents.

    Smoothed as if one more document held every token, so that a token of all documents weighs 1, and one of
    none, the largest, ln(1 + n) + 1. A mean of rows grows with them: by about 5 for news.

    Args:
        document_counts: (V,) training documents in which each token occurs.
        documents: n.
    """
    return (torch.log((1 + documents) / (1 + document_counts.double())) + 1).float()


class Effects(FrontEnd):
    """Another front end, and what is to act on its tokens and rows. What is off costs nothing.

    The order: in ``prepare``, once for each batch, words are dropped, then rows, then tokens get their
    weights, and the front end inside sees the result; noise comes with the rows. All but the weights act in
    training alone. Random numbers are those of torch's global generator.

    Args:
        inner: the front end.
        num_embeddings: V, the number of tokens.
        word_dropout: share of tokens that is left out of the documents, as if they had not been written:
            Iyyer et al. 2015, doi:10.3115/v1/P15-1162. A document that would lose all keeps one of its
            tokens, any with the same chance; so a document of length l keeps l (1 - p) + p^l on average.
        row_dropout: share of the distinct tokens of a batch whose rows are zeros wherever they stand in it,
            while the others are multiplied by 1 / (1 - p): Merity et al. 2018, arXiv:1708.02182. A mean still
            counts the tokens of dropped rows.
        noise: standard deviation of Gaussian noise on each number of a token's row, in the rows' own unit;
            drawn for each token of each document. It is on the row before its weight: a token that weighs
            little brings little of it, and a dropped row none. Sums and means draw once for a document what
            the noise of its tokens adds up to, so (N, D) is not made; several modes of pooling side by side
            draw for themselves. Not for n-grams: a mean of these divides by more than the tokens, and a
            maximum is not that of the tokens' rows; the check of a configuration refuses both together.
        weights: (V,), a factor on the row of each token; a mean still divides by the number of tokens, not by
            the sum of their weights. A maximum of weighted rows makes (N, D).
        learn_weights: train weights, as model2vec does, which begin as ``weights``, above 0, or else as 1.
            They are kept as their logarithms: one number a token, in the same parameter group as the table,
            whose weight decay draws them to 1. Noise does not teach them.
        pull: strength of an L2 pull of rows back to where they began (L2-SP, Li et al. 2018,
            arXiv:1802.01483); see ``penalty``. A row is what ``forward`` gives a token that stands alone:
            over n-grams the mean of its own row and its character n-grams'.
        pulled: (V,) bool, which rows it acts on; None means all.

    Raises:
        UserError: a share or strength out of range.
    """

    token_weights: Tensor | None
    initial: Tensor
    pulled: Tensor

    def __init__(
        self,
        inner: FrontEnd,
        num_embeddings: int,
        *,
        word_dropout: float = 0.0,
        row_dropout: float = 0.0,
        noise: float = 0.0,
        weights: Tensor | None = None,
        learn_weights: bool = False,
        pull: float = 0.0,
        pulled: Tensor | None = None,
    ) -> None:
        super().__init__()
        for key, share in (("word_dropout", word_dropout), ("row_dropout", row_dropout)):
            if not 0 <= share < 1:
                raise UserError(f"embedding.{key} is {share}; expected a share from 0 to below 1")
        for key, strength in (("noise", noise), ("pull", pull)):
            if not 0 <= strength < float("inf"):
                raise UserError(f"embedding.{key} is {strength}; expected a number from 0 up")
        self.inner, self.num_embeddings = inner, num_embeddings
        self.dim, self.padding_idx = inner.dim, inner.padding_idx
        self.word_dropout, self.row_dropout, self.noise, self.pull = word_dropout, row_dropout, noise, pull
        # Fixed weights are in the checkpoint: they come from training text, which evaluation may not have.
        self.register_buffer("token_weights", None if learn_weights else weights)
        begin = torch.ones(num_embeddings) if weights is None else weights
        self.log_weights = nn.Parameter(begin.log()) if learn_weights else None
        if pull:
            # So are the rows to pull to, which add a third to a checkpoint with Adam's state: a run that goes
            # on is pulled to the same rows, whatever has become of the file they came from.
            with torch.no_grad():
                self.register_buffer("initial", inner(each_alone(torch.arange(num_embeddings))).clone())
            everything = torch.ones(num_embeddings, dtype=torch.bool)
            self.register_buffer("pulled", everything if pulled is None else pulled.clone())

    @property
    def fixed(self) -> bool:
        """Whether the front end inside is, and nothing acts on it but weights that stay as they are."""
        acts = (
            self.word_dropout or self.row_dropout or self.noise or self.pull or self.log_weights is not None
        )
        return self.inner.fixed and not acts

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        """The batch with words left out and tokens weighted, as the front end inside is to see it."""
        if self.training and self.word_dropout:
            batch = self._drop_words(batch.without(self.padding_idx))
        factors_N = [] if batch.weights is None else [batch.weights]
        if self.training and self.row_dropout:
            factors_N.append(self._row_factors(batch.ids))
        if self.log_weights is not None:
            # Not log_weights[ids], whose gradient threads of the CPU add up in an order that is up to chance.
            factors_N.append(self.log_weights.index_select(0, batch.ids).exp())
        elif self.token_weights is not None:
            factors_N.append(self.token_weights[batch.ids])
        if factors_N:
            batch = dataclasses.replace(batch, weights=math.prod(factors_N[1:], start=factors_N[0]))
        return self.inner.prepare(batch)

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight where the batch has weights."""
        rows_ND = self.inner(batch)
        if not (self.training and self.noise):
            return rows_ND
        noise_ND = torch.randn_like(rows_ND)
        if batch.weights is not None:
            noise_ND *= batch.weights.detach().unsqueeze(1)
        return rows_ND + self.noise * noise_ND

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, D)."""
        if not (self.training and self.noise):
            return self.inner.pool(batch, mode)
        if mode == "max":
            return super().pool(batch, mode)
        batch = batch.without(self.padding_idx)
        pooled_BD = self.inner.pool(batch, mode)
        # A sum of w * noise over tokens is Gaussian, with the sum of w^2 for its variance.
        variance_B1 = batch.lengths.to(pooled_BD.dtype).unsqueeze(1)
        if batch.weights is not None:
            variance_B1 = batch.reduce(batch.weights.detach().square().unsqueeze(1), "sum")
        spread_B1 = self.noise * variance_B1.sqrt()
        if mode == "mean":
            spread_B1 = spread_B1 / batch.lengths.clamp(min=1).unsqueeze(1)
        return pooled_BD + spread_B1.to(pooled_BD.dtype) * torch.randn_like(pooled_BD)

    def penalty(self, batch: TokenBatch) -> Tensor | None:
        """``pull`` / 2 times the sum of |w - w0|^2 over the distinct rows w of the batch that are pulled.

        w0 is what a row began as; dropped words are of the batch all the same. The gradient of a row is
        ``pull`` * (w - w0) in every step that has the row in its batch, and nothing in the others: weight
        decay of that strength, but towards w0 instead of zero, and of touched rows alone. Like weight decay
        it does not depend on the number of documents of the batch.

        Lightning averages the loss over accumulated batches and over processes: with k of them in a step, a
        row that is in one of these alone is pulled 1/k as hard, one that is in all of them in full.
        """
        if not self.pull:
            return None
        present_V = torch.zeros_like(self.pulled)
        present_V[batch.ids] = True
        ids_U = (present_V & self.pulled).nonzero().squeeze(1)
        moved_UD = self.inner(each_alone(ids_U)) - self.initial[ids_U]
        return self.pull / 2 * moved_UD.float().square().sum()

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        """Those of the front end inside: what acts on its rows is done to one value at a time."""
        return self.inner.multiply_adds(lengths, counts, pools)

    def extra_repr(self) -> str:
        settings = ("word_dropout", "row_dropout", "noise", "pull")
        active = [f"{name}={getattr(self, name)}" for name in settings if getattr(self, name)]
        if self.log_weights is not None or self.token_weights is not None:
            active.append(f"token_weights={'learned' if self.log_weights is not None else 'fixed'}")
        return ", ".join(active)

    def _drop_words(self, batch: TokenBatch) -> TokenBatch:
        draw_N = torch.rand(batch.ids.shape[0], device=batch.ids.device)
        # The last token that a document would lose as p grows is that of its largest number, and stays.
        documents_B = torch.arange(len(batch), device=draw_N.device)
        document_N = torch.repeat_interleave(documents_B, batch.lengths, output_size=len(draw_N))
        largest_B = draw_N.new_zeros(len(batch)).scatter_reduce(0, document_N, draw_N, "amax")
        return batch.where((draw_N >= self.word_dropout) | (draw_N == largest_B[document_N]))

    def _row_factors(self, ids_N: Tensor) -> Tensor:
        # For all rows, those of the batch or not: 1 ms for 30,000, where finding the distinct ones of 70,000
        # tokens takes 10.
        kept_V = torch.rand(self.num_embeddings, device=ids_N.device) >= self.row_dropout
        return (kept_V.to(torch.get_default_dtype()) / (1 - self.row_dropout))[ids_N]


def each_alone(ids_U: Tensor) -> TokenBatch:
    """A document of its own for each token: nothing in it depends on its neighbours."""
    return TokenBatch(
        ids_U.to(torch.int32), torch.arange(len(ids_U) + 1, dtype=torch.int32, device=ids_U.device)
    )
