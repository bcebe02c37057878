"""The front end: what turns token ids into rows. Here its base and the plain table.

Shape letters: B documents, N tokens of all of them, V rows of the table, D width of a row, M rows without a
pretrained vector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch
from textbed.embedding import bag
from textbed.embedding.sharding import Shard, divide
from textbed.errors import UserError, nearest

Initialisation = Literal[
    "normal", "uniform", "zeros", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"
]
Missing = Literal["random", "zeros", "mean", "shared"]

DEFAULT_SCALE = 0.1
"""Standard deviation of new rows where there are no vectors to take it from. nn.Embedding's own 1.0 drowns a
mean of many rows in the noise of rare words that training hardly moves."""

OWN_SCALE: dict[str, Callable[[int, int], float]] = {
    "xavier_normal": lambda rows, width: math.sqrt(2 / (rows + width)),
    "xavier_uniform": lambda rows, width: math.sqrt(6 / (rows + width)),
    "kaiming_normal": lambda rows, width: math.sqrt(1 / width),
    "kaiming_uniform": lambda rows, width: math.sqrt(3 / width),
}
"""Initialisations whose scale follows from V and D: standard deviation (normal) or bound (uniform)."""


class FrontEnd(nn.Module):
    """Turns token ids into rows of width D. Heads see nothing else of it."""

    dim: int
    """D, the width of a row."""
    padding_idx: int | None = None
    """The id that stands for no token; heads do not see it wherever it comes in a document."""
    row_by_id: bool = False
    """Whether a token's row follows from its id and weight alone, in training too: a head may then look alike
    tokens up once. What stands around a token, or chance, must play no part in it or its gradient."""

    @property
    def fixed(self) -> bool:
        """Whether a document always comes out the same: nothing in here learns, and nothing is drawn.

        The recipe then lets a pooling head pool each document once. No front end is unless it says so.
        """
        return False

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

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        """Multiply-adds of the forward pass over documents of so many tokens, each at least 1, counted as
        ``Head.multiply_adds`` does: none for a lookup.

        It is a sum over documents and over tokens. Nothing is left out in them, as in training there may be.

        Args:
            lengths: of the documents.
            counts: (V,) how often each token occurs in them.
            pools: the modes in which the head asks for ``pool``, once each; the reduction of rows (D wide) is
                the head's to count. None where it reads rows.
        """
        raise NotImplementedError


class Table(FrontEnd):
    """One row per token: random, frozen, fine-tuned, or first the one and then the other.

    Rows are drawn at random for the whole table first, in the order of ids, and vectors are then laid over
    them: the same seed gives the same random numbers whichever rows have vectors, what becomes of the others,
    and whether or not the table is trained.

    Args:
        num_embeddings: V, rows of the table.
        dim: D, width of a row; None takes the vectors' width.
        vectors: (V, D) float, a vector for each row that has one.
        found: (V,) bool, which rows have a vector; None means all.
        appended: how many of the last rows stand for words that training never meets. They have vectors, and
            the rows before them are what they would be without them, random ones included.
        trainable: whether training moves the table. A table that is not trained gets no gradient, no
            optimizer state and stays as it is to the last bit.
        missing: rows without a vector, where there are vectors. ``random``: drawn as ``init`` says;
            ``zeros``; ``mean``: the mean of the vectors; ``shared``: all these words have one row, drawn as
            ``init`` says, and train it together.
        train_missing: of a table that is not trained, train the rows without a vector alone. They lie in a
            small table of their own (M + 1, D), so that the others cost no gradient and no optimizer state.
        frozen_epochs, frozen_steps: a trained table stands still until it was told by ``set_clock`` that both
            so many epochs and so many optimizer steps have passed: gradual unfreezing in two stages, Howard
            & Ruder 2018, arXiv:1801.06146.
        init: how rows are drawn: normal, uniform, zeros, or with a scale of its own (Glorot & Bengio 2010,
            He et al. 2015, arXiv:1502.01852; as torch.nn.init with a gain of 1): xavier_normal, a standard
            deviation of sqrt(2 / (V + D)); xavier_uniform, a bound of sqrt(6 / (V + D)); kaiming_normal, a
            standard deviation of 1 / sqrt(D), which gives rows a length of about 1; kaiming_uniform, a bound
            of sqrt(3 / D).
        scale: standard deviation of normal, or largest magnitude of uniform rows. None stands for the spread
            of the vectors where there are some (uniform: the width that gives the same spread), else for
            ``DEFAULT_SCALE``.
        padding_idx: the row that is zero, is never trained, and is not counted by ``pool``.
        max_norm: rows longer than this are shortened to it when they are looked up, in place as nn.Embedding
            does it, but a row that was shortened is not shortened again until training has moved it; all rows
            are shortened once at the start, and a frozen table is not touched after that.
        norm_type: p of the norm that ``max_norm`` speaks of.
        scale_grad_by_freq: divide the gradient of a row by how often it comes in the batch.
        sparse: give sparse gradients, for SGD, SparseAdam or Adagrad without weight decay.

    Raises:
        UserError: a setting that cannot be, or vectors of another size than the table.
    """

    alias: Tensor | None
    slot: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        dim: int | None = None,
        *,
        vectors: Tensor | None = None,
        found: Tensor | None = None,
        appended: int = 0,
        trainable: bool = True,
        missing: Missing = "random",
        train_missing: bool = False,
        frozen_epochs: int = 0,
        frozen_steps: int = 0,
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
        for key, value, choices in (
            ("init", init, get_args(Initialisation)),
            ("missing", missing, get_args(Missing)),
        ):
            if value not in choices:
                raise UserError(
                    f"embedding.{key} is '{value}'; expected one of {', '.join(choices)}."
                    f"{nearest(value, choices)}"
                )
        if scale is not None and scale < 0:
            raise UserError(f"embedding.scale is {scale}; expected null or a number from 0 up")
        if scale is not None and init in OWN_SCALE:
            raise UserError(f"embedding.scale is {scale}; embedding.init={init} has its own, so give null")
        if missing != "random" and vectors is None:
            raise UserError(
                f"embedding.missing is {missing}; without vectors all rows are drawn, so leave it random"
            )
        if train_missing and trainable:
            raise UserError(
                "embedding.train_missing and embedding.trainable are both true; a table that is trained "
                "trains all its rows, so set one of them to false"
            )
        if (frozen_epochs or frozen_steps) and not trainable:
            raise UserError(
                "embedding.trainable is false, so the table never thaws; "
                "set embedding.frozen_epochs and embedding.frozen_steps to 0"
            )
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
                own, dim, vectors[:own], None if found is None else found[:own], init, scale, missing
            )
            weight = torch.cat([weight, vectors[own:].to(weight.dtype)])
        else:
            weight = _initial_rows(num_embeddings, dim, vectors, found, init, scale, missing)
        if padding_idx is not None:
            weight[padding_idx] = 0
        if max_norm is not None:
            _shorten(weight, None, max_norm, norm_type)
        self.shard: Shard | None = None
        self.dim = dim
        self.padding_idx = padding_idx
        self.frozen_epochs, self.frozen_steps = frozen_epochs, frozen_steps
        self.frozen = self.thaws
        self.gradient_settings: dict[str, Any] = {"scale_grad_by_freq": scale_grad_by_freq, "sparse": sparse}
        self._norm_settings: dict[str, Any] = {"max_norm": max_norm, "norm_type": norm_type}

        without = torch.zeros(num_embeddings, dtype=torch.bool)
        if vectors is not None and found is not None:
            without = ~found
        if padding_idx is not None:
            without[padding_idx] = False
        # Kept in checkpoints, (V,) int32: the row of ``table`` that stands for each id, where some share one,
        # and the row of ``learnt`` for each id, 0 for ids without one.
        alias = slot = None
        self.learnt: Table | None = None
        if missing == "shared" and bool(without.any()):
            ids = torch.arange(num_embeddings, dtype=torch.int32)
            alias = torch.where(without, ids[without][0], ids)
            without &= alias == ids
        if train_missing and bool(without.any()):
            slot = without.cumsum(0).int() * without
            self.learnt = self._make_learnt(torch.cat([weight.new_zeros(1, dim), weight[without]]))
            weight[without] = 0
        self.register_buffer("alias", alias)
        self.register_buffer("slot", slot)
        # Not where it counts how often a token comes in the batch.
        self.row_by_id = not scale_grad_by_freq
        self.table = nn.Embedding.from_pretrained(
            weight,
            freeze=not trainable,
            padding_idx=padding_idx,
            # Looking up shortens in place; rows that nobody trains were shortened above, and must not change
            # again.
            max_norm=max_norm if trainable else None,
            norm_type=norm_type,
            **self.gradient_settings,
        )

    def _make_learnt(self, rows: Tensor) -> Table:
        """The table of the rows (M + 1, D) that are trained alone, the first for ids without one."""
        settings = self._norm_settings | self.gradient_settings
        return Table(len(rows), vectors=rows, init="zeros", padding_idx=0, **settings)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Become ready to load ``state``, of a table that knew which rows have a vector where this does not.

        What it has and this lacks: rows that ids share, and those that are trained alone.
        """
        for name in ("alias", "slot"):
            if name in state and getattr(self, name) is None:
                self.register_buffer(name, torch.empty_like(state[name]))
        rows = state.get("learnt.table.weight")
        if rows is not None and self.learnt is None:
            self.learnt = self._make_learnt(torch.empty_like(rows))

    @property
    def fixed(self) -> bool:
        """Whether nothing in here learns: a table draws nothing at random."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    # ---- divided among processes

    def divide(self, rank: int, size: int) -> None:
        """Keep but this process's block of the rows; ``size`` processes have to be of one run, and in step.

        ``state_dict`` goes on giving the whole table, in process 0, and has to be called in all of them;
        ``load_state_dict`` takes the whole. There is no ``max_norm`` and no ``scale_grad_by_freq`` then.
        """
        assert self.table.max_norm is None
        assert not self.table.scale_grad_by_freq
        shard = self.shard = Shard(self.table.num_embeddings, rank, size)
        self.table.weight = divide(self.table.weight, shard)

        def gather(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
            state[f"{prefix}table.weight"] = shard.gather(state[f"{prefix}table.weight"])

        def take(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
            name = f"{prefix}table.weight"
            state[name] = state[name][shard.kept]

        self.register_state_dict_post_hook(gather)
        self.register_load_state_dict_pre_hook(take)

    # ---- thawing

    @property
    def thaws(self) -> bool:
        """Whether the table begins frozen and is trained later."""
        return self.frozen_epochs > 0 or self.frozen_steps > 0

    def set_clock(self, epoch: int, step: int) -> None:
        """Say how many epochs and optimizer steps have passed; a table that thaws goes by that alone."""
        self.frozen = epoch < self.frozen_epochs or step < self.frozen_steps

    def touch(self) -> Tensor:
        """A zero that hangs on the table, for who waits for a gradient of every parameter, as DDP does."""
        weight = self.table.weight
        none = torch.zeros(0, dtype=torch.int32, device=weight.device)
        return F.embedding(none, weight, sparse=self.table.sparse).sum()

    # ---- rows

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight where the batch has weights."""
        batch = self.aliased(batch)
        if self.learnt is None:
            return self._look_up(batch)
        return self._look_up(batch) + self.learnt(self._slots(batch))

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of each document's rows, (B, D), without making (N, D)."""
        batch = self.aliased(batch)
        if self.learnt is None:
            return self._pool(batch, mode)
        batch = batch.without(self.padding_idx)
        if mode == "max":  # of what both tables give together
            return batch.reduce(self(batch), mode)
        learnt_BD = self.learnt.pool(self._slots(batch), "sum")  # which reads none but its own tokens
        if mode == "mean":
            learnt_BD = learnt_BD / batch.lengths.clamp(min=1).unsqueeze(1)
        return self._pool(batch, mode) + learnt_BD

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        if self.slot is None or pools is None:
            return 0
        slot = self.slot if self.alias is None else self.slot.index_select(0, self.alias)
        # What ``learnt`` has of the documents is reduced by itself.
        return sums_among(pools) * int(counts[slot > 0].sum()) * self.table.embedding_dim

    def aliased(self, batch: TokenBatch) -> TokenBatch:
        """The batch with one id for all words that share a row; itself where none do."""
        if self.alias is None:
            return batch
        return dataclasses.replace(batch, ids=self.alias.index_select(0, batch.ids))

    def _slots(self, batch: TokenBatch) -> TokenBatch:
        assert self.slot is not None
        return dataclasses.replace(batch, ids=self.slot.index_select(0, batch.ids))

    def _weight(self, batch: TokenBatch) -> Tensor:
        """(V, D), its rows for the batch shortened; cut off from the table where that is frozen for now."""
        table = self.table
        if self.frozen:
            return table.weight.detach()
        if table.max_norm is not None:
            # Through .data, of which autograd hears nothing: a batch that is looked up twice finds its rows
            # short enough the second time, so what the first has kept for its gradient still holds.
            _shorten(table.weight.data, batch.ids.unique(), table.max_norm, table.norm_type)
        return table.weight

    def _look_up(self, batch: TokenBatch) -> Tensor:
        weight, table = self._weight(batch), self.table
        if self.shard is not None:
            fetch = self.shard.fetch
            return bag.look_up(*fetch(weight, batch, padding_idx=self.padding_idx, sparse=table.sparse))
        if not table.scale_grad_by_freq:
            return bag.look_up(weight, batch, padding_idx=self.padding_idx, sparse=table.sparse)
        rows_ND = F.embedding(batch.ids, weight, self.padding_idx, scale_grad_by_freq=True)
        return rows_ND if batch.weights is None else rows_ND * batch.weights.unsqueeze(1)

    def _pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        if self.shard is not None:
            batch = batch.without(self.padding_idx)
            return bag.pool(*self.shard.fetch(self._weight(batch), batch, sparse=self.table.sparse), mode)
        if self.table.scale_grad_by_freq and self.table.weight.requires_grad and not self.frozen:
            # In torch 2.13 embedding_bag's own is wrong on the CPU, dividing one token's gradient by the
            # count of another (pytorch#190063), and left out on MPS.
            batch = batch.without(self.padding_idx)
            return batch.reduce(self._look_up(batch), mode)
        return bag.pool(
            self._weight(batch), batch, mode, padding_idx=self.padding_idx, sparse=self.table.sparse
        )

    def extra_repr(self) -> str:
        return f"trainable={self.table.weight.requires_grad}"


