"""Pooling heads: the mean, maximum or sum of a document's rows, with no parameters of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import torch
from torch import Tensor

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError, nearest
from textbed.heads.base import Head


class Pooling(Head):
    """One or more reductions of the rows (B, D), side by side: H = D x modes.

    The mean is the deep averaging network of Iyyer et al. 2015 without its layers, and fastText's document
    vector (Joulin et al. 2017); several side by side are SWEM-concat (Shen et al. 2018).

    Args:
        dim: D, width of the front end's rows.
        modes: one or more of mean, max and sum.

    Raises:
        UserError: no mode, or one that does not exist.
    """

    def __init__(self, dim: int, modes: Sequence[str]) -> None:
        super().__init__()
        choices = get_args(Reduction)
        if not modes or isinstance(modes, str):
            raise UserError(
                f"head.modes is {modes!r}; expected a list of one or more of {', '.join(choices)}"
            )
        for mode in modes:
            if mode not in choices:
                raise UserError(
                    f"head.modes has '{mode}'; expected {', '.join(choices)}.{nearest(mode, choices)}"
                )
        self.modes = [cast(Reduction, mode) for mode in modes]
        self.out_dim = dim * len(self.modes)

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H): what each mode makes of each document, in the order of ``modes``."""
        return torch.cat([embedding.pool(batch, mode) for mode in self.modes], dim=1)

    def extra_repr(self) -> str:
        return f"modes={self.modes}"
