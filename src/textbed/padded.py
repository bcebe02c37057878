"""The network once more, over documents laid out as rows of equal length: in this form it can be exported.

``torch.export`` and ONNX know no flat tokens, no packed sequences, no autograd functions of one's own and no
control flow that looks at numbers. What the front ends and heads compute in evaluation is written out here
without any of these. It costs the padding: use it for export alone. ``tests/test_padded.py`` holds every head
and front end in ``configs`` to the same numbers.

A token's row follows from its id in all our front ends, so that whichever it is becomes one table, with the
weights of tokens worked in; n-grams keep a second one, and their hashes. For a head that is to be exported a
function is registered with :func:`read`.

Shape letters: B documents, L tokens of the longest, N all B x L of them, V rows of the table, D width of a
row, Q queries, H width of what the head returns, C classes, P pieces of all documents, W tokens of a piece.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import Reduction
from textbed.embedding import ngrams
from textbed.embedding.effects import Effects, each_alone
from textbed.embedding.hashed import Hashed
from textbed.embedding.table import FrontEnd, Table
from textbed.errors import UserError
from textbed.heads import attention, convolutional, layers, minimal, pooling, reading, recurrent, reservoir
from textbed.heads.base import Head
from textbed.network import Network

_BEHIND = 2**31
"""More tokens than a document has."""
_AT_ONCE = 8192
"""Tokens whose rows are worked out together while the table is made."""


class Padded(nn.Module):
    """What a network says of padded documents, in evaluation.

    Args:
        network: in evaluation; its tables may be changed as a lookup changes them (``max_norm``).
        num_embeddings: V.

    Raises:
        UserError: its front end or its head has no padded form; names the class.
    """

    def __init__(self, network: Network, num_embeddings: int) -> None:
        super().__init__()
        with torch.no_grad():
            self.rows = _front_end(network.embedding, num_embeddings)
        self.padding_idx = network.embedding.padding_idx
        self.head, self.activation, self.linear = network.head, network.activation, network.linear
        self.multilabel, self.pairs = network.multilabel, network.pairs
        if not has_padded_form(self.head):
            raise UserError(
                f"head {_name(self.head)} has no padded form, which ONNX and torch.export need; "
                "use --to folder, or register one with textbed.padded.read"
            )

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        second_ids: Tensor | None = None,
        second_lengths: Tensor | None = None,
    ) -> Tensor:
        """Probabilities (B, C).

        Args:
            ids: (B, L) int64, L at least 1; what stands behind a document's end is not looked at, but must be
                a row of the table.
            lengths: (B,) int64, tokens of each document, 0 for none.
            second_ids, second_lengths: the second texts, of a model of pairs; with an L of their own.
        """
        features = self.activation(self._read(ids, lengths))
        if self.pairs:
            assert second_ids is not None
            assert second_lengths is not None
            second = self.activation(self._read(second_ids, second_lengths))
            features = torch.cat([features, second, (features - second).abs(), features * second], dim=1)
        logits = self.linear(features)
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)

    def _read(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        mask_BL = places_L < lengths_B.unsqueeze(1)
        if self.padding_idx is not None:
            # Padding within a document is not seen: its other tokens move up. The numbers sorted all differ.
            mask_BL = mask_BL & (ids_BL != self.padding_idx)
            order_BL = torch.where(mask_BL, places_L, places_L + _BEHIND).argsort(dim=1)
            ids_BL = ids_BL.gather(1, order_BL)
            mask_BL = places_L < mask_BL.sum(dim=1, keepdim=True)
        return read(self.head, Documents(ids_BL, mask_BL, self.rows))


@dataclass
class Documents:
    """Padded documents, whose own tokens stand in front."""

    ids_BL: Tensor
    mask_BL: Tensor
    """Bool, true at the documents' own tokens."""
    front_end: Rows | GramRows

    def rows(self) -> Tensor:
        """(B, L, D), zeros behind a document's end."""
        return self.front_end(self.ids_BL, self.mask_BL) * self.mask_BL.unsqueeze(2)

    def pool(self, mode: Reduction) -> Tensor:
        """(B, D), as :meth:`FrontEnd.pool`."""
        return self.front_end.pool(self.ids_BL, self.mask_BL, mode)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.mask_BL.sum(dim=1)

    @property
    def have_tokens(self) -> Tensor:
        """(B, 1) bool."""
        return self.mask_BL.any(dim=1, keepdim=True)


