"""Recurrent heads: LSTM and GRU, one- or two-way, stacked, over packed tokens.

Shape letters: B documents, N tokens of all of them, L tokens of the longest, D width of a row, H width of the
result.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from textbed.batch import TokenBatch
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError, nearest
from textbed.heads.base import Head
from textbed.heads.scan import scan

Cell = Literal["lstm", "gru"]
Readout = Literal["last", "mean", "max"]


class Recurrent(Head):
    """An LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) read once over each document.

    Flat tokens are put into packed order, so neither (B, L, D) nor a padded step is ever made: time and
    memory go with N. L steps follow one another, which is what a long document costs.

    Args:
        dim: D, width of the front end's rows.
        cell: lstm or gru.
        hidden: width of the hidden state of one direction.
        layers: how many are stacked.
        bidirectional: whether a second one reads each document backwards; doubles H.
        dropout: share of values dropped between layers, in training; nothing where there is one layer.
        readout: last (the state after the last token, for the backward direction after the first), mean or
            max over the states at all tokens.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    width = "hidden"

    def __init__(
        self,
        dim: int,
        cell: Cell,
        hidden: int,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        readout: Readout = "last",
    ) -> None:
        super().__init__()
        for key, value, choices in (("cell", cell, get_args(Cell)), ("readout", readout, get_args(Readout))):
            if value not in choices:
                raise UserError(
                    f"head.{key} is '{value}'; expected one of {', '.join(choices)}.{nearest(value, choices)}"
                )
        for key, number in (("hidden", hidden), ("layers", layers)):
            if number < 1:
                raise UserError(f"head.{key} is {number}; expected at least 1")
        if not 0 <= dropout < 1:
            raise UserError(f"head.dropout is {dropout}; expected a share from 0 up to, but not including, 1")
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        self.rnn = kind(
            dim, hidden, layers, bidirectional=bidirectional, dropout=dropout if layers > 1 else 0.0
        )
        self.cell, self.hidden, self.readout = cell, hidden, readout
        self.directions = 2 if bidirectional else 1
        self.out_dim = hidden * self.directions

    @torch.compiler.disable  # packing needs sizes on the CPU, and thousands of steps would be unrolled
    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H): the readout of each document's states."""
        batch = batch.without(embedding.padding_idx)
        if not batch.ids.shape[0]:
            # Nothing to read. The zeros still hang on every parameter, since DDP wants a gradient for each at
            # each step.
            touched = sum(
                (parameter.sum() * 0 for parameter in self.parameters()), start=embedding(batch).sum()
            )
            return touched.expand(len(batch), self.out_dim)

        slots_N, batch_sizes, documents = pack(batch)
        packed_N = torch.empty_like(slots_N)  # the token in each slot
        packed_N[slots_N] = torch.arange(len(slots_N), device=slots_N.device)
        states_NH = self._states(embedding(batch)[packed_N], batch_sizes)
        if self.readout != "last":
            return batch.reduce(states_NH[slots_N], self.readout)
        last = states_NH[slots_N[batch.offsets[1:][documents] - 1]]
        if self.directions == 2:
            # Documents lie in this order at the first step, where the backward direction ends.
            forward, backward = last[:, : self.hidden], states_NH[: len(documents), self.hidden :]
            last = torch.cat([forward, backward], dim=1)
        return last.new_zeros(len(batch), self.out_dim).index_copy(0, documents, last)

    def _states(self, values_ND: Tensor, batch_sizes: Tensor) -> Tensor:
        """The last layer's states (N, H) at each token, in packed order as the values."""
        rnn = self.rnn
        if values_ND.is_cuda or not torch.is_grad_enabled():
            return rnn(PackedSequence(values_ND, batch_sizes))[0].data
        return _scan_layers(rnn, self.cell, values_ND, batch_sizes.tolist())


def _scan_layers(rnn: nn.LSTM | nn.GRU, cell: Cell, values_ND: Tensor, sizes: list[int]) -> Tensor:
    """What ``rnn`` returns for packed values, with the backward pass of ``scan``."""
    states = values_ND
    for layer in range(rnn.num_layers):
        if layer:
            states = F.dropout(states, rnn.dropout, rnn.training)
        directions = []
        for suffix in ("", "_reverse") if rnn.bidirectional else ("",):
            weight_in, weight, bias_in, bias = (
                getattr(rnn, f"{name}_l{layer}{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            inputs = F.linear(states, weight_in, bias_in)
            directions.append(scan(cell, inputs, weight, bias, sizes, reverse=bool(suffix)))
        states = torch.cat(directions, dim=1) if len(directions) > 1 else directions[0]
    return states


def pack(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The time-major order in which a PackedSequence lays tokens: first all first tokens, longest document
    first.

    Returns slots (N,) int64, where each token goes; batch sizes (L,) int64 on the CPU, how many documents
    have a token at each step; and the numbers (documents that are not empty,) int64 of the documents in
    packed order. Takes O(N), and waits for the device, since PyTorch wants the batch sizes on the CPU.
    """
    lengths = batch.lengths.long()
    order = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(batch), device=order.device)
    # Documents with a token at step t are those longer than t: count lengths, then sum from the longest down.
    batch_sizes = torch.bincount(lengths).flip(0).cumsum(0).flip(0)[1:]
    step_starts = batch_sizes.cumsum(0) - batch_sizes
    size = batch.ids.shape[0]
    step = torch.arange(size, device=lengths.device) - torch.repeat_interleave(
        batch.offsets[:-1], lengths, output_size=size
    )
    slots = step_starts[step] + torch.repeat_interleave(rank, lengths, output_size=size)
    batch_sizes = batch_sizes.cpu()
    return slots, batch_sizes, order[: int(batch_sizes[0])]
