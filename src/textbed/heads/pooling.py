"""Pooling heads: what can be made of a document's rows without a trained parameter, and without their order.

Only ``Hierarchical`` looks at neighbours. Shape letters: B documents, N tokens of all of them, D width of a
row, H width of the result, W windows of all documents together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch, wide
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError, nearest
from textbed.heads.base import FixedHead, Head

Mode = Literal["sum", "mean", "max", "min"]

# Below this share of the largest power an odd root is replaced by a straight line, see PowerMean.
STEEP = 1e-6
# Columns of a random projection that are made at a time: 256 MiB for 256 reviews of 256 words.
_CHUNK = 1024


class Pooling(FixedHead):
    """One or more reductions of the rows (B, D), side by side: H = D x modes.

    The mean is the deep averaging network of Iyyer et al. 2015 without its layers, and fastText's document
    vector (Joulin et al. 2017); several side by side are SWEM-concat (Shen et al. 2018).

    Args:
        dim: D, width of the front end's rows.
        modes: one or more of sum, mean, max and min. Without min the rows of the tokens are not made where
            the front end can do without them.

    Raises:
        UserError: no mode, or one that does not exist.
    """

    def __init__(self, dim: int, modes: Sequence[str]) -> None:
        super().__init__()
        choices = get_args(Mode)
        if not modes or isinstance(modes, str):
            raise UserError(
                f"head.modes is {modes!r}; expected a list of one or more of {', '.join(choices)}"
            )
        for mode in modes:
            if mode not in choices:
                raise UserError(
                    f"head.modes has '{mode}'; expected {', '.join(choices)}.{nearest(mode, choices)}"
                )
        self.modes = [cast(Mode, mode) for mode in modes]
        self.out_dim = dim * len(self.modes)

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H): what each mode makes of each document, in the order of ``modes``."""
        if self.pools is not None:
            return torch.cat([embedding.pool(batch, mode) for mode in self.pools], dim=1)
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        return torch.cat([_reduce(batch, rows_ND, mode) for mode in self.modes], dim=1)

    @property
    def pools(self) -> Sequence[Reduction] | None:
        return None if "min" in self.modes else cast(list[Reduction], self.modes)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        return sum(lengths) * self.out_dim

    def extra_repr(self) -> str:
        return f"modes={self.modes}"


def _reduce(batch: TokenBatch, values_ND: Tensor, mode: Mode) -> Tensor:
    return -batch.reduce(-values_ND, "max") if mode == "min" else batch.reduce(values_ND, mode)


class Hierarchical(FixedHead):
    """SWEM-hier (Shen et al. 2018, arXiv:1805.09843): the mean of every window of neighbouring rows, then the
    maximum over a document's windows. H = D.

    A window lies within its document and moves one token at a time; a document that is shorter than a window
    is one window. The mean over windows that reach into padding, as in the released code, would depend on how
    much of it there is.

    Args:
        dim: D, width of the front end's rows.
        window: n, tokens of a window; 1 is the maximum, and one of the longest document's length the mean.

    Raises:
        UserError: a window of no tokens.
    """

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        if window < 1:
            raise UserError(f"head.window is {window}; expected at least 1 token")
        self.window = window
        self.out_dim = dim

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, D): for each column the mean of the window where it is largest."""
        batch = batch.without(embedding.padding_idx)
        tokens, windows = self._windows(batch)
        # One embedding bag for all windows: slices that are added up would each fill (N, D) going back.
        means_WD = F.embedding_bag(
            tokens.ids, embedding(batch), tokens.offsets, mode="mean", include_last_offset=True
        )
        return windows.reduce(means_WD, "max")

    def _windows(self, batch: TokenBatch) -> tuple[TokenBatch, TokenBatch]:
        """Positions of tokens by window, and windows by document."""
        offsets, lengths = batch.offsets, batch.lengths
        windows_B = (lengths - self.window + 1).clamp(min=1).minimum(lengths)  # none in an empty document
        before = F.pad(windows_B.cumsum(0, dtype=offsets.dtype), (1, 0))
        # The window of number w in document b begins w - before[b] tokens after its first.
        count = int(before[-1])
        start_W = torch.arange(count, dtype=offsets.dtype, device=offsets.device) + torch.repeat_interleave(
            offsets[:-1] - before[:-1], windows_B, output_size=count
        )
        size_W = torch.repeat_interleave(lengths.clamp(max=self.window), windows_B, output_size=count)
        ends = F.pad(size_W.cumsum(0, dtype=offsets.dtype), (1, 0))
        total = int(ends[-1])
        position = torch.arange(total, dtype=offsets.dtype, device=offsets.device)
        position += torch.repeat_interleave(start_W - ends[:-1], size_W, output_size=total)
        return TokenBatch(position, ends), TokenBatch(start_W, before)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        windows = [(max(length - self.window + 1, 1), min(length, self.window)) for length in lengths]
        return self.out_dim * sum(count * size + count for count, size in windows)

    def extra_repr(self) -> str:
        return f"window={self.window}"


class PowerMean(Head):
    """Power means of the rows, side by side (Rücklé et al. 2018, arXiv:1803.01400): H = D x powers.

    The mean of power p is the p-th root of the mean of the p-th powers, in each column by itself; 1 is the
    mean, inf the maximum and -inf the minimum. Powers of negative numbers:

    - Even p: the power loses the sign, and the mean is at least 0.
    - Odd p: the power keeps the sign, and so does the root, which is taken as a real number. The paper's
      released code takes the real part of the complex principal root, which is the same where the mean of
      the powers is not negative, but turns -1 into cos(pi / p): 1/2 at p = 3, as if it were +1/8. Such a
      fold of two values on one helps nobody, and is left out.
    - Any other p has no real power of a negative number. The code takes complex ones; here the sign is kept,
      as if p were odd: sign(x) |x|^p.

    An odd root rises vertically at 0, and a gradient through it would be without bound. Where the mean of the
    powers is below a millionth of the largest it is replaced by the straight line that joins the two sides.

    Args:
        dim: D, width of the front end's rows.
        powers: one or more numbers of at least 1, inf or -inf. Below 1 the gradient at 0 is infinite, and
            negative powers are infinite there themselves.

    Raises:
        UserError: no power, or one that is out of range.
    """

    def __init__(self, dim: int, powers: Sequence[float]) -> None:
        super().__init__()
        if not powers:
            raise UserError("head.powers is empty; expected a list such as [1, 3, inf, -inf]")
        for power in powers:
            if math.isnan(power) or (power < 1 and power != -math.inf):
                raise UserError(f"head.powers has {power}; expected numbers of at least 1, inf or -inf")
        self.powers = [float(power) for power in powers]
        self.out_dim = dim * len(self.powers)

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H): the mean of each power, in the order of ``powers``."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        plain: dict[float, Mode] = {1.0: "mean", math.inf: "max", -math.inf: "min"}
        parts = [
            _reduce(batch, rows_ND, plain[power]) if power in plain else _power_mean(batch, rows_ND, power)
            for power in self.powers
        ]
        return torch.cat(parts, dim=1)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        return sum(lengths) * self.out_dim

    def extra_repr(self) -> str:
        return f"powers={self.powers}"


def _power_mean(batch: TokenBatch, rows_ND: Tensor, power: float) -> Tensor:
    values_ND = wide(rows_ND)
    # In shares of the largest, since 0.01 to the 12th is nothing in float32. The result is homogeneous: the
    # gradient that goes by way of the largest is zero.
    tiny = torch.finfo(values_ND.dtype).tiny
    largest_BD = batch.reduce(values_ND.detach().abs(), "max").clamp(min=tiny)
    share_ND = values_ND / largest_BD[batch.documents]
    if power % 2 == 0:
        raised_ND = share_ND**power
    else:
        raised_ND = share_ND * share_ND.abs().clamp(min=tiny) ** (power - 1)
    mean_BD = batch.reduce(raised_ND, "mean")
    root_BD = mean_BD * mean_BD.abs().clamp(min=STEEP) ** (1 / power - 1)
    return (largest_BD * root_BD).to(rows_ND.dtype)


class LogSumExp(Head):
    """A soft maximum in each column (Pinheiro & Collobert 2015, arXiv:1411.6228): T log(mean(exp(x / T))).
    H = D.

    The mean, not the sum, under the logarithm: a document read twice over gives what it gave once.

    Args:
        dim: D, width of the front end's rows.
        temperature: T above 0, in units of the rows' values: far below their spread it is the maximum, far
            above it the mean.

    Raises:
        UserError: a temperature that is not above 0.
    """

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"head.temperature is {temperature}; expected a number above 0")
        self.temperature = temperature
        self.out_dim = dim

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, D)."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        values_ND = wide(rows_ND)
        largest_BD = batch.reduce(values_ND.detach(), "max")  # taken out before the exponential overflows
        mean_BD = batch.reduce(((values_ND - largest_BD[batch.documents]) / self.temperature).exp(), "mean")
        soft_BD = largest_BD + self.temperature * mean_BD.where(mean_BD > 0, 1).log()
        return soft_BD.to(rows_ND.dtype)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        return 2 * sum(lengths) * self.out_dim  # the maximum and the mean

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class RandomProjection(Head):
    """BOREP (Wieting & Kiela 2019, arXiv:1901.10444): rows times a random matrix that is not trained, and the
    maximum over the document in each of its columns. H = projections.

    Entries are uniform between -1/sqrt(D) and 1/sqrt(D). Time goes with N x D x projections, memory with
    N x 1,024, since columns are made a thousand at a time.

    Args:
        dim: D, width of the front end's rows.
        projections: columns of the matrix.

    Raises:
        UserError: no column.
    """

    width = "projections"

    def __init__(self, dim: int, projections: int) -> None:
        super().__init__()
        if projections < 1:
            raise UserError(f"head.projections is {projections}; expected at least 1")
        self.weight = nn.Parameter(torch.empty(projections, dim), requires_grad=False)
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)
        self.out_dim = projections

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, projections)."""
        batch = batch.without(embedding.padding_idx)
        rows_ND = embedding(batch)
        parts = [batch.reduce(F.linear(rows_ND, part), "max") for part in self.weight.split(_CHUNK)]
        return torch.cat(parts, dim=1)

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        return sum(lengths) * (self.weight.numel() + self.out_dim)

    def extra_repr(self) -> str:
        return f"projections={self.out_dim}"
