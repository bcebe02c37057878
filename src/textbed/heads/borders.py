"""Documents with zeros between them, for windows that reach over a border without meeting a neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from textbed.batch import TokenBatch


def with_borders(values_ND: Tensor, batch: TokenBatch, border: int) -> tuple[Tensor, Tensor]:
    """The values of the tokens with ``border`` rows of zeros before, between and after the documents.

    Two neighbours share the zeros between them: a window of ``border + 1`` rows, moved from the top to the
    bottom one row at a time, passes over each document and its own borders, and then the next's. That are
    tokens + ``border`` windows a document, and none that is wasted.

    Returns:
        The values (P, D), P = N + (B + 1) x ``border``, and the place of each token in them, (N,) int64.
    """
    tokens = values_ND.shape[0]
    places_N = torch.arange(tokens, device=values_ND.device) + (batch.documents + 1) * border
    size = tokens + (len(batch) + 1) * border
    return values_ND.new_zeros(size, values_ND.shape[1]).index_copy(0, places_N, values_ND), places_N