def reduce(values_BLD: Tensor, mask_BL: Tensor, mode: str) -> Tensor:
    """The sum, mean, max or min (B, D) of the values where the mask is true; zeros where it nowhere is."""
    mask_BL1 = mask_BL.unsqueeze(2)
    if mode in ("max", "min"):
        sign = 1 if mode == "max" else -1
        largest_BD = (sign * values_BLD).masked_fill(~mask_BL1, -math.inf).amax(dim=1)
        return sign * largest_BD.where(mask_BL.any(dim=1, keepdim=True), 0)
    total_BD = values_BLD.masked_fill(~mask_BL1, 0).sum(dim=1)
    return total_BD / mask_BL.sum(dim=1, keepdim=True).clamp(min=1) if mode == "mean" else total_BD


# ------------------------------------------------------------------------------------------------------------
# Front ends
# ------------------------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """A front end whose rows follow from the ids alone, as one table (V, D)."""

    def __init__(self, rows_VD: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", rows_VD)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self.table)  # type: ignore[arg-type]

    def pool(self, ids_BL: Tensor, mask_BL: Tensor, mode: Reduction) -> Tensor:
        return reduce(self(ids_BL, mask_BL), mask_BL, mode)


class GramRows(nn.Module):
    """Words and n-grams: :class:`textbed.embedding.ngrams.NGrams`.

    What the character n-grams of a word come to is a row for each word, so that only word n-grams are looked
    up by their hashes.
    """

    words: Tensor
    """(V, D) the words' own rows."""
    grams: Tensor
    """(buckets, D or ngram_dim)."""
    hashes: Tensor
    """(V,) int64."""
    characters: Tensor
    """(V, D or ngram_dim) the sum over each word's character n-grams."""
    most: Tensor
    """The maximum of the same."""
    counts: Tensor
    """(V,) int64: how many there are."""
    weights: Tensor
    """(V,) a factor on each word."""

    def __init__(self, inner: ngrams.NGrams, weights_V: Tensor | None) -> None:
        super().__init__()
        everything = torch.arange(len(inner.hashes))
        words_VD, grams = _rows_of(inner.words, len(everything)), inner.ngrams.table.weight.detach()
        rows, begins = inner._characters(everything)
        characters, most = (
            F.embedding_bag(rows, grams, begins, mode=mode, include_last_offset=True)
            for mode in ("sum", "max")
        )
        weights = torch.ones(len(everything)) if weights_V is None else weights_V
        for name, value in (
            ("words", words_VD),
            ("grams", grams),
            ("hashes", inner.hashes.long()),
            ("characters", characters),
            ("most", most),
            ("counts", inner.char_counts.long()),
            ("weights", weights),
        ):
            self.register_buffer(name, value)
        self.longest, self.beside, self.buckets = inner.word_ngrams, inner.beside, inner.buckets

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        sums_BLD, counts_BL = F.embedding(ids_BL, self.characters), self.counts[ids_BL]
        for inside_BL, rows_BLD, _ in self._word_ngrams(ids_BL, mask_BL):
            sums_BLD = sums_BLD + rows_BLD * inside_BL.unsqueeze(2)
            counts_BL = counts_BL + inside_BL
        own_BLD = F.embedding(ids_BL, self.words)
        if not self.beside:
            sums_BLD, counts_BL = sums_BLD + own_BLD, counts_BL + 1
        rows_BLD = sums_BLD / counts_BL.clamp(min=1).unsqueeze(2)
        if self.beside:
            rows_BLD = torch.cat([own_BLD, rows_BLD], dim=2)
        return rows_BLD * self.weights[ids_BL].unsqueeze(2)

    def pool(self, ids_BL: Tensor, mask_BL: Tensor, mode: Reduction) -> Tensor:
        weights_BL1 = self.weights[ids_BL].unsqueeze(2)
        words_BLD = F.embedding(ids_BL, self.words) * weights_BL1
        counts_BL = self.counts[ids_BL] * mask_BL
        grams = [
            (inside_BL, rows_BLD * weight_BL.unsqueeze(2))
            for inside_BL, rows_BLD, weight_BL in self._word_ngrams(ids_BL, mask_BL)
        ]
        if mode == "max":
            grams.append((counts_BL > 0, F.embedding(ids_BL, self.most) * weights_BL1))
        else:
            grams.append((mask_BL, F.embedding(ids_BL, self.characters) * weights_BL1))
        if not self.beside:
            grams.append((mask_BL, words_BLD))
        inside, values = (torch.cat(parts, dim=1) for parts in zip(*grams, strict=True))
        if mode == "mean":
            for inside_BL, *_ in self._word_ngrams(ids_BL, mask_BL):
                counts_BL = counts_BL + inside_BL
            if not self.beside:
                counts_BL = counts_BL + mask_BL
            total_BD = reduce(values, inside, "sum") / counts_BL.sum(dim=1, keepdim=True).clamp(min=1)
        else:
            total_BD = reduce(values, inside, mode)
        return torch.cat([reduce(words_BLD, mask_BL, mode), total_BD], dim=1) if self.beside else total_BD

    def _word_ngrams(self, ids_BL: Tensor, mask_BL: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For 2, 3, ... words: at which tokens an n-gram of so many ends, its row there, and its weight."""
        own_BL, weights_BL, inside_BL = self.hashes[ids_BL], self.weights[ids_BL], mask_BL
        hashed_BL, total_BL = own_BL, weights_BL
        for words in range(2, self.longest + 1):
            hashed_BL = _moved(hashed_BL) * ngrams.MULTIPLIER + own_BL  # wraps around at 64 bits
            total_BL, inside_BL = _moved(total_BL) + weights_BL, _moved(inside_BL) & mask_BL
            # The remainder of int64 read as numbers without a sign: a negative one is 2**64 larger then.
            wrapped = (hashed_BL < 0) * (2**64 % self.buckets)
            bucket_BL = (hashed_BL.remainder(self.buckets) + wrapped).remainder(self.buckets)
            yield inside_BL, F.embedding(bucket_BL, self.grams), total_BL / words


def _moved(values_BL: Tensor) -> Tensor:
    """The value of the token before, at the first nothing."""
    return F.pad(values_BL, (1, 0))[:, :-1]


def _front_end(given: FrontEnd, num_embeddings: int) -> Rows | GramRows:
    inner, weights_V = given, None
    if isinstance(given, Effects):
        inner, weights_V = given.inner, given.token_weights
        if given.log_weights is not None:
            weights_V = given.log_weights.detach().exp()
    if isinstance(inner, ngrams.NGrams):
        return GramRows(inner, weights_V)
    if not isinstance(inner, Table | Hashed) and not inner.row_by_id:
        raise UserError(
            f"front end {_name(inner)} has no padded form, which ONNX and torch.export need: its class does "
            "not say that a token's row follows from its id (row_by_id); use --to folder"
        )
    rows_VD = _rows_of(inner, num_embeddings)
    return Rows(rows_VD if weights_V is None else rows_VD * weights_V.unsqueeze(1))


def _rows_of(front_end: FrontEnd, count: int) -> Tensor:
    """(V, D): the row of each token alone."""
    parts = torch.arange(count).split(_AT_ONCE)
    return torch.cat([front_end(front_end.prepare(each_alone(part))) for part in parts])


# ------------------------------------------------------------------------------------------------------------
# Heads
# ------------------------------------------------------------------------------------------------------------


@functools.singledispatch
def read(head: Head, documents: Documents) -> Tensor:
    """(B, H): what a head makes of padded documents, zeros for an empty one. By the class of the head."""
    raise NotImplementedError


def has_padded_form(head: Head) -> bool:
    """Whether a function is registered for the head."""
    if isinstance(head, layers.Layered):
        head = head.head
    return read.dispatch(type(head)) is not read.dispatch(object)


@read.register
def _(head: layers.Layered, documents: Documents) -> Tensor:
    return head.layers(read(head.head, documents)) * documents.have_tokens


@read.register
def _(head: pooling.Pooling, documents: Documents) -> Tensor:
    if head.pools is not None:
        return torch.cat([documents.pool(mode) for mode in head.pools], dim=1)
    rows_BLD = documents.rows()
    return torch.cat([reduce(rows_BLD, documents.mask_BL, mode) for mode in head.modes], dim=1)


@read.register
def _(head: pooling.Hierarchical, documents: Documents) -> Tensor:
    rows_BLD, lengths_B1 = documents.rows(), documents.lengths.unsqueeze(1)
    size = head.window
    # One window for each token that it begins at; a document shorter than a window has the first alone.
    sums_BDL = F.avg_pool1d(F.pad(rows_BLD.transpose(1, 2), (0, size - 1)), size, stride=1) * size
    starts_L = torch.arange(rows_BLD.shape[1], device=rows_BLD.device)
    inside_BL = (starts_L < (lengths_B1 - size + 1).clamp(min=1)) & documents.mask_BL
    means_BLD = sums_BDL.transpose(1, 2) / lengths_B1.clamp(1, size).unsqueeze(2)
    return reduce(means_BLD, inside_BL, "max")


@read.register
def _(head: pooling.PowerMean, documents: Documents) -> Tensor:
    rows_BLD, mask_BL = documents.rows(), documents.mask_BL
    plain = {1.0: "mean", math.inf: "max", -math.inf: "min"}
    tiny = torch.finfo(rows_BLD.dtype).tiny
    parts = []
    for power in head.powers:
        if power in plain:
            parts.append(reduce(rows_BLD, mask_BL, plain[power]))
            continue
        largest_BD = reduce(rows_BLD.abs(), mask_BL, "max").clamp(min=tiny)
        share_BLD = rows_BLD / largest_BD.unsqueeze(1)
        if power % 2 == 0:
            raised_BLD = share_BLD**power
        else:
            raised_BLD = share_BLD * share_BLD.abs().clamp(min=tiny) ** (power - 1)
        mean_BD = reduce(raised_BLD, mask_BL, "mean")
        parts.append(largest_BD * mean_BD * mean_BD.abs().clamp(min=pooling.STEEP) ** (1 / power - 1))
    return torch.cat(parts, dim=1)


@read.register
def _(head: pooling.LogSumExp, documents: Documents) -> Tensor:
    rows_BLD, mask_BL = documents.rows(), documents.mask_BL
    largest_BD = reduce(rows_BLD, mask_BL, "max")
    exponents_BLD = ((rows_BLD - largest_BD.unsqueeze(1)) / head.temperature).exp()
    mean_BD = reduce(exponents_BLD, mask_BL, "mean")
    return largest_BD + head.temperature * mean_BD.where(mean_BD > 0, 1).log()


@read.register
def _(head: pooling.RandomProjection, documents: Documents) -> Tensor:
    return reduce(F.linear(documents.rows(), head.weight), documents.mask_BL, "max")


def _weighted_sums(values_BLD: Tensor, scores_BLQ: Tensor, mask_BL: Tensor) -> Tensor:
    """Sums under a softmax of the scores over each document, (B, Q x D); zeros for an empty one."""
    mask_BL1 = mask_BL.unsqueeze(2)
    scores_BLQ = scores_BLQ - reduce(scores_BLQ, mask_BL, "max").unsqueeze(1)
    # Filled before the exponential, which behind a document's end may overflow: 0 times that is no number.
    exponents_BLQ = scores_BLQ.masked_fill(~mask_BL1, -math.inf).exp()
    weights_BLQ = exponents_BLQ / exponents_BLQ.sum(dim=1, keepdim=True).where(
        mask_BL.any(1)[:, None, None], 1
    )
    return (weights_BLQ.transpose(1, 2) @ values_BLD.masked_fill(~mask_BL1, 0)).flatten(1)


@read.register
def _(head: attention.WeightedMean, documents: Documents) -> Tensor:
    rows_BLD = documents.rows()
    return _weighted_sums(rows_BLD, F.logsigmoid(head.score(rows_BLD)), documents.mask_BL)


@read.register
def _(head: attention.Attention, documents: Documents) -> Tensor:
    rows_BLD = documents.rows()
    return _weighted_sums(rows_BLD, head.score(rows_BLD), documents.mask_BL)


@read.register
def _(head: attention.LabelAttention, documents: Documents) -> Tensor:
    rows_BLD, labels_CD = documents.rows(), head.labels
    rows, labels = (F.normalize(vectors, dim=-1, eps=attention.SHORT) for vectors in (rows_BLD, labels_CD))
    cosine_BCL = F.linear(rows, labels).transpose(1, 2)
    weight = head.window.expand(len(labels_CD), 1, -1)
    near_BCL = F.conv1d(cosine_BCL, weight, padding=len(head.window) // 2, groups=len(labels_CD))
    scores_BLC = (near_BCL.transpose(1, 2) + head.bias).relu()
    return _weighted_sums(rows_BLD, scores_BLC.amax(dim=2, keepdim=True), documents.mask_BL)


@read.register
def _(head: convolutional.Convolutional, documents: Documents) -> Tensor:
    rows_BDL, lengths_B1 = documents.rows().transpose(1, 2), documents.lengths.unsqueeze(1)
    parts = []
    for weight_KDM in head.weights:
        border = weight_KDM.shape[0] - 1
        values_BMT = F.conv1d(rows_BDL, weight_KDM.permute(2, 1, 0), padding=border)
        places_T = torch.arange(values_BMT.shape[2], device=values_BMT.device)
        parts.append(reduce(values_BMT.transpose(1, 2), places_T < lengths_B1 + border, "max"))
    return (torch.cat(parts, dim=1) + head.bias).relu() * documents.have_tokens


# ---- heads that read token by token


@read.register(recurrent.Recurrent)
@read.register(minimal.MinRecurrent)
@read.register(reservoir.EchoState)
def _(head: reading.Reader, documents: Documents) -> Tensor:
    values_BLD, mask_BL = documents.rows(), documents.mask_BL
    of_documents = None
    if head.window is not None:
        assert head.stride is not None
        values_BLD, mask_BL, of_documents = _pieces(values_BLD, mask_BL, head.window, head.stride)
    states: Tensor | None = None
    for number, layer in enumerate(head.layers):
        if states is not None:
            values_BLD = head.norms[number - 1](states) if len(head.norms) else states
        found = _states(head, layer, values_BLD, mask_BL)
        states = states + found if head.residual and states is not None else found
    assert states is not None
    result = _read_out(head, states, mask_BL)
    if of_documents is None:
        return result
    result = result.unflatten(0, of_documents.shape)
    return reduce(result, of_documents, head.window_pooling)


def _pieces(values_BLD: Tensor, mask_BL: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of W tokens, one every ``stride``: their values (P, W, D) and mask (P, W), and which pieces each
    document has, (B, P / B) bool; those behind a document's end are empty."""
    length, lengths_B1 = values_BLD.shape[1], mask_BL.sum(dim=1, keepdim=True)
    # At least two, of which the last may be empty: an export takes a size of one for a fixed one.
    starts = stride * torch.arange(length // stride + 2, device=values_BLD.device)
    last_B1 = 1 + ((lengths_B1 - size).clamp(min=0) + stride - 1) // stride
    there = (starts < stride * last_B1) & (lengths_B1 > 0)
    inner = torch.arange(size, device=values_BLD.device)
    places = starts.unsqueeze(1) + inner
    values = values_BLD[:, places.clamp(max=length - 1)]  # (B, pieces, W, D)
    mask = (places < lengths_B1.unsqueeze(2)) & there.unsqueeze(2)
    return values.flatten(0, 1), mask.flatten(0, 1), there


def _read_out(head: reading.Reader, states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    if head.readout == "attention":
        return _weighted_sums(states_BLH, head.score(states_BLH), mask_BL)
    if head.readout != "last":
        return reduce(states_BLH, mask_BL, head.readout)
    last_B11 = (mask_BL.sum(dim=1) - 1).clamp(min=0).view(-1, 1, 1)
    states = states_BLH.gather(1, last_B11.expand(-1, 1, states_BLH.shape[2])).squeeze(1)
    if head.directions == 2:  # the backward direction ends at the first token
        states = torch.cat([states[:, : head.hidden], states_BLH[:, 0, head.hidden :]], dim=1)
    return states * mask_BL.any(dim=1, keepdim=True)


def _states(head: reading.Reader, layer: Any, values_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The states (B, L, directions x hidden) of one layer; behind a document's end they mean nothing."""
    places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    # Each document backwards, and what lies behind its end where it is: the same the other way round.
    mirrored_BL = torch.where(mask_BL, mask_BL.sum(dim=1, keepdim=True) - 1 - places_L, places_L)

    def flipped(values: Tensor) -> Tensor:
        return values.gather(1, mirrored_BL.unsqueeze(2).expand(-1, -1, values.shape[2]))

    directions = []
    for direction in range(head.directions):
        given = flipped(values_BLD) if direction else values_BLD
        inputs, step, carried = _cell(head, layer, direction, given)
        zeros = given.new_zeros(given.shape[0], head.hidden)
        # Time first, as it is read.
        by_time = _scan(
            step, [zeros.clone() for _ in range(carried)], [part.transpose(0, 1) for part in inputs]
        )
        states = by_time.transpose(0, 1).contiguous()
        directions.append(flipped(states) if direction else states)
    return torch.cat(directions, dim=2)


Step = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]


def _cell(
    head: reading.Reader, layer: Any, direction: int, values_BLD: Tensor
) -> tuple[list[Tensor], Step, int]:
    """What the tokens give to one direction of a layer, (B, L, ...) each; what is carried from what was
    carried and what a token gives, the state first; and how many tensors are carried."""
    if isinstance(head, minimal.MinRecurrent):
        gates = layer(values_BLD).unflatten(2, (head.directions, -1, head.hidden))[:, :, direction]
        return list(head.coefficients(gates)), lambda before, given: (given[0] * before[0] + given[1],), 1
    if isinstance(head, reservoir.EchoState):
        weight_in, weight = layer[2 * direction], layer[2 * direction + 1]
        cell, leak, bias = f"rnn_{head.activation}", head.leak, None
        inputs = F.linear(values_BLD, weight_in)
    else:
        assert isinstance(head, recurrent.Recurrent)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        suffix = "_reverse" if direction else ""
        weight_in, weight, bias_in, bias = (getattr(layer, f"{name}_l0{suffix}") for name in names)
        cell, leak = head.cell, 1.0
        # The reset gate of a GRU takes hold of the second bias.
        inputs = F.linear(values_BLD, weight_in, bias_in if cell == "gru" else bias_in + bias)

    def lstm(before: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        state, memory = before
        enter, forget, new, out = (given[0] + F.linear(state, weight)).chunk(4, dim=1)
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return out.sigmoid() * memory.tanh(), memory

    def gru(before: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        reset, update, new = given[0].chunk(3, dim=1)
        by_reset, by_update, by_new = F.linear(before[0], weight, bias).chunk(3, dim=1)
        new = (new + (reset + by_reset).sigmoid() * by_new).tanh()
        share = (update + by_update).sigmoid()
        return ((1 - share) * new + share * before[0],)

    def plain(before: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        value = given[0] + F.linear(before[0], weight)
        if cell != "rnn_none":
            value = value.tanh() if cell == "rnn_tanh" else value.relu()
        return (leak * value + (1 - leak) * before[0],)

    step: Step = {"lstm": lstm, "gru": gru}.get(cell, plain)
    return [inputs], step, 2 if cell == "lstm" else 1


def _scan(step: Step, before: list[Tensor], given_LB: list[Tensor]) -> Tensor:
    """The states (L, B, H), one step after the other: a loop in the graph, whose length is not fixed."""
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan

        def body(carried: list[Tensor], given: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            now = list(step(carried, given))
            return now, now[0].clone()

        return scan(body, before, given_LB, dim=0)[1]
    states = []
    for given in zip(*given_LB, strict=True):
        before = list(step(before, given))
        states.append(before[0])
    return torch.stack(states)


def _name(part: nn.Module) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
