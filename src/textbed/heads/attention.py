"""Heads whose weights of the tokens are learnt: weighted mean, attention and label attention.

Shape letters: B documents, N tokens of all of them, D width of a row, H width of the result, Q queries, C
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import TokenBatch, wide
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError
from textbed.heads.base import Head
from textbed.heads.borders import with_borders

# Rows shorter than this count as having no direction. A row of zeros would else get a gradient of 1e12.
SHORT = 1e-3


def softmax(scores_NQ: Tensor, batch: TokenBatch) -> Tensor:
    """Weights (N, Q) that sum to 1 over each document, for each query; in float32 at least."""
    scores, documents = wide(scores_NQ), batch.documents
    exponents = (scores - batch.reduce(scores.detach(), "max").index_select(0, documents)).exp()
    # Not sums[documents], whose gradient threads of the CPU add up in an order that is up to chance.
    return exponents / batch.reduce(exponents, "sum").index_select(0, documents)


def weighted_sums(values_ND: Tensor, weights_NQ: Tensor, batch: TokenBatch) -> Tensor:
    """Sums of the values of each document under each query's weights (B, Q x D), zeros for an empty one.

    Sums are taken in the weights' precision; (N, Q, D) is not made.
    """
    values = values_ND.to(weights_NQ.dtype)
    if weights_NQ.shape[1] == 1:
        tokens = torch.arange(values.shape[0], dtype=batch.offsets.dtype, device=values.device)
        sums_BH = F.embedding_bag(
            tokens,
            values,
            batch.offsets,
            mode="sum",
            per_sample_weights=weights_NQ.squeeze(1),
            include_last_offset=True,
        )
    else:
        # With 30 queries a fifteenth of the time of a bag for each query on long documents, a third on short.
        sums_BH = _products(weights_NQ, values, batch).flatten(1)
    return sums_BH.to(values_ND.dtype)


def _products(weights_NQ: Tensor, values_ND: Tensor, batch: TokenBatch) -> Tensor:
    """For each document its weights, transposed, times its values: (B, Q, D). Waits for the device."""
    lengths = batch.lengths.tolist()
    parts = zip(weights_NQ.split(lengths), values_ND.split(lengths), strict=True)
    with torch.autocast(values_ND.device.type, enabled=False):
        return torch.stack([weights.t() @ values for weights, values in parts])


class WeightedMean(Head):
    """A mean under weights that each row gives itself: sum(w x) / sum(w), w = sigmoid(a·x + b). H = D.

    What distinguishes it from attention: a weight lies between 0 and 1 instead of growing exponentially with
    the score, so a token can be left out, but none can outweigh the others without end, and any number of
    them may count in full. It begins near the plain mean and can learn a list of stop words, whereas
    attention can pick one token out of a thousand.

    Args:
        dim: D, width of the front end's rows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)
        self.out_dim = dim

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, D)."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        # The softmax of log w is w / sum(w), and does not divide nothing by nothing where all w vanish.
        return weighted_sums(rows_ND, softmax(F.logsigmoid(wide(self.score(rows_ND))), batch), batch)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        return sum(lengths) * (2 * self.out_dim + 2)


