"""A table whose rows are divided among the processes of a run: for one that does not fit a device.

Every process keeps a block of rows, with their gradient and optimizer state. For a batch it asks the owners
for the distinct rows it needs, and works on the small table of these; their gradients go back the same way.
What is sent in a step is twice the rows of a batch, however large the table (the model parallelism of
embedding tables in Naumov et al. 2019, arXiv:1906.00091).

Shape letters: V rows of the table, D width of a row, U distinct rows that a batch needs, R rows that all
processes ask of this one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from textbed.batch import TokenBatch

WHOLE_ROWS = "whole_rows"
"""Attribute of a parameter that is one process's block of rows: how many rows the whole has."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which rows of a table (V, D) a process keeps: blocks of equal size, but the last may be shorter.

    Args:
        rows: V.
        rank, size: which of how many processes.
    """

    rows: int
    rank: int
    size: int

    @property
    def block(self) -> int:
        """Rows that each process but the last keeps."""
        return -(-self.rows // self.size)

    @property
    def kept(self) -> slice:
        return slice(min(self.rank * self.block, self.rows), min((self.rank + 1) * self.block, self.rows))

    def fetch(
        self, weight: Tensor, batch: TokenBatch, *, padding_idx: int | None = None, sparse: bool = False
    ) -> tuple[Tensor, TokenBatch]:
        """The rows that a batch needs, (U, D), and the batch with their numbers in place of its ids.

        All processes of the run have to call it together. The gradient of ``weight``, this process's rows, is
        the mean over the processes, as DDP makes it of other parameters; that of row ``padding_idx`` is zero.
        """
        ids_U, numbers = torch.unique(batch.ids, return_inverse=True)
        rows_UD = _Fetch.apply(weight, ids_U.long(), self, padding_idx, sparse)
        return rows_UD, dataclasses.replace(batch, ids=numbers.to(batch.ids.dtype))

    def gather(self, part: Tensor) -> Tensor:
        """The whole of a tensor that is divided by rows, in the memory of process 0; elsewhere (0, D).

        All processes of the run have to call it together.
        """
        padded = part.new_zeros(self.block, *part.shape[1:])
        padded[: len(part)] = part.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, parts)
        if parts is None:
            return part.new_empty(0, *part.shape[1:])
        return torch.cat([one.cpu() for one in parts])[: self.rows]


class _Fetch(torch.autograd.Function):
    """The rows of distinct ids, rising, from the processes that keep them."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids_U: Tensor, shard: Shard, padding_idx: int | None, sparse: bool
    ) -> Tensor:
        wanted = torch.bincount(ids_U // shard.block, minlength=shard.size)
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted)
        ctx.wanted, ctx.asked = wanted.tolist(), asked.tolist()
        ids_R = ids_U.new_empty(sum(ctx.asked))
        dist.all_to_all_single(ids_R, ids_U, ctx.asked, ctx.wanted)
        ids_R -= shard.kept.start
        ctx.ids_R, ctx.shape, ctx.shard, ctx.sparse = ids_R, weight.shape, shard, sparse
        ctx.padding = None if padding_idx is None else padding_idx - shard.kept.start
        rows_UD = weight.new_empty(len(ids_U), weight.shape[1])
        dist.all_to_all_single(rows_UD, weight.index_select(0, ids_R), ctx.wanted, ctx.asked)
        return rows_UD

    @staticmethod
    def backward(ctx: Any, grad_UD: Tensor) -> Any:
        ids_R, grad_RD = ctx.ids_R, grad_UD.new_empty(len(ctx.ids_R), grad_UD.shape[1])
        dist.all_to_all_single(grad_RD, grad_UD.contiguous(), ctx.asked, ctx.wanted)
        grad_RD /= ctx.shard.size
        if ctx.padding is not None:
            grad_RD[ids_R == ctx.padding] = 0
        if ctx.sparse:
            gradient = torch.sparse_coo_tensor(ids_R.unsqueeze(0), grad_RD, ctx.shape, check_invariants=False)
        else:
            gradient = grad_RD.new_zeros(ctx.shape).index_add_(0, ids_R, grad_RD)
        return gradient, None, None, None, None


def divide(weight: nn.Parameter, shard: Shard) -> nn.Parameter:
    """This process's rows of a table, in memory of their own."""
    part = nn.Parameter(weight.detach()[shard.kept].clone(), requires_grad=weight.requires_grad)
    setattr(part, WHOLE_ROWS, shard.rows)
    return part


def whole_size(parameter: Tensor) -> int:
    """How many numbers a parameter has, those that other processes keep among them."""
    return getattr(parameter, WHOLE_ROWS, len(parameter) if parameter.ndim else 1) * parameter[:1].numel()
