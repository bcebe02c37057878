"""Lookups in one table of rows, and sums, means and maxima of them over documents without a row per token.

On the CPU the backward pass is our own. The gradient of an embedding bag is an embedding bag itself, over the
batch turned round: for each row that was looked up, the documents (or tokens) it was looked up by. Turning a
batch of N tokens round takes one sort of N whole numbers and does not depend on V; PyTorch's own backward
sorts too, but then adds row by row, and its sparse gradient holds a row per token.

A row's gradient is summed in the order of its tokens, whatever the number of threads, so it repeats to the
last bit. Without weights it is that of looking up and reducing with PyTorch, bit for bit; nn.EmbeddingBag
adds up in the order of an unstable sort, and differs in the last bits. ``TEXTBED_PLAIN_KERNELS=1`` takes
PyTorch's own all through (:mod:`textbed.kernels`).

Shape letters: B documents, N tokens of all of them, V rows of the table, D width of a row, U rows that were
looked up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from textbed import kernels
from textbed.batch import Reduction, TokenBatch


def look_up(
    weight_VD: Tensor, batch: TokenBatch, *, padding_idx: int | None = None, sparse: bool = False
) -> Tensor:
    """The row of each token times its weight, (N, D). The row ``padding_idx`` gets no gradient.

    With ``sparse`` the table's gradient is a sparse tensor that holds the rows of the batch alone.
    """
    if _is_ours(weight_VD):
        rows_ND = _LookUp.apply(weight_VD, batch.ids, padding_idx, sparse)
    else:
        rows_ND = F.embedding(batch.ids, weight_VD, padding_idx, sparse=sparse)
    return rows_ND if batch.weights is None else rows_ND * batch.weights.unsqueeze(1)


def pool(
    weight_VD: Tensor,
    batch: TokenBatch,
    mode: Reduction,
    *,
    padding_idx: int | None = None,
    sparse: bool = False,
) -> Tensor:
    """The sum, mean or maximum of ``look_up`` over each document, (B, D), zeros for an empty one.

    Tokens of ``padding_idx`` do not count. A mean divides by the tokens of the document, not by the sum of
    their weights. Sums and means do not make (N, D), nor does a maximum without weights. There is no gradient
    of the gradient, as nn.EmbeddingBag has none.

    With ``sparse`` the table's gradient is a sparse tensor that holds the rows of the batch alone, of a
    maximum those that were largest somewhere.
    """
    ours = _is_ours(weight_VD, batch.weights, alone=mode == "max" and sparse)
    weighted = batch.weights is not None
    if weighted or sparse or ours or (batch.ids.is_cpu and not torch.compiler.is_compiling()):
        # On the CPU padding_idx costs embedding_bag its fast kernel (70,000 tokens: 7 ms instead of 0.5),
        # while a look for padding costs 0.02 ms. On a GPU the look would be a wait, in a compiled graph a
        # break.
        batch, padding_idx = batch.without(padding_idx), None
    token_weights = None if batch.weights is None else batch.weights.to(weight_VD.dtype)
    if ours:
        return _Pool.apply(weight_VD, token_weights, batch, mode, sparse)
    if mode == "max" and (weighted or sparse):
        # embedding_bag has neither a weighted nor a sparse maximum.
        return batch.reduce(look_up(weight_VD, batch, sparse=sparse), mode)
    pooled_BD = F.embedding_bag(
        batch.ids,
        weight_VD,
        batch.offsets,
        mode="sum" if weighted else mode,
        sparse=sparse,
        per_sample_weights=token_weights,
        include_last_offset=True,
        padding_idx=padding_idx,
    )
    if weighted and mode == "mean":
        return pooled_BD / batch.lengths.clamp(min=1).unsqueeze(1)
    return pooled_BD


def touched(gradient_VD: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that a sparse gradient (V, D) holds: their numbers (U,) int64, rising, and values (U, D).

    A row that it holds more than once, after several uses of one table or several batches, is summed in the
    order in which its parts were added.
    """
    rows, values = gradient_VD._indices()[0], gradient_VD._values()
    # autograd forgets that a gradient was coalesced; one look is a hundredth of PyTorch's sorting it again.
    if bool((rows[1:] > rows[:-1]).all()):
        return rows, values
    if kernels.plain or not rows.is_cpu:
        gradient_VD = gradient_VD.coalesce()
        return gradient_VD.indices()[0], gradient_VD.values()
    order, starts, numbers = _turned(rows)
    return torch.from_numpy(numbers), _bags(values, order, starts)


