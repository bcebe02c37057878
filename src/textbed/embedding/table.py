"""The front end: what turns token ids into rows. Here its base and the plain table.

Shape letters: B documents, N tokens of all of them, V rows of the table, D width of a row.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch
from textbed.embedding import bag
from textbed.errors import UserError, nearest

Initialisation = Literal["normal", "uniform", "zeros"]

DEFAULT_SCALE = 0.1
"""Standard deviation of new rows where there are no vectors to take it from. nn.Embedding's own 1.0 drowns a
mean of many rows in the noise of rare words that training hardly moves."""


class FrontEnd(nn.Module):
    """Turns token ids into rows of width D. Heads see nothing else of it."""

    dim: int
    """D, the width of a row."""
    padding_idx: int | None = None
    """The id that stands for no token; heads do not see it wherever it comes in a document."""

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        """What the front end makes of a batch before a head reads it; the model calls it once for each batch.

        It may leave tokens out and give them weights. Here the batch stays as it is.
        """
        return batch

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight where the batch has weights."""
        raise NotImplementedError

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, D); zeros for an empty document.

        This plain way makes (N, D) first. A front end that can do without it says so by overriding this.
        """
        batch = batch.without(self.padding_idx)
        return batch.reduce(self(batch), mode)

    def penalty(self, batch: TokenBatch) -> Tensor | None:
        """What the loss of a training batch has besides that of its documents; None for nothing."""
        return None


class Table(FrontEnd):
    """One row per token: random, frozen or fine-tuned.

    Rows are drawn at random for the whole table first, in the order of ids, and vectors are then laid over
    them: the same seed gives the same random numbers whichever rows have vectors, and whether or not the
    table is trained.

    Args:
        num_embeddings: V, rows of the table.
        dim: D, width of a row; None takes the vectors' width.
        vectors: (V, D) float, a vector for each row that has one.
        found: (V,) bool, which rows have a vector; None means all.
        appended: how many of the last rows stand for words that training never meets. They have vectors, and
            the rows before them are what they would be without them, random ones included.
        trainable: whether training moves the table. A table that is not trained gets no gradient, no
            optimizer state and stays as it is to the last bit.
        init: how rows without a vector are drawn: normal, uniform or zeros.
        scale: standard deviation of normal, or largest magnitude of uniform rows. None stands for the spread
            of the vectors where there are some (uniform: the width that gives the same spread), else for
            ``DEFAULT_SCALE``.
        padding_idx: the row that is zero, is never trained, and is not counted by ``pool``.
        max_norm: rows longer than this are shortened to it when they are looked up, in place as nn.Embedding
            does it; all rows are shortened once at the start, and a frozen table is not touched after that.
        norm_type: p of the norm that ``max_norm`` speaks of.
        scale_grad_by_freq: divide the gradient of a row by how often it comes in the batch.
        sparse: give sparse gradients, for SGD, SparseAdam or Adagrad without weight decay.

    Raises:
        UserError: a setting that cannot be, or vectors of another size than the table.
    """

    def __init__(
        self,
        num_embeddings: int,
        dim: int | None = None,
        *,
        vectors: Tensor | None = None,
        found: Tensor | None = None,
        appended: int = 0,
        trainable: bool = True,
        init: Initialisation = "normal",
        scale: float | None = None,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if vectors is not None:
            dim = vectors.shape[1] if dim is None else dim
            if tuple(vectors.shape) != (num_embeddings, dim):
                raise UserError(
                    f"embedding.dim: the table is {num_embeddings} x {dim}, but the vectors are "
                    f"{vectors.shape[0]} x {vectors.shape[1]}; "
                    "leave embedding.dim null to take the vectors' width"
                )
        if dim is None:
            raise UserError("embedding.dim is null; without vectors there is no width to take, so give one")
        if dim < 1:
            raise UserError(f"embedding.dim is {dim}; expected a width of at least 1")
        if init not in get_args(Initialisation):
            choices = get_args(Initialisation)
            raise UserError(
                f"embedding.init is '{init}'; expected one of {', '.join(choices)}.{nearest(init, choices)}"
            )
        if scale is not None and scale < 0:
            raise UserError(f"embedding.scale is {scale}; expected null or a number from 0 up")
        if padding_idx is not None and not 0 <= padding_idx < num_embeddings:
            raise UserError(
                f"embedding.padding_idx is {padding_idx}; expected auto, null or a row from 0 to "
                f"{num_embeddings - 1}"
            )
        if max_norm is not None and max_norm <= 0:
            raise UserError(f"embedding.max_norm is {max_norm}; expected null or a number above 0")
        if sparse and scale_grad_by_freq:
            raise UserError(
                "embedding.sparse and embedding.scale_grad_by_freq are both true; PyTorch has no sparse "
                "gradient that is scaled by frequency, so set one of them to false"
            )

        if appended:
            assert vectors is not None
            own = num_embeddings - appended
            weight = _initial_rows(
                own, dim, vectors[:own], None if found is None else found[:own], init, scale
            )
            weight = torch.cat([weight, vectors[own:].to(weight.dtype)])
        else:
            weight = _initial_rows(num_embeddings, dim, vectors, found, init, scale)
        if padding_idx is not None:
            weight[padding_idx] = 0
        if max_norm is not None:
            torch.embedding_renorm_(weight, torch.arange(num_embeddings), max_norm, norm_type)
        self.dim = dim
        self.padding_idx = padding_idx
        self.table = nn.Embedding.from_pretrained(
            weight,
            freeze=not trainable,
            padding_idx=padding_idx,
            # Looking up shortens in place; rows that nobody trains were shortened above, and must not change
            # again.
            max_norm=max_norm if trainable else None,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
        )

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight where the batch has weights."""
        rows_ND = self.table(batch.ids)
        return rows_ND if batch.weights is None else rows_ND * batch.weights.unsqueeze(1)

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, D), without making (N, D)."""
        table = self.table
        if table.weight.requires_grad and table.scale_grad_by_freq:
            # In torch 2.13 embedding_bag's own is wrong on the CPU, dividing one token's gradient by the
            # count of another (pytorch#190063), and left out on MPS.
            return super().pool(batch, mode)
        if table.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(table.weight, batch.ids, table.max_norm, table.norm_type)
        return bag.pool(table.weight, batch, mode, padding_idx=self.padding_idx, sparse=table.sparse)

    def extra_repr(self) -> str:
        return f"trainable={self.table.weight.requires_grad}"


def _initial_rows(
    num_embeddings: int,
    dim: int,
    vectors: Tensor | None,
    found: Tensor | None,
    init: Initialisation,
    scale: float | None,
) -> Tensor:
    """Draw (V, D) rows and lay the vectors over those that have one."""
    weight = torch.empty(num_embeddings, dim)
    if init == "normal":
        weight.normal_()
    elif init == "uniform":
        weight.uniform_(-1, 1)
    else:
        weight.zero_()
    if vectors is None:
        return weight.mul_(DEFAULT_SCALE if scale is None else scale)
    if found is None:
        found = torch.ones(num_embeddings, dtype=torch.bool)
    known = vectors[found].to(weight.dtype)
    if scale is None:
        scale = float(known.std(correction=0)) if known.numel() else DEFAULT_SCALE
        if init == "uniform":
            scale *= 3**0.5  # a uniform number from -a to a has the standard deviation a / sqrt(3)
    weight.mul_(scale)
    weight[found] = known
    return weight
