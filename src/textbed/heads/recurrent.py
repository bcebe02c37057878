"""Recurrent heads: LSTM, GRU and plain networks, one- or two-way, stacked, over packed tokens.

Shape letters: B documents, N tokens of all of them, L tokens of the longest, M rows that they are looked up
in, D width of a row, K directions, H width of the state of one direction.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed import kernels
from textbed.batch import TokenBatch
from textbed.heads.reading import Reader, check_choice, check_share
from textbed.heads.scan import scan

Cell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]

LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


class Recurrent(Reader):
    """An LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014) or plain network (Elman 1990).

    Time and memory go with N. L steps follow one another, which is what a long document costs.

    Args:
        dim: D, width of the front end's rows.
        cell: lstm, gru, rnn_tanh or rnn_relu.
        hidden: H, width of the state of one direction.
        weight_drop: share of the weights from state to state that is dropped in training, one mask for all
            steps and documents of a batch: AWD-LSTM (Merity et al. 2018, arXiv:1708.02182).
        settings: see ``Reader``.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    def __init__(
        self, dim: int, cell: Cell, hidden: int, *, weight_drop: float = 0.0, **settings: Any
    ) -> None:
        check_choice("cell", cell, get_args(Cell))
        check_share("weight_drop", weight_drop)
        self.cell, self.weight_drop = cell, weight_drop
        super().__init__(dim, hidden, **settings)

    def make_layer(self, dim: int) -> nn.RNNBase:
        kind = {"nonlinearity": self.cell[4:]} if self.cell.startswith("rnn") else {}
        return LAYERS[self.cell](dim, self.hidden, bidirectional=self.directions == 2, **kind)

    def order(self, batch: TokenBatch) -> Packed:
        return Packed.of(batch)

    def read(self, layer: nn.RNNBase, values_MD: Tensor, places_N: Tensor, order: Packed) -> Tensor:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        suffixes = ("", "_reverse")[: self.directions]
        weights = [[getattr(layer, f"{name}_l0{suffix}") for name in names] for suffix in suffixes]
        if self.weight_drop and self.training:
            for direction in weights:
                direction[1] = F.dropout(direction[1], self.weight_drop)
        return read_packed(self.cell, values_MD, places_N, order, weights, cut=self.truncate)

    def layer_multiply_adds(self, dim: int) -> int:
        gates = {"lstm": 4, "gru": 3}.get(self.cell, 1) * self.hidden
        return self.directions * gates * (dim + self.hidden)


@dataclass
class Packed:
    """The time-major order of a PackedSequence: first all first tokens, longest document first."""

    slots: Tensor
    """(N,) int64: the place of each token."""
    tokens: Tensor
    """(N,) int64: the token in each place."""
    batch_sizes: Tensor
    """(L,) int64 on the CPU: how many documents have a token at each step."""
    batch: TokenBatch

    @classmethod
    def of(cls, batch: TokenBatch) -> Packed:
        """The order of the tokens of a batch that has some."""
        slots, batch_sizes = pack(batch)
        tokens = torch.empty_like(slots)
        tokens[slots] = torch.arange(len(slots), device=slots.device)
        return cls(slots, tokens, batch_sizes, batch)

    @cached_property
    def sizes(self) -> list[int]:
        return self.batch_sizes.tolist()

    @cached_property
    def flip(self) -> Tensor:
        """(N,) int64: the place of the token that lies as far from its document's end as this from its start.

        What is taken in this order lies packed as the documents read backwards; taken so again, it is back.
        """
        offsets = self.batch.offsets.long()
        mirrored = (offsets[:-1] + offsets[1:] - 1)[self.batch.documents] - torch.arange(
            len(self.slots), device=offsets.device
        )
        return self.slots[mirrored[self.tokens]]