def write_rows(table_VD: Tensor, rows_U: Tensor, values_UD: Tensor) -> None:
    """``table_VD[rows_U] = values_UD`` in place, for distinct rows."""
    if kernels.plain or not (table_VD.is_cpu and table_VD.is_contiguous() and values_UD.numel()):
        table_VD.index_copy_(0, rows_U, values_UD)
        return
    # A row as one item of so many bytes: half the time of index_copy_ for 32,000 of 2 million rows.
    row = np.dtype((np.void, values_UD[0].numel() * values_UD.element_size()))
    table, values = (
        tensor.detach().contiguous().view(torch.uint8).numpy().view(row) for tensor in (table_VD, values_UD)
    )
    table[rows_U.numpy()] = values


def _is_ours(weight_VD: Tensor, token_weights: Tensor | None = None, *, alone: bool = False) -> bool:
    """Whether a gradient is wanted, and ours can give it: on the CPU, outside of a compiled graph.

    ``alone`` says that PyTorch's would be another one, as it is in half precision, which it sums in.
    """
    wanted = weight_VD.requires_grad or (token_weights is not None and token_weights.requires_grad)
    if kernels.plain and not alone and weight_VD.dtype in (torch.float32, torch.float64):
        return False
    return wanted and torch.is_grad_enabled() and weight_VD.is_cpu and not torch.compiler.is_compiling()


class _LookUp(torch.autograd.Function):
    """The row of each token, (N, D)."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids: Tensor, padding_idx: int | None, sparse: bool) -> Tensor:
        ctx.ids, ctx.rows, ctx.padding_idx, ctx.sparse = ids, len(weight_VD), padding_idx, sparse
        return F.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Any:
        padding_idx = -1 if ctx.padding_idx is None else ctx.padding_idx
        if torch.is_grad_enabled():
            # The gradient of this gradient will be asked for, which PyTorch's own has.
            dense = torch.ops.aten.embedding_dense_backward(grad_ND, ctx.ids, ctx.rows, padding_idx, False)
            return dense, None, None, None
        return _gradient(ctx, ctx.ids, grad_ND, without=ctx.padding_idx), None, None, None


class _Pool(torch.autograd.Function):
    """The sum, mean or maximum of each document's rows, (B, D); the batch holds no padding."""

    @staticmethod
    def forward(
        ctx: Any,
        weight_VD: Tensor,
        token_weights: Tensor | None,
        batch: TokenBatch,
        mode: Reduction,
        sparse: bool,
    ) -> Tensor:
        ctx.batch, ctx.mode, ctx.rows, ctx.sparse = batch, mode, len(weight_VD), sparse
        ids, offsets = batch.ids, batch.offsets
        # The table's values matter to the gradient of the weights alone. They may change in between where
        # rows are shortened when looked up, so they are not kept without need.
        kept = weight_VD if ctx.needs_input_grad[1] else None
        if mode == "max":
            values, places = weight_VD, ids
            if token_weights is not None:  # embedding_bag has no weighted maximum
                values = F.embedding(ids, weight_VD) * token_weights.unsqueeze(1)
                places = torch.arange(len(ids), dtype=offsets.dtype)
            pooled_BD, _, _, winners_BD = torch.embedding_bag(
                values, places, offsets, mode=2, include_last_offset=True
            )
            # Row of the table of the largest value, or with weights its token.
            ctx.save_for_backward(winners_BD, token_weights, kept)
            return pooled_BD
        pooled_BD = F.embedding_bag(
            ids,
            weight_VD,
            offsets,
            mode="sum" if token_weights is not None else mode,
            per_sample_weights=token_weights,
            include_last_offset=True,
        )
        if token_weights is not None and mode == "mean":
            pooled_BD = pooled_BD / batch.lengths.clamp(min=1).unsqueeze(1)
        ctx.save_for_backward(token_weights, kept)
        return pooled_BD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> Any:
        backward = _max_backward if ctx.mode == "max" else _sum_backward
        return *backward(ctx, grad_BD), None, None, None


def _sum_backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, Tensor | None]:
    token_weights, weight_VD = ctx.saved_tensors
    batch = ctx.batch
    lengths = batch.lengths
    documents = np.repeat(np.arange(len(batch), dtype=np.int32), lengths.numpy())
    if ctx.mode == "mean":
        grad_BD = grad_BD / lengths.clamp(min=1).unsqueeze(1)
    of_table = of_weights = None
    if ctx.needs_input_grad[0]:
        of_table = _gradient(ctx, batch.ids, grad_BD, documents, token_weights)
    if ctx.needs_input_grad[1]:
        # A dot product of a row and a document's gradient for each token; 0 stands for a sum, -1 for no
        # padding.
        of_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_BD.contiguous(), weight_VD, batch.ids, batch.offsets, torch.from_numpy(documents), 0, -1
        )
    return of_table, of_weights