def sums_among(pools: Sequence[Reduction] | None) -> int:
    """How many of the reductions a linear layer may follow instead of going before: sums and means."""
    return sum(mode != "max" for mode in pools or ())


def _shorten(weight: Tensor, ids: Tensor | None, max_norm: float, norm_type: float) -> None:
    """Shorten the rows ``ids``, None for all, that are longer than ``max_norm`` to it, in place.

    Rounding leaves up to half of the rows that nn.Embedding has shortened a last digit too long, so that
    every look-up shortens them again, and a model changes by being evaluated. Hence the tolerance, far above
    rounding. It also leaves few rows to ``embedding_renorm_``, which takes them one by one.
    """
    if weight.is_meta:  # nothing to shorten
        return
    rows = weight if ids is None else weight.index_select(0, ids)
    tolerance = max(1e-5, 4 * torch.finfo(weight.dtype).eps)
    long = torch.linalg.vector_norm(rows, norm_type, dim=1) > max_norm * (1 + tolerance)
    long_ids = long.nonzero().squeeze(1) if ids is None else ids[long]
    torch.embedding_renorm_(weight, long_ids, max_norm, norm_type)


def _initial_rows(
    num_embeddings: int,
    dim: int,
    vectors: Tensor | None,
    found: Tensor | None,
    init: Initialisation,
    scale: float | None,
    missing: Missing,
) -> Tensor:
    """Draw (V, D) rows and lay the vectors over those that have one."""
    weight = torch.empty(num_embeddings, dim)
    if init.endswith("normal"):
        weight.normal_()
    elif init.endswith("uniform"):
        weight.uniform_(-1, 1)
    else:
        weight.zero_()
    if init in OWN_SCALE:
        scale = OWN_SCALE[init](num_embeddings, dim)
    if vectors is None:
        return weight.mul_(DEFAULT_SCALE if scale is None else scale)
    if found is None:
        return weight.copy_(vectors)
    known = vectors[found].to(weight.dtype)
    if scale is None:
        scale = float(known.std(correction=0)) if known.numel() else DEFAULT_SCALE
        if init == "uniform":
            scale *= 3**0.5  # a uniform number from -a to a has the standard deviation a / sqrt(3)
    weight.mul_(scale)
    if missing == "zeros" or (missing == "mean" and not known.numel()):
        weight.zero_()
    elif missing == "mean":
        weight[:] = known.mean(dim=0)
    weight[found] = known
    return weight