class Attention(Head):
    """Self-attention with learned queries (Lin et al. 2017, arXiv:1703.03130): softmax over the document of
    q·tanh(W x) for each query q, and the rows' sum under those weights. H = Q x D.

    One query is the word attention of Yang et al. 2016 (doi:10.18653/v1/N16-1174) without its bias.

    Args:
        dim: D, width of the front end's rows.
        hidden: width of the layer between rows and scores; None scores the rows themselves, q·x.
        queries: Q, how many weighted sums lie side by side.
        overlap: what queries that look at the same tokens cost: factor of Lin et al.'s penalty in the loss of
            training, the squared Frobenius norm of A Aᵀ - I, the mean over documents, where A (Q, n) are the
            weights. It also draws each query to a single token.

    Raises:
        UserError: a setting that is out of range.
    """

    width = "hidden"

    def __init__(self, dim: int, hidden: int | None, queries: int = 1, overlap: float = 0.0) -> None:
        super().__init__()
        if hidden is not None and hidden < 1:
            raise UserError(f"head.hidden is {hidden}; expected at least 1, or null for no layer")
        if queries < 1:
            raise UserError(f"head.queries is {queries}; expected at least 1")
        if not 0 <= overlap < math.inf:
            raise UserError(f"head.overlap is {overlap}; expected a number from 0 up")
        layers: list[nn.Module] = []
        if hidden is not None:
            layers = [nn.Linear(dim, hidden, bias=False), nn.Tanh()]
        self.score = nn.Sequential(*layers, nn.Linear(hidden or dim, queries, bias=False))
        self.queries = queries
        self.overlap = overlap
        self.out_dim = queries * dim
        self._penalty: Tensor | None = None

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H), the queries' sums side by side."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        weights_NQ = softmax(self.score(rows_ND), batch)
        if self.overlap and self.training:
            products_BQQ = _products(weights_NQ, weights_NQ, batch)
            apart = torch.eye(self.queries, dtype=products_BQQ.dtype, device=products_BQQ.device)
            norms_B = (products_BQQ - apart).square().sum(dim=(1, 2)) * (batch.lengths > 0)
            self._penalty = self.overlap * norms_B.mean()
        return weighted_sums(rows_ND, weights_NQ, batch)

    def penalty(self) -> Tensor | None:
        penalty, self._penalty = self._penalty, None
        return penalty

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        scores = sum(parameter.numel() for parameter in self.score.parameters())
        return sum(lengths) * (scores + 2 * self.queries + self.out_dim)


class LabelAttention(Head):
    """LEAM (Wang et al. 2018, doi:10.18653/v1/P18-1216): a token counts as much as the words around it are
    like one of the classes. H = D.

    Each class has a learned vector among the words. The cosine of every row with every class, summed over a
    window of tokens under learned weights, plus a bias of the class, through a ReLU, gives a score by class;
    the largest over the classes goes through a softmax over the document, and the rows are summed under that.
    Outside the document the cosines are zero.

    As in the paper, the window's weights are shared by the classes; the released code mixes the classes as
    well. The paper also classifies the class vectors themselves in the loss, and starts them from the words
    of the classes' names; neither is done here.

    Args:
        dim: D, width of the front end's rows.
        num_classes: C.
        window: tokens of the window, an odd number, the token itself in the middle.

    Raises:
        UserError: a window that is even or below 1.
    """

    def __init__(self, dim: int, num_classes: int, window: int) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise UserError(
                f"head.window is {window}; expected an odd number, the token itself in the middle"
            )
        self.labels = nn.Parameter(torch.randn(num_classes, dim) * dim**-0.5)
        # Near the window's mean, so that at the start a score is positive where a class is near at all.
        self.window = nn.Parameter(torch.empty(window).uniform_(0.5, 1.5) / window)
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.out_dim = dim

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, D)."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        cosine_NC = F.linear(*(F.normalize(vectors, dim=1, eps=SHORT) for vectors in (rows_ND, self.labels)))
        reach = len(self.window) // 2
        # At least one row of zeros, since a convolution does not take a batch of nothing.
        bordered_PC, place_N = with_borders(cosine_NC, batch, max(reach, 1))
        window = self.window.to(cosine_NC.dtype).view(1, 1, -1)
        near_CP = F.conv1d(bordered_PC.t().unsqueeze(1), window, padding=reach).squeeze(1)
        scores_NC = (near_CP.t()[place_N] + self.bias).relu()
        return weighted_sums(rows_ND, softmax(scores_NC.amax(dim=1, keepdim=True), batch), batch)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        cosines = self.labels.numel() + self.window.numel() * self.bias.numel()
        return sum(lengths) * (cosines + 2 + self.out_dim)
