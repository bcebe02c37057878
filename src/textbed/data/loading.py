"""From encoded columns to batches: one vectorised gather per batch, and the samplers that say which documents
it holds.

All samplers are batch samplers: they yield arrays of positions in the data set. They are built the same on
every process of a distributed run, decide the same batches from (seed, epoch), and take every
``world_size``-th of them; so no process ever asks another which documents it has. Every process gets the same
number of batches.

Shape letters: B documents in the batch, N tokens of all of them together, C classes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from textbed.batch import TokenBatch
from textbed.errors import UserError

POOL_STEPS = 64
"""Steps' worth of documents that are sorted by length together. More pads less, and mixes less."""


class Column(Protocol):
    """What a data set needs of an encoded column of texts (``encoding.EncodedTexts`` is one)."""

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens of each text."""

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) int32 and offsets (B + 1,) int64 of these rows, in this order."""


class TokenDataset(Dataset[TokenBatch]):
    """Documents of one split as token ids.

    Args:
        columns: the text columns of the source split: one, or two for pairs.
        labels: of the chosen documents: (len(rows),) class numbers, or (len(rows), C) zeros and ones; None
            where there are none to know.
        rows: the chosen rows of the source split. Position i of this data set is the document of row
            ``rows[i]``.
        multilabel: labels are zeros and ones for each class.
    """

    def __init__(
        self, columns: Sequence[Column], labels: np.ndarray | None, rows: np.ndarray, multilabel: bool = False
    ) -> None:
        self.columns = list(columns)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.labels = labels
        self.multilabel = multilabel
        if labels is not None and len(labels) != len(self.rows):
            raise ValueError(f"{len(labels)} labels for {len(self.rows)} documents")
        self.lengths = np.sum([column.lengths[self.rows] for column in self.columns], axis=0, dtype=np.int64)
        """(documents,) tokens of each, both texts of a pair together."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> TokenBatch:
        """A batch of one document."""
        return self.__getitems__([range(len(self))[position]])

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> TokenBatch:
        """The batch of these documents, in this order; for pairs all first texts, then all second texts."""
        chosen = np.asarray(positions, dtype=np.int64)
        rows = self.rows[chosen]
        ids, offsets = self.columns[0].gather(rows)
        for column in self.columns[1:]:
            more_ids, more_offsets = column.gather(rows)
            ids = np.concatenate([ids, more_ids])
            offsets = np.concatenate([offsets, more_offsets[1:] + offsets[-1]])
        return TokenBatch(
            _tensor(ids, np.int32),
            _tensor(offsets, np.int32),
            self.labels_of(chosen),
            _tensor(rows, np.int64),
        )

    def labels_of(self, positions: np.ndarray) -> torch.Tensor | None:
        """Labels as ``TokenBatch`` has them."""
        if self.labels is None:
            return None
        return _tensor(self.labels[positions], np.float32 if self.multilabel else np.int64)


class WithoutTokens(Dataset[TokenBatch]):
    """The documents of a data set without their tokens, for a model that has pooled them before."""

    def __init__(self, dataset: TokenDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> TokenBatch:
        return self.__getitems__([range(len(self))[position]])

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> TokenBatch:
        chosen = np.asarray(positions, dtype=np.int64)
        texts = len(chosen) * len(self.dataset.columns)
        return TokenBatch(
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(texts + 1, dtype=torch.int32),
            self.dataset.labels_of(chosen),
            _tensor(self.dataset.rows[chosen], np.int64),
            pooled=torch.zeros(texts, 0),
        )


def _tensor(array: np.ndarray, dtype: Any) -> torch.Tensor:
    # A view of a read-only memory map has to be copied: torch has no read-only tensors.
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


class TokenLoader(DataLoader):
    """A ``DataLoader`` that starts when the first batch is asked for, and can start in the middle of an
    epoch.

    The plain one starts its workers on the first batches as soon as ``iter`` is called, and Lightning calls
    ``iter`` before it has told the sampler the epoch: a resumed run would begin with documents of the wrong
    epoch.
    """

    def __iter__(self) -> Iterator[TokenBatch]:  # type: ignore[override]
        yield from super().__iter__()

    def skip(self, batches: int) -> None:
        """Leave out that many batches of the next epoch: they were trained on before an interruption."""
        self.batch_sampler.start = batches  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, Any]:
        """Empty. That it exists tells Lightning that an interrupted epoch can be gone on with.

        Where the epoch was left is known from the trainer's own counters, and ``TextClassifier`` passes it to
        ``skip``: Lightning forgets to load a loader's state if the optimizer's configuration asked for the
        number of steps.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def _pass_through(batch: Any) -> Any:
    return batch


