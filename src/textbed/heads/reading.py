"""What heads that read a document token by token share: layers, dropout, readouts and windows.

Shape letters: B documents, N tokens of all of them (of all windows, where documents are cut into windows), M
rows that they are looked up in, D width of a row, K directions, H width of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError, nearest
from textbed.heads.attention import softmax, weighted_sums
from textbed.heads.base import Head

Readout = Literal["last", "mean", "max", "attention"]
WindowPooling = Literal["mean", "max"]


class Order(Protocol):
    """The places in which the tokens of a batch lie while they are read."""

    slots: Tensor
    """(N,) int64: the place of each token."""
    tokens: Tensor
    """(N,) int64: the token in each place."""


class Reader(Head):
    """Reads each document with one or more recurrent layers, and makes one vector of the states.

    Flat tokens are put in the order in which they are read, so neither (B, L, D) nor a padded step is ever
    made. A kind of layer is a class that gives ``order`` and ``read``.

    Args:
        dim: D, width of the front end's rows.
        hidden: width of the state of one direction.
        layers: how many are stacked.
        bidirectional: whether a second one reads each document backwards; doubles H.
        dropout: share of values dropped between layers, in training; nothing where there is one layer.
        readout: last (the state after the last token, for the backward direction after the first), mean or
            max over the states at all tokens, or attention over them with a learned query (Lin et al. 2017,
            arXiv:1703.03130).
        input_dropout: share of the values of the tokens' rows dropped, in training.
        variational: drop the same columns at all tokens of a document, in ``dropout`` and ``input_dropout``
            (Gal & Ghahramani 2016, arXiv:1512.05287), instead of others at each. What goes from state to
            state is not dropped by this.
        layer_norm: normalise what goes from a layer to the next (Ba et al. 2016, arXiv:1607.06450).
        residual: add what went into a layer to what comes out, from the second layer on.
        truncate: no gradient goes from a token back to the one before it where the number of tokens read
            until there is a multiple of this; states are carried on, so values are the same. None lets the
            gradient through the whole document. With the readout last only the tokens after the last cut are
            trained on, so mean, max or attention suit it better.
        window: cut a document into pieces of so many tokens, read each from a state of zeros, and pool the
            readouts of the pieces; None reads it whole. A long document then costs as many steps as a window,
            and no state or gradient goes further than that.
        stride: tokens from the start of a window to that of the next; None is the window's length. Less makes
            windows overlap, and the work grows by window / stride.
        window_pooling: mean or max of the windows' readouts.
        trainable: false leaves the layers as they were drawn.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    width = "hidden"

    def __init__(
        self,
        dim: int,
        hidden: int,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        readout: Readout = "last",
        *,
        input_dropout: float = 0.0,
        variational: bool = False,
        layer_norm: bool = False,
        residual: bool = False,
        truncate: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        window_pooling: WindowPooling = "mean",
        trainable: bool = True,
    ) -> None:
        super().__init__()
        check_choice("readout", readout, get_args(Readout))
        check_choice("window_pooling", window_pooling, get_args(WindowPooling))
        numbers = {
            "hidden": hidden,
            "layers": layers,
            "truncate": truncate,
            "window": window,
            "stride": stride,
        }
        for key, number in numbers.items():
            if number is not None and number < 1:
                raise UserError(f"head.{key} is {number}; expected at least 1")
        for key, share in (("dropout", dropout), ("input_dropout", input_dropout)):
            check_share(key, share)
        if stride is not None and (window is None or stride > window):
            raise UserError(
                f"head.stride is {stride}, but head.window is {window}; expected a window of at least the "
                "stride, since tokens between two windows would not be read"
            )
        self.dim, self.hidden, self.directions = dim, hidden, 2 if bidirectional else 1
        self.dropout, self.input_dropout, self.variational = dropout, input_dropout, variational
        self.readout, self.residual, self.truncate = readout, residual, truncate
        self.window, self.stride, self.window_pooling = window, stride or window, window_pooling
        self.out_dim = hidden * self.directions

        above = layers - 1
        self.layers = nn.ModuleList([self.make_layer(width) for width in [dim, *[self.out_dim] * above]])
        self.norms = nn.ModuleList([nn.LayerNorm(self.out_dim) for _ in range(above)] if layer_norm else [])
        if readout == "attention":
            self.score = nn.Sequential(
                nn.Linear(self.out_dim, self.out_dim, bias=False),
                nn.Tanh(),
                nn.Linear(self.out_dim, 1, bias=False),
            )
        if not trainable:
            self.requires_grad_(False)

    # ---- what a kind of layer says

    def make_layer(self, dim: int) -> nn.Module:
        """A layer over values of width ``dim``."""
        raise NotImplementedError

    def order(self, batch: TokenBatch) -> Any:
        """The order in which ``read`` takes the tokens."""
        raise NotImplementedError

    def read(self, layer: Any, values_MD: Tensor, places_N: Tensor, order: Any) -> Tensor:
        """States (N, H), in the order of reading, over the rows ``places_N`` of the values."""
        raise NotImplementedError

    def layer_multiply_adds(self, dim: int) -> int:
        """Multiply-adds of one layer over values of width ``dim``, for one token."""
        raise NotImplementedError

    # ---- reading

    @torch.compiler.disable  # thousands of steps would be unrolled, and packing needs sizes on the CPU
    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H): the readout of each document's states."""
        batch = batch.without(embedding.padding_idx)
        if not batch.ids.shape[0]:
            # Nothing to read. The zeros still hang on every parameter that is trained, since DDP wants a
            # gradient for each at each step.
            trained = (parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad)
            return sum(trained, start=embedding(batch).sum()).expand(len(batch), self.out_dim)

        rows_MD, row_of_token = self._look_up(batch, embedding)
        pieces = windows(batch, self.window, self.stride or self.window) if self.window else None
        texts = pieces.texts if pieces else batch
        order = self.order(texts)
        token_of_place = pieces.tokens[order.tokens] if pieces else order.tokens
        places = token_of_place if row_of_token is None else row_of_token[token_of_place]
        states_NH = self._read_all(rows_MD, places, order, batch, token_of_place)
        read = self._read_out(states_NH, order.slots, texts)
        return pieces.of_documents.reduce(read, self.window_pooling) if pieces else read

    def _look_up(self, batch: TokenBatch, embedding: FrontEnd) -> tuple[Tensor, Tensor | None]:
        """Rows (M, D), and the row of each token; None where each token has its own.

        On the CPU tokens that are alike share a row where they may, since what a layer makes of a row alone
        is then done once: of 15,000 tokens of 64 reviews a quarter are distinct.
        """
        if embedding.row_by_id and batch.weights is None and batch.ids.is_cpu:
            ids, row_of_token = batch.ids.unique(return_inverse=True)
            return embedding(TokenBatch(ids, torch.tensor([0, len(ids)], dtype=torch.int32))), row_of_token
        return embedding(batch), None

    def _read_all(
        self, rows_MD: Tensor, places: Tensor, order: Any, batch: TokenBatch, token_of_place: Tensor
    ) -> Tensor:
        """The last layer's states (N, H)."""
        everywhere = torch.arange(len(places), device=places.device)
        states, values = None, rows_MD
        for number, layer in enumerate(self.layers):
            share = self.dropout if number else self.input_dropout
            if states is not None:
                values, places = (self.norms[number - 1](states) if len(self.norms) else states), everywhere
            if share and self.training:
                values, places = values.index_select(0, places) if number == 0 else values, everywhere
                values = self._drop(values, share, batch, token_of_place)
            read = self.read(layer, values, places, order)
            states = states + read if self.residual and states is not None else read
        assert states is not None
        return states

    def _drop(self, values_ND: Tensor, share: float, batch: TokenBatch, token_of_place: Tensor) -> Tensor:
        if not self.variational:
            return F.dropout(values_ND, share)
        mask_BD = F.dropout(values_ND.new_ones(len(batch), values_ND.shape[1]), share)
        return values_ND * mask_BD.index_select(0, batch.documents[token_of_place])

    def _read_out(self, states_NH: Tensor, slots: Tensor, texts: TokenBatch) -> Tensor:
        if self.readout != "last":
            states_NH = states_NH.index_select(0, slots)
            if self.readout == "attention":
                return weighted_sums(states_NH, softmax(self.score(states_NH), texts), texts)
            return texts.reduce(states_NH, self.readout)
        some = texts.lengths.nonzero().squeeze(1)
        starts, ends = texts.offsets[:-1][some], texts.offsets[1:][some] - 1
        last = states_NH[slots[ends]]
        if self.directions == 2:  # the backward direction ends at the first token
            last = torch.cat([last[:, : self.hidden], states_NH[slots[starts], self.hidden :]], dim=1)
        return last.new_zeros(len(texts), self.out_dim).index_copy(0, some, last)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        if self.window is not None:
            assert self.stride is not None
            counts = [1 + math.ceil(max(length - self.window, 0) / self.stride) for length in lengths]
            # All but the last window of a document are full.
            tokens = sum(
                (count - 1) * self.window + length - (count - 1) * self.stride
                for count, length in zip(counts, lengths, strict=True)
            )
        else:
            counts, tokens = [], sum(lengths)
        dims = [self.dim, *[self.out_dim] * (len(self.layers) - 1)]
        each = sum(self.layer_multiply_adds(dim) for dim in dims)
        if self.readout == "attention":
            each += self.out_dim * (self.out_dim + 1) + 2
        if self.readout != "last":
            each += self.out_dim
        return tokens * each + sum(counts) * self.out_dim


