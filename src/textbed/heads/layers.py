"""Fully connected layers above a head: the deep part of a deep averaging network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from textbed.batch import TokenBatch
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
        features_BH = self.layers(self.head(batch, embedding))
        # A count, where TokenBatch.without would have the host wait for a GPU.
        if embedding.padding_idx is None:
            tokens_B1 = batch.lengths.unsqueeze(1)
        else:
            tokens_B1 = batch.reduce((batch.ids != embedding.padding_idx).unsqueeze(1).float(), "sum")
        return features_BH * (tokens_B1 > 0)

    def penalty(self) -> Tensor | None:
        return self.head.penalty()

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        layers = sum(layer.weight.numel() for layer in self.layers if isinstance(layer, nn.Linear))
        return self.head.multiply_adds(lengths) + len(lengths) * layers
