"""Fully connected layers above a head: the deep part of a deep averaging network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError, nearest
from textbed.heads.base import Head

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class Layered(Head):
    """A head and fully connected layers above it: with a mean below, the deep averaging network of Iyyer et
    al. 2015 (doi:10.3115/v1/P15-1162). H is the last layer's width.

    A document without tokens gets zeros, as from every head, and not what the layers make of zeros: whatever
    stands above cannot tell apart which head it was.

    Args:
        head: what reads the document.
        widths: of the layers, from the bottom up.
        activation: after each layer, the last one too: relu, tanh or gelu.
        dropout: share of each layer's values dropped in training.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    def __init__(
        self, head: Head, widths: Sequence[int], activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not widths or any(width < 1 for width in widths):
            raise UserError(f"head.dense is {list(widths)}; expected one width or more, each at least 1")
        if activation not in ACTIVATIONS:
            raise UserError(
                f"head.dense_activation is '{activation}'; expected one of {', '.join(ACTIVATIONS)}."
                f"{nearest(activation, ACTIVATIONS)}"
            )
        if not 0 <= dropout < 1:
            raise UserError(
                f"head.dense_dropout is {dropout}; expected a share from 0 up to, but not including, 1"
            )
        self.head = head
        modules: list[nn.Module] = []
        for below, width in zip([head.out_dim, *widths], widths, strict=False):
            modules += [nn.Linear(below, width), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*modules)
        self.out_dim = widths[-1]

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H)."""
        return self._above(self.head(batch, embedding), _have_tokens(batch, embedding))

    def _above(self, features: Tensor, have_tokens_B1: Tensor) -> Tensor:
        return self.layers(features) * have_tokens_B1

    @property
    def fixed_dim(self) -> int | None:
        below = self.head.fixed_dim
        return None if below is None else below + 1

    def fixed_part(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, F): that of the head below, and a column that tells which documents have tokens."""
        part = self.head.fixed_part(batch, embedding)
        return torch.cat([part, _have_tokens(batch, embedding).to(part.dtype)], dim=1)

    def rest(self, part_BF: Tensor) -> Tensor:
        # Laid out anew: a product of matrices may round otherwise over rows with a gap between them.
        return self._above(self.head.rest(part_BF[:, :-1].contiguous()), part_BF[:, -1:] > 0)

    def penalty(self) -> Tensor | None:
        return self.head.penalty()

    @property
    def pools(self) -> Sequence[Reduction] | None:
        return self.head.pools

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        layers = sum(layer.weight.numel() for layer in self.layers if isinstance(layer, nn.Linear))
        return self.head.multiply_adds(lengths) + len(lengths) * layers


def _have_tokens(batch: TokenBatch, embedding: FrontEnd) -> Tensor:
    """(B, 1) bool, by a count, where TokenBatch.without would have the host wait for a GPU."""
    if embedding.padding_idx is None:
        return batch.lengths.unsqueeze(1) > 0
    return batch.reduce((batch.ids != embedding.padding_idx).unsqueeze(1).float(), "sum") > 0