def _max_backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, Tensor | None]:
    winners_BD, token_weights, weight_VD = ctx.saved_tensors
    batch = ctx.batch
    full = batch.lengths > 0
    winners_BD, grad_BD = winners_BD[full].long(), grad_BD[full]
    of_table = of_weights = None
    rows_BD, of_rows_BD = winners_BD, grad_BD
    if token_weights is not None:
        rows_BD = batch.ids[winners_BD].long()
        of_rows_BD = grad_BD * token_weights[winners_BD]
    if ctx.needs_input_grad[0]:
        wide = _wide(of_rows_BD)
        if ctx.sparse:
            # Numbers of whole rows, and of each winner's row among them.
            rows, where = np.unique(rows_BD.numpy(), return_inverse=True)
            places_BD = torch.from_numpy(where).view_as(rows_BD)
            sums_UD = wide.new_zeros(len(rows), wide.shape[1]).scatter_add_(0, places_BD, wide)
            of_table = _sparse(ctx, rows, sums_UD.to(grad_BD.dtype))
        else:
            sums_VD = wide.new_zeros(ctx.rows, wide.shape[1]).scatter_add_(0, rows_BD, wide)
            of_table = sums_VD.to(grad_BD.dtype)
    if ctx.needs_input_grad[1]:
        of_tokens_BD = grad_BD * weight_VD.gather(0, rows_BD)
        of_weights = _wide(of_tokens_BD).new_zeros(len(batch.ids))
        of_weights = of_weights.index_add_(0, winners_BD.flatten(), _wide(of_tokens_BD).flatten())
        of_weights = of_weights.to(token_weights.dtype)
    return of_table, of_weights


def _gradient(
    ctx: Any,
    ids: Tensor,
    values: Tensor,
    sources: np.ndarray | None = None,
    factors: Tensor | None = None,
    without: int | None = None,
) -> Tensor:
    """The table's gradient (V, D), dense or sparse: each row's sum over its tokens i, in their order.

    What is summed is ``values[sources[i]] * factors[i]``; None stands for i itself and for 1. ``sources`` do
    not fall.
    """
    table_rows = None if ctx.sparse else ctx.rows
    if factors is None:
        order, starts, rows = _turned(ids, sources, without, table_rows)
    else:
        order, starts, rows = _turned(ids, None, without, table_rows)
        factors = factors.index_select(0, torch.from_numpy(order))
        order = order if sources is None else sources.take(order)
    sums = _bags(values, order, starts, factors)
    return _sparse(ctx, rows, sums) if ctx.sparse else sums


def _turned(
    ids: Tensor,
    sources: np.ndarray | None = None,
    without: int | None = None,
    table_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn the rows of tokens round into the tokens of rows.

    Returns the tokens (int32) by row, those of a row in their order, or of each token its entry in
    ``sources``, which do not fall; where each row's begin and, at the end, their number (int32); and the rows
    (int64, rising): all rows of the table where ``table_rows`` says how many it has, else those that occur.
    """
    rows = ids.numpy()
    if sources is None:
        sources = np.arange(len(rows), dtype=np.int32)
    # Row and source in one number, as short as may be: NumPy sorts 70,000 of 32 bits in 0.2 ms, of 64 in 0.4,
    # while a stable order of the rows takes it 6 ms.
    shift = int(sources[-1]).bit_length() if len(sources) else 0
    bits = shift + (int(rows.max()).bit_length() if len(rows) else 0)
    kind: Any = np.uint32 if bits <= 32 else np.uint64
    keys = (rows.astype(kind) << kind(shift)) | sources.astype(kind)
    if without is not None:
        keys = keys[rows != without]
    keys.sort()
    order = (keys & kind((1 << shift) - 1)).astype(np.int32)
    rows = keys >> kind(shift)
    if table_rows is not None:
        starts = np.zeros(table_rows + 1, np.int32)
        np.cumsum(np.bincount(rows.astype(np.int64), minlength=table_rows), out=starts[1:])
        return order, starts, np.arange(table_rows)
    first = np.ones(len(rows), bool)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    begins = np.flatnonzero(first)
    return order, np.append(begins, len(rows)).astype(np.int32), rows[begins].astype(np.int64)


def _bags(values: Tensor, sources: np.ndarray, starts: np.ndarray, factors: Tensor | None = None) -> Tensor:
    """Sums of ``values[sources]`` from each start to the next, in float32 at least, in the values' type."""
    wide = _wide(values)
    if not len(sources):
        return values.new_zeros(len(starts) - 1, values.shape[1])
    sums = F.embedding_bag(
        torch.from_numpy(sources),
        wide,
        torch.from_numpy(starts),
        mode="sum",
        per_sample_weights=None if factors is None else factors.to(wide.dtype),
        include_last_offset=True,
    )
    return sums.to(values.dtype)


def _wide(values: Tensor) -> Tensor:
    return (values if values.dtype == torch.float64 else values.float()).contiguous()


def _sparse(ctx: Any, rows: np.ndarray, sums_UD: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(
        torch.from_numpy(rows).unsqueeze(0),
        sums_UD,
        (ctx.rows, sums_UD.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )
