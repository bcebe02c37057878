"""The convolutional head of Kim 2014 over flat tokens.

Shape letters: B documents, N tokens of all of them, D width of a row, H width of the result, M maps of one
width, K tokens of a window, P rows with zeros between the documents, T windows of all documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError
from textbed.heads.base import Head
from textbed.heads.borders import with_borders


class Convolutional(Head):
    """A convolutional network with one layer and maximum over time (Kim 2014, doi:10.3115/v1/D14-1181).
    H = maps x widths.

    Each map is a linear function of the rows in a window of so many tokens; of each the largest value over a
    document's windows is kept, and goes through a ReLU.

    A window of K tokens may begin K - 1 tokens before the document and end as many after it, with zeros
    there: every word is seen in every place of the window, and a document of one word has windows like any
    other. The released code does so for the widest window, and fills all documents up to the longest; that
    gives windows of nothing but zeros, whose value, the bias, no map of a shorter document can fall below.
    What depends on other documents is left out here.

    Args:
        dim: D, width of the front end's rows.
        widths: tokens of a window, one number or more.
        maps: M, for each of the widths.

    Raises:
        UserError: no width, or a number that is out of range.
    """

    width = "maps"

    def __init__(self, dim: int, widths: Sequence[int], maps: int) -> None:
        super().__init__()
        if not widths or any(width < 1 for width in widths):
            raise UserError(
                f"head.widths is {list(widths)}; expected one number or more, each at least 1 token"
            )
        if maps < 1:
            raise UserError(f"head.maps is {maps}; expected at least 1")
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(width, dim, maps)) for width in widths)
        self.bias = nn.Parameter(torch.empty(len(widths) * maps))
        for weight, bias in zip(self.weights, self.bias.split(maps), strict=True):
            bound = (dim * weight.shape[0]) ** -0.5  # that of nn.Conv1d
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        self.out_dim = len(widths) * maps

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H), the maps of each width in turn."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        parts = []
        for weight_KDM in self.weights:
            border = weight_KDM.shape[0] - 1
            bordered_PD, _ = with_borders(rows_ND, batch, border)
            windows = batch.offsets + border * torch.arange(
                len(batch.offsets), dtype=batch.offsets.dtype, device=batch.offsets.device
            )
            parts.append(max_over_time(bordered_PD, weight_KDM, windows))
        # The same number for all windows and a function that never falls: both can wait until one is left.
        maps_BH = (torch.cat(parts, dim=1) + self.bias).relu()
        return maps_BH * (batch.lengths > 0).unsqueeze(1)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        total = 0
        for weight_KDM in self.weights:
            size, _, maps = weight_KDM.shape
            total += sum(length + size - 1 for length in lengths) * (weight_KDM.numel() + maps)
        return total

    def extra_repr(self) -> str:
        return f"widths={[len(weight) for weight in self.weights]}, maps={self.weights[0].shape[2]}"


def max_over_time(values_PD: Tensor, weight_KDM: Tensor, offsets: Tensor) -> Tensor:
    """Of each map the largest value over the windows of each document, (B, M).

    Window t is rows t to t + K - 1 of the values, and ``offsets`` (B + 1,) int32 say where each document's
    windows begin, as in a TokenBatch; T = P - K + 1 in all. Rows are multiplied by one slice of the weight
    after the other: laid out as windows they would take K times the memory, and nn.Conv1d takes about twice
    as long on the CPU. Going back only the windows that won are looked at, B x M of T x M: on 256 reviews of
    270 words a step takes a quarter of nn.Conv1d's time. Stays in the values' precision under autocast.
    """
    return _MaxOverTime.apply(values_PD, weight_KDM.to(values_PD.dtype), offsets)


class _MaxOverTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_PD: Tensor, weight_KDM: Tensor, offsets: Tensor) -> Tensor:
        count = values_PD.shape[0] - weight_KDM.shape[0] + 1
        with torch.autocast(values_PD.device.type, enabled=False):
            products_TM = values_PD[:count] @ weight_KDM[0]
            for place, weight_DM in enumerate(weight_KDM[1:], start=1):
                rows = values_PD[place : place + count]
                torch.addmm(products_TM, rows, weight_DM, out=products_TM)
        windows = torch.arange(count, dtype=offsets.dtype, device=offsets.device)
        # embedding_bag's fourth result is the window that won, which F.embedding_bag keeps to itself.
        pooled_BM, _, _, winner_BM = torch.embedding_bag(
            products_TM, windows, offsets, mode=2, include_last_offset=True
        )
        # A document without windows has no winner, -1 on a GPU; its values are 0 whatever the gradient.
        ctx.save_for_backward(values_PD, weight_KDM, winner_BM.clamp_(min=0))
        return pooled_BM

    @staticmethod
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values_PD, weight_KDM, winner_BM = ctx.saved_tensors
        count = values_PD.shape[0] - weight_KDM.shape[0] + 1
        if not count:  # windows of one token, and nothing but empty documents
            return torch.zeros_like(values_PD), torch.zeros_like(weight_KDM), None
        grad_values, grad_weight = None, None
        if ctx.needs_input_grad[1]:
            # A map's gradient is the sum of the windows that won it, each times its share of the gradient.
            grad_weight = torch.empty_like(weight_KDM)
            winner_MB, share_MB = winner_BM.t().contiguous(), grad_BM.t().contiguous()
            for place in range(len(weight_KDM)):
                rows = values_PD[place : place + count]
                grad_weight[place] = _sums(winner_MB, rows, share_MB).t()
        if ctx.needs_input_grad[0]:
            # A window's gradient is the sum of the maps that it won, so sort them by window.
            grad_values = torch.zeros_like(values_PD)
            won, order = winner_BM.flatten().sort()
            bounds = torch.searchsorted(won, torch.arange(count + 1, device=won.device))
            maps_won, share = order % weight_KDM.shape[2], grad_BM.flatten()[order]
            for place, weight_DM in enumerate(weight_KDM):
                grad_values[place : place + count] += _sums(maps_won, weight_DM.t(), share, bounds)
        return grad_values, grad_weight, None


def _sums(ids: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Sums of the rows named by each bag of ids, times their weights, in float32 at least."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    return F.embedding_bag(
        ids,
        rows.to(wide).contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=weights.to(wide),
        include_last_offset=offsets is not None,
    )