@dataclass
class Windows:
    """Documents cut into pieces that may overlap; a document without tokens has none."""

    texts: TokenBatch
    """The pieces, end to end."""
    tokens: Tensor
    """(N,) int64: the token of the batch that each token of the pieces is."""
    of_documents: TokenBatch
    """B documents whose tokens are their pieces; the ids mean nothing."""


def windows(batch: TokenBatch, size: int, stride: int) -> Windows:
    """Pieces of ``size`` tokens, one every ``stride`` tokens until the document's end is in one."""
    lengths = batch.lengths.long()
    counts = torch.where(lengths > 0, 1 + ((lengths - size).clamp(min=0) + stride - 1) // stride, 0)
    device, numbers = lengths.device, torch.arange(len(batch), device=lengths.device)
    documents = torch.repeat_interleave(numbers, counts)
    first_of_document = (counts.cumsum(0) - counts)[documents]
    piece = torch.arange(len(documents), device=device)
    starts = batch.offsets[:-1].long()[documents] + (piece - first_of_document) * stride
    sizes = torch.minimum(starts + size, batch.offsets[1:].long()[documents]) - starts
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    piece_of_token = torch.repeat_interleave(piece, sizes)
    tokens = torch.arange(len(piece_of_token), device=device) + (starts - offsets[:-1])[piece_of_token]
    kind = batch.offsets.dtype
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(kind)
    return Windows(
        TokenBatch(batch.ids[tokens], offsets.to(kind)), tokens, TokenBatch(piece.to(batch.ids.dtype), bounds)
    )


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless ``value`` is one of the choices of ``head.key``."""
    if value not in choices:
        raise UserError(
            f"head.{key} is '{value}'; expected one of {', '.join(choices)}.{nearest(value, choices)}"
        )


def check_share(key: str, share: float) -> None:
    """Raise UserError unless ``share`` can be dropped."""
    if not 0 <= share < 1:
        raise UserError(f"head.{key} is {share}; expected a share from 0 up to, but not including, 1")
