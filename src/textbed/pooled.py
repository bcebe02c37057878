"""Documents pooled once: what head and front end make of a document, kept where it always comes out the same.

Shape letters: B documents in the batch, F width of the head's fixed part, n documents of a split, T texts of
each: 1, or 2 for pairs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from textbed.data.loading import TokenDataset
from textbed.embedding.table import FrontEnd
from textbed.heads.base import Head

BLOCK = 256
"""Documents that are pooled at once."""


def can_be_reused(embedding: FrontEnd, head: Head) -> bool:
    """Whether there is a part that makes the same of a document in every epoch and every batch."""
    learns = any(parameter.requires_grad for parameter in embedding.parameters())
    return embedding.fixed and not learns and head.fixed_dim is not None


def mebibytes(datasets: Iterable[TokenDataset], width: int) -> float:
    """Memory that the pooled documents of ``datasets`` take in float32, F being ``width``."""
    return sum(len(dataset) * len(dataset.columns) for dataset in datasets) * width * 4 / 2**20


class PooledDocuments:
    """What a front end and the fixed part of a head make of each document of a split: worked out once, found
    again by row.

    Args:
        dataset: the documents, with their tokens.
        embedding, head: whose parameters are on ``device``.
        device: where the documents are kept, T x n x F numbers.
    """

    def __init__(
        self, dataset: TokenDataset, embedding: FrontEnd, head: Head, device: torch.device | str
    ) -> None:
        places = np.zeros(int(dataset.rows.max(initial=-1)) + 1, np.int64)
        places[dataset.rows] = np.arange(len(dataset))
        self._place_of_row = torch.from_numpy(places).to(device)
        self._pooled_TnF = torch.empty(0)
        for begin in range(0, len(dataset), BLOCK):
            positions = np.arange(begin, min(begin + BLOCK, len(dataset)))
            batch = dataset.__getitems__(positions).to(device)
            with torch.no_grad():
                pooled = head.fixed_part(embedding.prepare(batch), embedding)  # (T * BLOCK, F)
            texts = len(dataset.columns)
            if begin == 0:
                self._pooled_TnF = pooled.new_empty(texts, len(dataset), pooled.shape[1])
            self._pooled_TnF[:, begin : begin + BLOCK] = pooled.view(texts, len(positions), -1)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(T * B, F) for B rows of the split: for pairs all first texts, then all second texts."""
        return self._pooled_TnF.index_select(1, self._place_of_row[rows]).flatten(0, 1)