def read_packed(
    cell: str,
    values_MD: Tensor,
    places_N: Tensor,
    order: Packed,
    weights: Sequence[Sequence[Tensor]],
    *,
    cut: int | None = None,
    leak: float = 1.0,
) -> Tensor:
    """The states (N, K x H) of one layer at the packed tokens.

    On CUDA, and where no gradient is wanted, PyTorch's own kernels compute them, otherwise ``scan``; with
    ``TEXTBED_PLAIN_KERNELS=1`` PyTorch's always, where it has the cell.

    Args:
        cell: as for ``scan``.
        values_MD: what is read.
        places_N: the row of the values in each place.
        order: of the places.
        weights: for each direction those from the values, from the state before, and the two biases.
        cut, leak: as for ``scan``.
    """
    gradient = torch.is_grad_enabled() and (
        values_MD.requires_grad or any(weight.requires_grad for direction in weights for weight in direction)
    )
    if hasattr(torch, cell) and leak == 1 and (values_MD.is_cuda or not gradient or kernels.plain):
        return _by_library(
            cell, values_MD.index_select(0, places_N), order, weights, cut if gradient else None
        )
    weight_in, weight, bias_in, bias = (
        torch.stack(of_directions) for of_directions in zip(*weights, strict=True)
    )
    inputs_KMG = torch.baddbmm(
        (bias_in if cell == "gru" else bias_in + bias).unsqueeze(1),
        values_MD.to(weight.dtype).expand(len(weights), *values_MD.shape),
        weight_in.transpose(1, 2),
    )
    flips = [places_N, *(places_N[order.flip] for _ in weights[1:])]
    states_KNH = scan(
        cell,
        inputs_KMG,
        torch.stack(flips),
        weight,
        bias if cell == "gru" else None,
        order.sizes,
        cut=cut,
        leak=leak,
    )
    return torch.cat(
        [states_KNH[0], *(states.index_select(0, order.flip) for states in states_KNH[1:])], dim=1
    )


def _by_library(
    cell: str, values_ND: Tensor, order: Packed, weights: Sequence[Sequence[Tensor]], cut: int | None
) -> Tensor:
    """The states (N, K x H) by PyTorch's own kernels, in pieces of ``cut`` steps where that is given."""

    def run(
        values: Tensor, sizes: Tensor, before: Sequence[Tensor], *parts: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        state = tuple(before) if cell == "lstm" else before[0]
        flat = [weight for direction in parts for weight in direction]
        with warnings.catch_warnings():
            # cuDNN copies weights that are not the module's own, one chunk of memory, and says so each time.
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
            arguments = (values, sizes, state, flat, True, 1, 0.0, torch.is_grad_enabled(), len(parts) == 2)
            return getattr(torch, cell)(*arguments)

    width, documents = weights[0][1].shape[1], order.sizes[0]
    zeros = [weights[0][1].new_zeros(len(weights), documents, width)] * 2
    if cut is None:
        return run(values_ND, order.batch_sizes, zeros, *weights)[0]
    directions = []
    for number, own in enumerate(weights):
        values = values_ND[order.flip] if number else values_ND
        before, start, parts = [zero[:1] for zero in zeros], 0, []
        for sizes in order.batch_sizes.split(cut):
            end = start + int(sizes.sum())
            before = [state[:, : int(sizes[0])].detach().contiguous() for state in before]
            states, *before = run(values[start:end], sizes, before, own)
            parts.append(states)
            start = end
        states = torch.cat(parts)
        directions.append(states[order.flip] if number else states)
    return torch.cat(directions, dim=1)


def pack(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """The time-major order in which a PackedSequence lays tokens: first all first tokens, longest document
    first.

    Returns slots (N,) int64, where each token goes, and batch sizes (L,) int64 on the CPU, how many documents
    have a token at each step. Takes O(N), and waits for the device, since PyTorch wants the batch sizes on
    the CPU.
    """
    lengths = batch.lengths.long()
    order = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(batch), device=order.device)
    # Documents with a token at step t are those longer than t: count lengths, then sum from the longest down.
    batch_sizes = torch.bincount(lengths).flip(0).cumsum(0).flip(0)[1:]
    step_starts = batch_sizes.cumsum(0) - batch_sizes
    documents = batch.documents
    step = torch.arange(len(documents), device=lengths.device) - batch.offsets[:-1][documents]
    return step_starts[step] + rank[documents], batch_sizes.cpu()
