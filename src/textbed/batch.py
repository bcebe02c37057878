"""TokenBatch, the one data structure: the documents of a batch laid end to end, without padding.

Shape letters: B documents in the batch, N tokens of all of them together, L tokens of the longest, D values
of a token, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "mean", "max"]


def wide(values: Tensor) -> Tensor:
    """The values as float32, or as float64 where they are that: what sums over many tokens are taken in."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(eq=False)
class TokenBatch:
    """B documents as one flat run of N token ids and the place where each document starts.

    A document may be empty; every head gives it zeros. A batch of P pairs holds B = 2P documents, all first
    texts and then all second texts, while ``labels`` and ``rows`` have P entries.

    Moves as one thing: Lightning calls ``to``, a pinning ``DataLoader`` calls ``pin_memory``. Nothing in here
    changes a batch; it is not frozen because Lightning sets the fields of a copy, in precisions such as
    bf16-true and under FSDP.
    """

    ids: Tensor
    """(N,) int32: the token ids of all documents, end to end."""
    offsets: Tensor
    """(B + 1,) int32: document b is ``ids[offsets[b]:offsets[b + 1]]``; the last entry is N."""
    labels: Tensor | None = None
    """(B,) int64 class numbers, or (B, C) float32 zeros and ones for multi-label; None at prediction."""
    rows: Tensor | None = None
    """(B,) int64: the row of each document in its split, by which predictions are put back in order."""
    weights: Tensor | None = None
    """(N,) float: a factor on the row of each token; None is 1 for all. Front ends set it, no loader does."""
    pooled: Tensor | None = None
    """(B, F): what the head made of each document before, as far as that is always the same; the documents
    then come without tokens. From a loader (B, 0): the model fills it in."""

    def __len__(self) -> int:
        """B, the number of documents."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each document, of the offsets' type."""
        return self.offsets.diff()

    @property
    def documents(self) -> Tensor:
        """(N,) int64: the number of the document that each token belongs to."""
        numbers = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(numbers, self.lengths, output_size=self.ids.shape[0])

    def padded(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """Lay the documents out as rows, filled up at the right with ``pad_id``.

        Returns ids (B, L) and a bool mask (B, L), true at the documents' own tokens. L is 0 where all are
        empty. Waits for the device, since L must be known.
        """
        lengths = self.lengths
        longest = int(lengths.max()) if len(self) else 0
        mask_BL = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
        ids_BL = torch.full(mask_BL.shape, pad_id, dtype=self.ids.dtype, device=self.ids.device)
        return ids_BL.masked_scatter_(mask_BL, self.ids), mask_BL

    def without(self, token_id: int | None) -> TokenBatch:
        """The same documents without any ``token_id``; the batch itself where it has none, or for None.

        Called with the table's padding id, so that padding which came along inside a document stays unseen.
        O(N), and waits for the device.
        """
        if token_id is None:
            return self
        keep = self.ids != token_id
        return self if bool(keep.all()) else self.where(keep)

    def where(self, keep_N: Tensor) -> TokenBatch:
        """The same documents with the tokens alone at which ``keep_N`` (N,) bool is true. O(N)."""
        before = torch.zeros(keep_N.shape[0] + 1, dtype=self.offsets.dtype, device=keep_N.device)
        torch.cumsum(keep_N, 0, dtype=before.dtype, out=before[1:])
        return dataclasses.replace(
            self,
            ids=self.ids[keep_N],
            offsets=before[self.offsets],
            weights=None if self.weights is None else self.weights[keep_N],
        )

    def reduce(self, values_ND: Tensor, mode: Reduction) -> Tensor:
        """Reduce a value per token (N, D) to one per document (B, D), zeros for an empty document.

        ``mode`` is sum, mean or max. Sums are taken in float32 at least, since a review of 2,500 tokens
        summed in bfloat16 keeps two digits.
        """
        if mode == "max":
            # An embedding bag over the values themselves: half the time of segment_reduce and scatter_reduce.
            tokens = torch.arange(values_ND.shape[0], dtype=self.offsets.dtype, device=values_ND.device)
            return F.embedding_bag(tokens, values_ND, self.offsets, mode="max", include_last_offset=True)
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode is '{mode}'; expected sum, mean or max")
        values = wide(values_ND)
        total_BD = values.new_zeros(len(self), values.shape[1]).index_add(0, self.documents, values)
        if mode == "mean":
            total_BD = total_BD / self.lengths.clamp(min=1).unsqueeze(1)
        return total_BD.to(values_ND.dtype)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenBatch:
        """The batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenBatch:
        """The batch in page-locked memory, from which copies to a GPU need not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        return TokenBatch(
            function(self.ids),
            function(self.offsets),
            None if self.labels is None else function(self.labels),
            None if self.rows is None else function(self.rows),
            None if self.weights is None else function(self.weights),
            None if self.pooled is None else function(self.pooled),
        )