def make_loader(
    dataset: TokenDataset | WithoutTokens, batches: _Batches, workers: int = 0, pin_memory: bool = False
) -> TokenLoader:
    """A loader of ``TokenBatch`` for Lightning's ``Trainer(use_distributed_sampler=False)``.

    Args:
        workers: processes that gather. 0 is right unless the columns lie on a slow disk: a gather of 256
            documents takes well under a millisecond, and sending it between processes takes as long.
        pin_memory: gather into page-locked memory, so that copies to a GPU need not wait.
    """
    return TokenLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_pass_through,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Else every `iter` draws a number from the global generator, and dropout would depend on how often
        # that was.
        generator=torch.Generator(),
    )


class _Batches(Sampler[np.ndarray]):
    """What the samplers share: cutting an order of documents into batches, and giving each process its part.

    Args:
        lengths: (documents,) tokens of each document.
        batch_size: documents in a batch.
        batch_tokens: instead, the tokens that a batch may hold. A longer document is a batch of its own. An
            empty document counts as one token, so that a batch stays finite.
        rank, world_size: which of how many processes this is. Both sizes are for each process.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_tokens is None and batch_size is None:
            raise ValueError("one of batch_size and batch_tokens is needed")
        for name, size in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if size is not None and size < 1:
                raise UserError(f"data.{name}={size}: a batch cannot be that small. Set it to 1 or more.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        self.lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
        self.documents_per_batch = batch_size or 0
        self.batch_tokens = batch_tokens
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        """Batches that the next iteration leaves out; back to 0 once it has begun."""

    @property
    def sampler(self) -> _Batches:
        """Itself: Lightning looks for ``set_epoch`` on ``loader.batch_sampler.sampler``, no nearer."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        start, self.start = self.start, 0
        yield from self._steps(self.epoch)[start:]

    def _steps(self, epoch: int) -> list[np.ndarray]:
        """Positions of each of this process's batches in that epoch."""
        raise NotImplementedError

    def _cut_by_documents(self, order: np.ndarray) -> list[np.ndarray]:
        """Cut ``order`` into the documents of each step, all processes together.

        The last step holds what is left over. Where that is less than a document for each process it joins
        the step before, so that no document is lost and no process is without.
        """
        size = self.documents_per_batch * self.world_size
        starts = list(range(0, len(order), size))
        if len(starts) > 1 and len(order) - starts[-1] < self.world_size:
            starts.pop()
        return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]

    def _cut_by_tokens(self, order: np.ndarray) -> list[int]:
        """Where the batches of ``order`` start, and its end: each holds as many documents as it may."""
        assert self.batch_tokens is not None
        before = np.concatenate([[0], np.cumsum(self.lengths[order])])
        bounds = [0]
        while bounds[-1] < len(order):
            fits = int(np.searchsorted(before, before[bounds[-1]] + self.batch_tokens, side="right")) - 1
            bounds.append(max(fits, bounds[-1] + 1))
        return bounds

    def _recut(self, bounds: list[int], batches: int) -> list[int]:
        """The same cut, brought to exactly that number of batches by halving those of most documents."""
        batches = min(batches, bounds[-1])
        largest = [(a - b, a) for a, b in itertools.pairwise(bounds)]
        heapq.heapify(largest)
        while len(largest) < batches:
            size, start = heapq.heappop(largest)
            half = -size // 2
            heapq.heappush(largest, (-half, start))
            heapq.heappush(largest, (size + half, start + half))
        starts = sorted(start for _, start in largest)
        return [*starts[:batches], bounds[-1]]

    def _whole(self, batches: int) -> int:
        """That number of batches, rounded up to equally many a process; at most one a document."""
        rounded = -(-batches // self.world_size) * self.world_size
        if rounded > len(self.lengths):
            # Only where nearly every batch is a single document: the last ones are joined, over the budget.
            rounded = len(self.lengths) // self.world_size * self.world_size
        return rounded


class OrderedBatches(_Batches):
    """Every document exactly once, for evaluation, with any number of processes and whatever is left over.

    Documents go from long to short unless ``by_length`` is false: a recurrent head then pads little, and
    memory peaks at the first batch instead of late. Their order changes no figure, and ``TokenBatch.rows``
    says which is which. With fewer documents than processes the last processes get an empty batch, so that
    they too reach the sums at the end.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        by_length: bool = True,
    ) -> None:
        super().__init__(lengths, batch_size, batch_tokens, rank=rank, world_size=world_size)
        self.by_length = by_length

    def __len__(self) -> int:
        return len(self._all)

    def _steps(self, epoch: int) -> list[np.ndarray]:
        return self._all

    @cached_property
    def _all(self) -> list[np.ndarray]:
        count = len(self.lengths)
        order = np.argsort(-self.lengths, kind="stable") if self.by_length else np.arange(count)
        if count < self.world_size:
            return [order[self.rank : self.rank + 1]] if count else []
        if self.batch_tokens is None:
            return [step[self.rank :: self.world_size] for step in self._cut_by_documents(order)]
        bounds = self._cut_by_tokens(order)
        bounds = self._recut(bounds, self._whole(len(bounds) - 1))
        batches = [order[a:b] for a, b in itertools.pairwise(bounds)]
        return batches[self.rank :: self.world_size]


class ShuffledBatches(_Batches):
    """Every document exactly once per epoch, in an order drawn anew from (seed, epoch).

    A step trains on ``batch_size * world_size`` documents, the last step of an epoch on those left over,
    dealt out to the processes as evenly as can be. Where the parts differ by a document, or hold different
    numbers of documents under a budget in tokens, ``TextClassifier`` weighs the losses so that a step is that
    of one process over all of its documents.

    Under a budget in tokens the batches that an order gives vary by a few from epoch to epoch, while
    Lightning asks for their number once. So it is fixed a little above what the first epochs need, the
    largest batches of an epoch are halved until it is met, and an order that needs more is drawn again.

    Args:
        seed: of the order; see ``_Batches`` for the others.
        reshuffle: false keeps the order of epoch 0 in every epoch, for overfitting a few batches.

    Raises UserError where there are fewer documents than processes.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        reshuffle: bool = True,
    ) -> None:
        super().__init__(lengths, batch_size, batch_tokens, rank=rank, world_size=world_size)
        if 0 < len(self.lengths) < world_size:
            raise UserError(
                f"{len(self.lengths)} training documents cannot be shared by {world_size} processes."
                f" Set trainer.devices to {len(self.lengths)} or fewer."
            )
        self.seed = seed
        self.reshuffle = reshuffle

    def __len__(self) -> int:
        if self.batch_tokens is not None:
            return self._fixed // self.world_size
        size = self.documents_per_batch * self.world_size
        steps, left = divmod(len(self.lengths), size)
        return max(steps + (left >= self.world_size), min(1, len(self.lengths)))

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """All documents in the order in which they are cut into batches."""
        return generator.permutation(len(self.lengths))

    def _arrange(self, steps: int, generator: np.random.Generator) -> np.ndarray:
        """In which order the steps are taken."""
        return np.arange(steps)

    def _steps(self, epoch: int) -> list[np.ndarray]:
        if not self.reshuffle:
            epoch = 0
        if len(self.lengths) == 0:
            return []
        if self.batch_tokens is None:
            generator = self._generator(epoch)
            steps = self._cut_by_documents(self._order(generator))
            return [
                steps[step][self.rank :: self.world_size] for step in self._arrange(len(steps), generator)
            ]
        # Sixteen draws fail only by a miracle, and the last one in the list is known to fit.
        for draw in [*((epoch, again) for again in range(16)), (0, 0)]:
            generator = self._generator(*draw)
            order = self._order(generator)
            bounds = self._cut_by_tokens(order)
            if len(bounds) - 1 <= self._fixed:
                break
        bounds = self._recut(bounds, self._fixed)
        batches = [order[a:b] for a, b in itertools.pairwise(bounds)]
        # Neighbours are a step: under bucketing they are of like length, and the processes wait little for
        # each other.
        mine = batches[self.rank :: self.world_size]
        return [mine[step] for step in self._arrange(len(mine), generator)]

    def _generator(self, epoch: int, again: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, again])

    @cached_property
    def _fixed(self) -> int:
        """Batches of every epoch under a budget in tokens, all processes together."""
        if len(self.lengths) == 0:
            return 0
        # Three epochs to see the spread: a second or two for a million documents.
        most = max(len(self._cut_by_tokens(self._order(self._generator(epoch)))) - 1 for epoch in range(3))
        return self._whole(most + -(-most // 100) if most > 1 else most)


class BucketedBatches(ShuffledBatches):
    """Like ShuffledBatches, with documents of like length together: little padding in heads that need it.

    The shuffled documents are taken in pools of ``POOL_STEPS`` steps, sorted by length inside a pool, cut
    into batches, and the batches shuffled. Which documents meet differs from epoch to epoch.
    """

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        order = super()._order(generator)
        if self.batch_tokens is None:
            size = self.documents_per_batch
        else:
            size = max(1, round(self.batch_tokens / self.lengths.mean()))
        pool = np.arange(len(order)) // (POOL_STEPS * size * self.world_size)
        return order[np.lexsort((self.lengths[order], pool))]

    def _arrange(self, steps: int, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(steps)
