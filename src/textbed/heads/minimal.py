"""Minimal recurrent heads, whose gates do not see the state: minGRU and minLSTM.

Shape letters: N tokens, M rows that they are looked up in, D width of a row, K directions, H width of the
state of one direction.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import TokenBatch, wide
from textbed.heads.linear_scan import Pieces, linear_scan
from textbed.heads.reading import Reader, check_choice

Cell = Literal["mingru", "minlstm"]
Candidate = Literal["positive", "linear"]


class MinRecurrent(Reader):
    """A minGRU or minLSTM (Feng et al. 2024, arXiv:2410.01201).

    Its gates and candidate states depend on the token alone. Then the state is h = (1 - z) h' + z c for
    minGRU, and h = f h' + i c with f + i = 1 for minLSTM: a recurrence that needs no step after another, and
    is computed by a parallel scan in about 3 sqrt(L) of them for documents of up to L tokens. The first state
    is zeros.

    One layer can weigh tokens by what they are and how near the end they stand, but nothing it does to a
    token depends on another; a second layer sees the first one's states.

    Args:
        dim: D, width of the front end's rows.
        cell: mingru or minlstm.
        hidden: H, width of the state of one direction.
        candidate: how the candidate state c comes from its linear map: positive, x + 1/2 above 0 and
            sigmoid(x) below (the paper's form in logarithms, in which its experiments ran), or linear, as it
            is (the form it is introduced in).
        settings: see ``Reader``.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    def __init__(
        self, dim: int, cell: Cell, hidden: int, *, candidate: Candidate = "positive", **settings: Any
    ) -> None:
        check_choice("cell", cell, get_args(Cell))
        check_choice("candidate", candidate, get_args(Candidate))
        self.cell, self.candidate = cell, candidate
        super().__init__(dim, hidden, **settings)

    def make_layer(self, dim: int) -> nn.Linear:
        return nn.Linear(dim, self.layer_multiply_adds(1))

    def order(self, batch: TokenBatch) -> Pieces:
        return Pieces.of(batch)

    def read(self, layer: nn.Linear, values_MD: Tensor, places_N: Tensor, order: Pieces) -> Tensor:
        gates_MKGH = layer(values_MD).unflatten(1, (self.directions, -1, self.hidden))
        # In float32 at least: a share of 1/300 that a state keeps or loses is none in bfloat16.
        keep_MKH, add_MKH = self.coefficients(wide(gates_MKGH))
        states = [
            linear_scan(
                keep_MKH[:, k].index_select(0, places_N),
                add_MKH[:, k].index_select(0, places_N),
                order,
                backwards=bool(k),
                cut=self.truncate,
            )
            for k in range(self.directions)
        ]
        return torch.cat(states, dim=1).to(layer.weight.dtype)

    def coefficients(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """What a token keeps of the state before it and what it adds (..., H), from its map (..., G, H)."""
        *inputs, candidate = gates.unbind(-2)
        if self.candidate == "positive":
            candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        if self.cell == "mingru":
            (update,) = inputs
        else:
            # i / (f + i) of two sigmoids, without a quotient of numbers that may both vanish.
            forget, enter = inputs
            update = F.logsigmoid(enter) - F.logsigmoid(forget)
        return torch.sigmoid(-update), torch.sigmoid(update) * candidate

    def layer_multiply_adds(self, dim: int) -> int:
        return self.directions * (2 if self.cell == "mingru" else 3) * self.hidden * dim
